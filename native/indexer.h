#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

constexpr int CODE_BLOCK = 32;  // channels under one scale

// Channels of an index query that is rounded to FP4, as whole numbers: products with the codes of FP4 rows are exact in integers.
struct IndexCodes {
    int8_t values[CODE_BLOCK];  // twice the E2M1 values; of every 8 channels first the even ones, then the odd: the halves of a row's bytes
    int32_t bias;               // what a row's codes have too much: they are stored as values from 0 on
    float scale;                // of twice a value of the query times twice a value of a row
};

// One query of one layer, all its heads. Score of a row: sum over heads of w_h * max(0, q_h . row).
struct IndexQuery {
    const float* q;             // [H, C], rotated
    const IndexCodes* codes;    // [H, C / CODE_BLOCK], the same numbers, for index_fp4 rows; nullptr: q is used
    const float* head_weights;  // [H]
    const Rows* rows;           // index rows of its sequence
    int64_t num_visible;        // rows 0 .. num_visible - 1
    int32_t* chosen;            // [k] out: ascending
    int32_t num_chosen;         // out: min(k, num_visible)
};

struct IndexerKernels {
    // The codes of one head q [C], C a multiple of CODE_BLOCK. False: its numbers are not those of FP4 codes.
    bool (*encode)(const float* q, int head_dim, IndexCodes* codes);
    // The k best rows of every query: larger score first, then the smaller row; +0 equals -0, NaN is larger than all numbers. All threads
    // call it; barriers inside, the last one at its end. Queries that see the same rows are best neighbours.
    void (*choose_rows)(const Team& team, IndexQuery* queries, int64_t num_queries, int num_heads, int head_dim, int k, void* scratch);
    int64_t (*choose_rows_scratch)(int64_t num_queries, int64_t max_visible, int num_heads, int head_dim, int k, int num_threads);  // bytes

    // Scores of rows 0 .. num_visible - 1 of query t at scores + t * stride; stride: a multiple of 16 that is not less. No barrier.
    void (*index_scores)(const Team& team, const IndexQuery* queries, int64_t num_queries, int num_heads, int head_dim, float* scores,
                         int64_t stride);
    // The k best of the first num_visible[t] scores at scores + t * stride: chosen [T, k], -1 behind what there is. No barrier.
    void (*top_rows)(const Team& team, const float* scores, int64_t stride, const int64_t* num_visible, int64_t num_queries, int k,
                     int32_t* chosen);
};

}  // namespace pelagos
