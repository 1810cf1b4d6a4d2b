#include "indexer.h"

#include "rounding.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

void choose_rows(const Team& team, IndexQuery* queries, int64_t num_queries, int H, int C, int k, void* scratch) {
    int64_t most = *static_cast<int64_t*>(scratch) = 0;
    (void)most;
    Range mine = team.share(num_queries);
    float row[1024];
    for (int64_t i = mine.begin; i < mine.end; i++) {
        IndexQuery& query = queries[i];
        float best[8192];
        int32_t num = 0;
        for (int64_t j = 0; j < query.num_visible; j++) {
            load_row(query.rows->layout, query.rows->row(j), row);
            float score = 0;
            for (int h = 0; h < H; h++) {
                F16 dot = zero();
                for (int c = 0; c < C; c += LANES)
                    dot = fma(load_n(query.q + h * C + c, std::min(LANES, C - c)), load_n(row + c, std::min(LANES, C - c)), dot);
                score = std::fma(std::max(sum(dot), 0.0f), query.head_weights[h], score);
            }
            int32_t at = num;
            while (at > 0 && best[at - 1] < score) at--;
            if (at >= k) continue;
            if (num < k) num++;
            for (int32_t m = num - 1; m > at; m--) best[m] = best[m - 1], query.chosen[m] = query.chosen[m - 1];
            best[at] = score;
            query.chosen[at] = int32_t(j);
        }
        std::sort(query.chosen, query.chosen + num);
        query.num_chosen = num;
    }
}

int64_t choose_rows_scratch(int64_t, int64_t, int, int, int, int) { return 64; }

}  // namespace

extern const IndexerKernels indexer_kernels;
const IndexerKernels indexer_kernels = {choose_rows, choose_rows_scratch};

}  // namespace pelagos::PELAGOS_ISA
