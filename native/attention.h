#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

// One query of one layer, all its heads. A row is key and value at once.
struct AttendQuery {
    const float* q = nullptr;       // [H, C], rotated
    const float* window = nullptr;  // [num_window, C]: the window rows that this query sees, oldest first, its own last
    int64_t window_position = 0;    // position of the first of them
    int32_t num_window = 0;
    // With a ring, `window` has the last row alone, and the row of an earlier position t lies as it is stored in slot t % num_slots.
    const uint8_t* ring = nullptr;
    const RowLayout* ring_layout = nullptr;
    int32_t num_slots = 0;
    const Rows* rows = nullptr;        // compressed rows of its sequence; nullptr: none
    int64_t num_visible = 0;           // it sees rows 0 .. num_visible - 1, or
    const int32_t* chosen = nullptr;   // where this is not nullptr: those, ascending
    int32_t num_chosen = 0;
    float* out = nullptr;  // [H, C]
    // cos and sin of its position, [num_pairs]: the last 2 num_pairs numbers of each head of the output are turned back. nullptr: not.
    const float *cos = nullptr, *sin = nullptr;
    int32_t num_pairs = 0;
    bool round = false;  // with cos: the output is rounded to BF16, before and after

    int64_t num_compressed() const { return !rows ? 0 : chosen ? num_chosen : num_visible; }
};

struct AttentionKernels {
    // out_h = sum_j exp(l_j) row_j / (sum_j exp(l_j) + exp(sink_h)) with l_j = q_h . row_j / sqrt(C).
    // All threads call it; queries must be there before. With more than one thread there is a barrier inside, none behind.
    // Fastest where consecutive queries are of one sequence, with windows in one piece of memory: such queries share decoded rows.
    // sink: [H]. scratch: attend_scratch floats, any contents.
    void (*attend)(const Team& team, const AttendQuery* queries, int64_t num_queries, int num_heads, int head_dim, const float* sink,
                   float* scratch);
    // Floats of scratch for up to num_queries queries that see up to max_visible compressed rows each.
    int64_t (*attend_scratch)(int64_t num_queries, int64_t max_visible, int num_heads, int head_dim, int num_threads);
};

}  // namespace pelagos
