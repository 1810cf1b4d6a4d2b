// The lightning indexer: scores of rows, and the best of them.
//
// A score is one chain per head over the channels, then one over the heads: lanes are 16 neighbouring rows, so a row's bits depend on the
// row and the query alone. Queries are taken in groups, whose scores fit into scratch memory; a group's rows are shared among the
// team, then its queries.
#include "indexer.h"

#include "rounding.h"
#include "simd.h"
#include "transpose.h"

namespace pelagos::PELAGOS_ISA {

namespace {

constexpr int64_t GROUP = 16;  // queries
constexpr int MAX_SIZE = 256;  // of an index row
constexpr int HEADS = 4;       // chains side by side

// 16 rows from `first` on, those before `count`, as columns [C, 16].
void load_block(const Rows& rows, int64_t first, int64_t count, int C, float* columns) {
    alignas(64) float block[LANES * MAX_SIZE];
    int padded = (C + 3) / 4 * 4;
    for (int l = 0; l < LANES; l++) {
        if (first + l < count)
            load_row(rows.layout, rows.row(first + l), block + l * padded);
        else
            std::memset(block + l * padded, 0, sizeof(float) * C);
        for (int c = C; c < padded; c++) block[l * padded + c] = 0.0f;
    }
    for (int c = 0; c < C; c += 4) {
        F16 four[4];
        load_columns(block + c, padded, four);
        for (int i = 0; i < 4 && c + i < C; i++) store(columns + (c + i) * LANES, four[i]);
    }
}

template <int N>
inline F16 add_heads(const float* q, const float* weights, int C, const float* columns, F16 score) {
    F16 dot[N];
    for (int h = 0; h < N; h++) dot[h] = zero();
    for (int c = 0; c < C; c++) {
        F16 column = load(columns + c * LANES);
        for (int h = 0; h < N; h++) dot[h] = fma(set1(q[h * C + c]), column, dot[h]);
    }
    for (int h = 0; h < N; h++) score = fma(max(dot[h], zero()), set1(weights[h]), score);
    return score;
}

F16 score_block(const IndexQuery& query, int H, int C, const float* columns) {
    F16 score = zero();
    int h = 0;
    for (; h + HEADS <= H; h += HEADS) score = add_heads<HEADS>(query.q + h * C, query.head_weights + h, C, columns, score);
    for (; h < H; h++) score = add_heads<1>(query.q + h * C, query.head_weights + h, C, columns, score);
    return score;
}

int64_t most_visible(const IndexQuery* queries, int64_t num_queries) {
    int64_t most = 0;
    for (int64_t i = 0; i < num_queries; i++) most = std::max(most, queries[i].num_visible);
    return (most + LANES - 1) / LANES * LANES;
}

// Scores of this thread's share of the rows, for all queries of a group: scores + query * stride. Neighbours of one sequence share blocks.
void score_rows(const Team& team, const IndexQuery* queries, int64_t num, int H, int C, float* scores, int64_t stride) {
    alignas(64) float columns[MAX_SIZE * LANES];
    Range mine = team.share(stride, LANES);
    for (int64_t first = mine.begin; first < mine.end; first += LANES) {
        const Rows* loaded = nullptr;
        for (int64_t i = 0; i < num; i++) {
            const IndexQuery& query = queries[i];
            if (first >= query.num_visible) continue;
            if (query.rows != loaded) {
                int64_t count = 0;
                for (int64_t j = i; j < num && queries[j].rows == query.rows; j++) count = std::max(count, queries[j].num_visible);
                load_block(*query.rows, first, count, C, columns);
                loaded = query.rows;
            }
            store(scores + i * stride + first, score_block(query, H, C, columns));
        }
    }
}

// Larger scores have larger keys; both zeros have the same, NaN the largest.
inline uint32_t key_of(float score) {
    if (score != score) return UINT32_MAX;
    score += 0.0f;
    uint32_t bits_of;
    std::memcpy(&bits_of, &score, 4);
    return bits_of & 0x80000000u ? ~bits_of : bits_of | 0x80000000u;
}

// The k-th largest key, digit by digit, and how many keys are larger than it.
uint32_t threshold(const float* scores, int64_t num, int64_t k, int64_t* num_larger) {
    uint32_t prefix = 0, known = 0;
    int64_t above = 0;
    for (int shift : {21, 10, 0}) {
        uint32_t mask = shift == 0 ? 0x3ffu : 0x7ffu;
        int64_t counts[2048] = {};
        for (int64_t i = 0; i < num; i++) {
            uint32_t key = key_of(scores[i]);
            if ((key & known) == prefix) counts[key >> shift & mask]++;
        }
        int64_t digit = mask;
        while (above + counts[digit] < k) above += counts[digit--];
        prefix |= uint32_t(digit) << shift;
        known |= mask << shift;
    }
    *num_larger = above;
    return prefix;
}

// Of equal scores the smaller rows.
int32_t choose_best(const float* scores, int64_t num, int64_t k, int32_t* chosen) {
    int64_t num_larger = 0, wanted = std::min(k, num);
    uint32_t limit = num > k ? threshold(scores, num, k, &num_larger) : 0;
    int64_t equal_left = wanted - num_larger, found = 0;
    for (int64_t i = 0; i < num && found < wanted; i++) {
        uint32_t key = key_of(scores[i]);
        if (num > k && (key < limit || (key == limit && equal_left-- <= 0))) continue;
        chosen[found++] = int32_t(i);
    }
    return int32_t(found);
}

void choose_rows(const Team& team, IndexQuery* queries, int64_t num_queries, int H, int C, int k, void* scratch) {
    float* scores = static_cast<float*>(scratch);
    for (int64_t begin = 0; begin < num_queries; begin += GROUP) {
        int64_t num = std::min(GROUP, num_queries - begin), stride = most_visible(queries + begin, num);
        score_rows(team, queries + begin, num, H, C, scores, stride);
        team.wait();
        for (int64_t i = team.index; i < num; i += team.size) {
            IndexQuery& query = queries[begin + i];
            query.num_chosen = choose_best(scores + i * stride, query.num_visible, k, query.chosen);
        }
        team.wait();
    }
}

int64_t choose_rows_scratch(int64_t num_queries, int64_t max_visible, int, int, int, int) {
    return std::min(GROUP, num_queries) * ((max_visible + LANES - 1) / LANES * LANES) * int64_t(sizeof(float));
}

void index_scores(const Team& team, const IndexQuery* queries, int64_t num_queries, int H, int C, float* scores, int64_t stride) {
    score_rows(team, queries, num_queries, H, C, scores, stride);
}

void top_rows(const Team& team, const float* scores, int64_t stride, const int64_t* num_visible, int64_t num_queries, int k, int32_t* chosen) {
    Range mine = team.share(num_queries);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        int32_t found = choose_best(scores + i * stride, num_visible[i], k, chosen + i * k);
        std::fill(chosen + i * k + found, chosen + (i + 1) * k, -1);
    }
}

}  // namespace

extern const IndexerKernels indexer_kernels;
const IndexerKernels indexer_kernels = {choose_rows, choose_rows_scratch, index_scores, top_rows};

}  // namespace pelagos::PELAGOS_ISA
