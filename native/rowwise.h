// The functions of norm_rope.h, rounding.h, mhc.h, moe.h and compressor.h over many rows, shared among the team: for the Python
// ops, tests and benchmarks. What they compute is said in those headers. Arrays are dense, in the order of dimensions given;
// outputs do not overlap inputs unless said. No barrier before or behind.
#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

struct RowwiseKernels {
    // x, y: [rows, n]; weight: [n]
    void (*rms_norm)(const Team& team, const float* x, const float* weight, int64_t rows, int64_t n, float eps, float* y,
                     bool round);
    void (*head_norm)(const Team& team, const float* x, int64_t rows, int64_t n, float eps, float* y, bool round);

    // positions: [rows]; cos, sin: [rows, half]
    void (*rotation)(const Team& team, const int64_t* positions, const float* frequencies, int64_t rows, int half, float* cos,
                     float* sin);
    // x: [rows, heads, n], the last 2 * half of n numbers are turned in place; cos, sin: [rows, half]
    void (*rotate)(const Team& team, float* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t n,
                   int half, bool inverse, bool round);

    // streams: [rows, num, size]; z: [rows, (2 + num) num]; pre, post: [rows, num]; mix: [rows, num, num]
    void (*mhc_weights)(const Team& team, const float* streams, const float* z, const float* base, const float* scale,
                        int64_t rows, int num, int64_t size, float norm_eps, float hc_eps, int iterations, float* pre,
                        float* post, float* mix);
    // z: [rows, num]
    void (*mhc_head_weights)(const Team& team, const float* streams, const float* z, const float* base, const float* scale,
                             int64_t rows, int num, int64_t size, float norm_eps, float hc_eps, float* pre);
    // y: [rows, size]
    void (*mhc_collapse)(const Team& team, const float* streams, const float* pre, int64_t rows, int num, int64_t size, float* y,
                         bool round);
    // in place
    void (*mhc_expand)(const Team& team, float* streams, const float* y, const float* post, const float* mix, int64_t rows,
                       int num, int64_t size, bool round);

    // values, gates: [rows, slots, n], slots <= 256; exists: [rows, slots], nullptr: all do; y: [rows, n]
    void (*pool_window)(const Team& team, const float* values, const float* gates, const uint8_t* exists, int64_t rows, int slots,
                        int64_t n, float* y);

    // logits, scores: [rows, n]; chosen, weights: [rows, k]; gate, up, h: [rows, n]
    void (*router_scores)(const Team& team, const float* logits, int64_t rows, int n, float* scores);
    void (*top_experts)(const Team& team, const float* scores, const float* bias, int64_t rows, int n, int k, int32_t* chosen);
    void (*routing_weights)(const Team& team, const float* scores, const int32_t* chosen, int64_t rows, int n, int k,
                            float factor, float* weights);
    void (*clamped_swiglu)(const Team& team, const float* gate, const float* up, const float* weights, int64_t rows, int64_t n,
                           bool has_limit, float limit, float* h, bool round);

    // [rows, n]; all but round_activation in place
    void (*round_activation)(const Team& team, const float* x, int64_t rows, int64_t n, float* y);
    void (*hadamard)(const Team& team, float* x, int64_t rows, int n, bool round);
    void (*round_index)(const Team& team, float* x, int64_t rows, int n, bool round);
    void (*round_row)(const Team& team, float* x, int64_t rows, int n, int num_rope);

    int64_t (*row_bytes)(RowFormat format, int size, int num_rope);
    // x: [rows, layout.size]; packed: [rows, layout.bytes]
    void (*store_rows)(const Team& team, const RowLayout& layout, const float* x, int64_t rows, uint8_t* packed);
    void (*load_rows)(const Team& team, const RowLayout& layout, const uint8_t* packed, int64_t rows, float* x);
};

}  // namespace pelagos
