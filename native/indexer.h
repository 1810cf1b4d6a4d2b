#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

struct IndexQuery {
    const float* q;             // [H, C], rotated; for index_fp4 rows rounded to FP4 values
    const float* head_weights;  // [H]
    const Rows* rows;           // index rows of its sequence
    int64_t num_visible;        // rows 0 .. num_visible - 1
    int32_t* chosen;            // [k] out: ascending
    int32_t num_chosen;         // out: min(k, num_visible)
};

struct IndexerKernels {
    void (*choose_rows)(const Team& team, IndexQuery* queries, int64_t num_queries, int num_heads, int head_dim, int k, void* scratch);
    int64_t (*choose_rows_scratch)(int64_t num_queries, int64_t max_visible, int num_heads, int head_dim, int k, int num_threads);  // bytes
};

}  // namespace pelagos
