// The lightning indexer: scores of rows, and the best of them.
//
// A row's bits depend on the row and the query alone. Queries are taken in groups, whose scores fit into scratch memory; a group's rows are
// shared among the team, then its queries. Beside the scores lie the best of every 16, by which most rows are passed over.
#include "indexer.h"

#include "index_scores.h"

namespace pelagos::PELAGOS_ISA {

namespace {

constexpr int64_t GROUP = 16;  // queries

int64_t most_visible(const IndexQuery* queries, int64_t num_queries) {
    int64_t most = 0;
    for (int64_t i = 0; i < num_queries; i++) most = std::max(most, queries[i].num_visible);
    return (most + LANES - 1) / LANES * LANES;
}

// Scores of some queries: those of query i at scores + i * stride, the best of each 16 at best + i * stride / 16 unless it is nullptr.
struct ScoreTable {
    float *scores, *best;
    int64_t stride;

    void put(int64_t query, int64_t first, int64_t num_visible, F16 score) const {
        store(scores + query * stride + first, score);
        if (!best) return;
        // Infinity stands for NaN, which is larger: what is passed over is smaller than that in any case.
        F16 known = select(is_nan(score), set1(INFINITY), score);
        if (first + LANES > num_visible) {
            alignas(64) float lanes[LANES];
            store(lanes, known);
            std::fill(lanes + (num_visible - first), lanes + LANES, -INFINITY);
            known = load(lanes);
        }
        best[(query * stride + first) / LANES] = max(known);
    }
};

// Scores of this thread's share of the rows, for all queries of a group. Neighbours of one sequence share blocks.
void score_rows(const Team& team, const IndexQuery* queries, int64_t num, int H, int C, const ScoreTable& table) {
    NumberBlock numbers;
    CodedBlock codes;
    Range mine = team.share(table.stride, LANES);
    for (int64_t first = mine.begin; first < mine.end; first += LANES) {
        const Rows* loaded = nullptr;
        for (int64_t i = 0; i < num; i++) {
            const IndexQuery& query = queries[i];
            if (first >= query.num_visible) continue;
            if (query.rows != loaded) {
                int64_t count = 0;
                for (int64_t j = i; j < num && queries[j].rows == query.rows; j++) count = std::max(count, queries[j].num_visible);
                if (query.codes)
                    codes.fill(*query.rows, first, count, C);
                else
                    numbers.fill(*query.rows, first, count, C);
                loaded = query.rows;
            }
            table.put(i, first, query.num_visible, query.codes ? score_block(codes, query, H, C) : score_block(numbers, query, H, C));
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

// All keys of scores.
struct EveryKey {
    const float* scores;
    int64_t num;
    template <class Visit>
    void visit(const Visit& f) const {
        for (int64_t i = 0; i < num; i++) f(i, key_of(scores[i]));
    }
};

// Keys of some rows, ascending.
struct FewKeys {
    static constexpr int64_t MOST = 4096;
    int64_t num = 0;
    int32_t rows[MOST];
    uint32_t keys[MOST];

    // All that are not below a limit. False: they are too many.
    bool take(const float* scores, const float* best, int64_t num_scores, uint32_t limit) {
        for (int64_t first = 0; first < num_scores; first += LANES) {
            if (key_of(best[first / LANES]) < limit) continue;
            if (num + LANES > MOST) return false;
            for (int64_t row = first; row < std::min(first + LANES, num_scores); row++) {
                rows[num] = int32_t(row);
                keys[num] = key_of(scores[row]);
                num += keys[num] >= limit;
            }
        }
        return true;
    }
    template <class Visit>
    void visit(const Visit& f) const {
        for (int64_t i = 0; i < num; i++) f(rows[i], keys[i]);
    }
};

// The k-th largest key, digit by digit, and how many keys are larger than it.
template <class Keys>
uint32_t threshold(const Keys& keys, int64_t k, int64_t* num_larger) {
    uint32_t prefix = 0, known = 0;
    int64_t above = 0;  // keys that are larger than all with this prefix
    for (int shift : {21, 10, 0}) {
        uint32_t mask = shift == 0 ? 0x3ffu : 0x7ffu;
        int32_t counts[2048] = {};
        keys.visit([&](int64_t, uint32_t key) {
            if ((key & known) == prefix) counts[key >> shift & mask]++;
        });
        int64_t digit = mask;
        while (above + counts[digit] < k) above += counts[digit--];
        prefix |= uint32_t(digit) << shift;
        known |= mask << shift;
    }
    *num_larger = above;
    return prefix;
}

// The k largest of more than k keys, of equal ones the smaller rows.
template <class Keys>
void choose_keys(const Keys& keys, int64_t k, int32_t* chosen) {
    int64_t num_larger;
    const uint32_t limit = threshold(keys, k, &num_larger);
    int64_t equal_left = k - num_larger;
    keys.visit([&](int64_t row, uint32_t key) {
        if (key > limit || (key == limit && equal_left-- > 0)) *chosen++ = int32_t(row);
    });
}

// best: of every 16 scores, or nullptr.
int32_t choose_best(const float* scores, const float* best, int64_t num, int64_t k, int32_t* chosen) {
    if (num <= k) {
        for (int64_t i = 0; i < num; i++) chosen[i] = int32_t(i);
        return int32_t(num);
    }
    const int64_t num_blocks = (num + LANES - 1) / LANES;
    if (best && num_blocks > k) {  // k blocks have a best score that is not below this limit, so at least k scores are not
        int64_t num_larger;
        FewKeys few;
        if (few.take(scores, best, num, threshold(EveryKey{best, num_blocks}, k, &num_larger))) {
            choose_keys(few, k, chosen);
            return int32_t(k);
        }
    }
    choose_keys(EveryKey{scores, num}, k, chosen);
    return int32_t(k);
}

void choose_rows(const Team& team, IndexQuery* queries, int64_t num_queries, int H, int C, int k, void* scratch) {
    float* scores = static_cast<float*>(scratch);
    for (int64_t begin = 0; begin < num_queries; begin += GROUP) {
        const int64_t num = std::min(GROUP, num_queries - begin), stride = most_visible(queries + begin, num);
        const ScoreTable table{scores, scores + num * stride, stride};
        score_rows(team, queries + begin, num, H, C, table);
        team.wait();
        for (int64_t i = team.index; i < num; i += team.size) {
            IndexQuery& query = queries[begin + i];
            query.num_chosen = choose_best(table.scores + i * stride, table.best + i * stride / LANES, query.num_visible, k, query.chosen);
        }
        team.wait();
    }
}

int64_t choose_rows_scratch(int64_t num_queries, int64_t max_visible, int, int, int, int) {
    const int64_t num_blocks = std::min(GROUP, num_queries) * ((max_visible + LANES - 1) / LANES);
    return num_blocks * (LANES + 1) * int64_t(sizeof(float));
}

void index_scores(const Team& team, const IndexQuery* queries, int64_t num_queries, int H, int C, float* scores, int64_t stride) {
    score_rows(team, queries, num_queries, H, C, {scores, nullptr, stride});
}

void top_rows(const Team& team, const float* scores, int64_t stride, const int64_t* num_visible, int64_t num_queries, int k, int32_t* chosen) {
    Range mine = team.share(num_queries);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        int32_t found = choose_best(scores + i * stride, nullptr, num_visible[i], k, chosen + i * k);
        std::fill(chosen + i * k + found, chosen + (i + 1) * k, -1);
    }
}

}  // namespace

extern const IndexerKernels indexer_kernels;
const IndexerKernels indexer_kernels = {encode_query, choose_rows, choose_rows_scratch, index_scores, top_rows};

}  // namespace pelagos::PELAGOS_ISA
