// Loops over rows around the functions of one row.
#include "rowwise.h"

#include "compressor.h"
#include "mhc.h"
#include "moe.h"
#include "norm_rope.h"
#include "rounding.h"

namespace pelagos::PELAGOS_ISA {

namespace {

constexpr int MAX_SLOTS = 256;
constexpr int64_t PART = 256;  // channels that one thread takes at a time where channels do not depend on each other

template <class F>
void each_row(const Team& team, int64_t rows, F work) {
    Range mine = team.share(rows);
    for (int64_t r = mine.begin; r < mine.end; r++) work(r);
}

// work(r, begin, end) for the parts of n channels of every row.
template <class F>
void each_part(const Team& team, int64_t rows, int64_t n, F work) {
    int64_t parts = (n + PART - 1) / PART;
    each_row(team, rows * parts, [&](int64_t i) {
        int64_t begin = i % parts * PART;
        work(i / parts, begin, n - begin < PART ? n : begin + PART);
    });
}

void rms_norms(const Team& team, const float* x, const float* weight, int64_t rows, int64_t n, float eps, float* y, bool round) {
    each_row(team, rows, [&](int64_t r) { rms_norm(x + r * n, weight, n, eps, y + r * n, round); });
}

void head_norms(const Team& team, const float* x, int64_t rows, int64_t n, float eps, float* y, bool round) {
    each_row(team, rows, [&](int64_t r) { head_norm(x + r * n, n, eps, y + r * n, round); });
}

void rotations(const Team& team, const int64_t* positions, const float* frequencies, int64_t rows, int half, float* cos,
               float* sin) {
    each_row(team, rows, [&](int64_t r) { rotation(positions[r], frequencies, half, cos + r * half, sin + r * half); });
}

void rotate_rows(const Team& team, float* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t n, int half,
                 bool inverse, bool round) {
    each_row(team, rows * heads, [&](int64_t i) {
        int64_t r = i / heads;
        rotate(x + (i + 1) * n - 2 * half, cos + r * half, sin + r * half, half, inverse, round);
    });
}

void mhc_weights_rows(const Team& team, const float* streams, const float* z, const float* base, const float* scale, int64_t rows,
                      int num, int64_t size, float norm_eps, float hc_eps, int iterations, float* pre, float* post, float* mix) {
    each_row(team, rows, [&](int64_t r) {
        float square = mean_square(streams + r * num * size, num * size);
        mhc_weights(z + r * (2 + num) * num, square, base, scale, num, norm_eps, hc_eps, iterations, pre + r * num, post + r * num,
                    mix + r * num * num);
    });
}

void mhc_head_weights_rows(const Team& team, const float* streams, const float* z, const float* base, const float* scale,
                           int64_t rows, int num, int64_t size, float norm_eps, float hc_eps, float* pre) {
    each_row(team, rows, [&](int64_t r) {
        float square = mean_square(streams + r * num * size, num * size);
        mhc_head_weights(z + r * num, square, base, scale, num, norm_eps, hc_eps, pre + r * num);
    });
}

void mhc_collapse_rows(const Team& team, const float* streams, const float* pre, int64_t rows, int num, int64_t size, float* y,
                       bool round) {
    each_part(team, rows, size, [&](int64_t r, int64_t begin, int64_t end) {
        mhc_collapse(streams + r * num * size, pre + r * num, num, size, begin, end, y + r * size, round);
    });
}

void mhc_expand_rows(const Team& team, float* streams, const float* y, const float* post, const float* mix, int64_t rows, int num,
                     int64_t size, bool round) {
    each_part(team, rows, size, [&](int64_t r, int64_t begin, int64_t end) {
        mhc_expand(streams + r * num * size, y + r * size, post + r * num, mix + r * num * num, num, size, begin, end, round);
    });
}

void pool_windows(const Team& team, const float* values, const float* gates, const uint8_t* exists, int64_t rows, int slots,
                  int64_t n, float* y) {
    each_part(team, rows, n, [&](int64_t r, int64_t begin, int64_t end) {
        const float *value_of[MAX_SLOTS], *gate_of[MAX_SLOTS];
        for (int j = 0; j < slots; j++) {
            int64_t at = r * slots + j;
            bool is_there = !exists || exists[at];
            value_of[j] = is_there ? values + at * n : nullptr;
            gate_of[j] = is_there ? gates + at * n : nullptr;
        }
        pool_window(value_of, gate_of, slots, begin, end, y + r * n);
    });
}

void router_scores_rows(const Team& team, const float* logits, int64_t rows, int n, float* scores) {
    each_row(team, rows, [&](int64_t r) { router_scores(logits + r * n, n, scores + r * n); });
}

void top_experts_rows(const Team& team, const float* scores, const float* bias, int64_t rows, int n, int k, int32_t* chosen) {
    each_row(team, rows, [&](int64_t r) { top_experts(scores + r * n, bias, n, k, chosen + r * k); });
}

void routing_weights_rows(const Team& team, const float* scores, const int32_t* chosen, int64_t rows, int n, int k, float factor,
                          float* weights) {
    each_row(team, rows, [&](int64_t r) { routing_weights(scores + r * n, chosen + r * k, k, factor, weights + r * k); });
}

void clamped_swiglu_rows(const Team& team, const float* gate, const float* up, const float* weights, int64_t rows, int64_t n,
                         bool has_limit, float limit, float* h, bool round) {
    each_part(team, rows, n, [&](int64_t r, int64_t begin, int64_t end) {
        int64_t at = r * n + begin;
        clamped_swiglu(gate + at, up + at, end - begin, has_limit, limit, weights[r], h + at, round);
    });
}

void round_activations(const Team& team, const float* x, int64_t rows, int64_t n, float* y) {
    each_row(team, rows, [&](int64_t r) { round_activation(x + r * n, n, y + r * n); });
}

void hadamard_rows(const Team& team, float* x, int64_t rows, int n, bool round) {
    each_row(team, rows, [&](int64_t r) { hadamard(x + r * n, n, round); });
}

void round_indexes(const Team& team, float* x, int64_t rows, int n, bool round) {
    each_row(team, rows, [&](int64_t r) { round_index(x + r * n, n, round); });
}

void round_rows(const Team& team, float* x, int64_t rows, int n, int num_rope) {
    each_row(team, rows, [&](int64_t r) { round_row(x + r * n, n, num_rope); });
}

void store_rows(const Team& team, const RowLayout& layout, const float* x, int64_t rows, uint8_t* packed) {
    each_row(team, rows, [&](int64_t r) { store_row(layout, x + r * layout.size, packed + r * layout.bytes); });
}

void load_rows(const Team& team, const RowLayout& layout, const uint8_t* packed, int64_t rows, float* x) {
    each_row(team, rows, [&](int64_t r) { load_row(layout, packed + r * layout.bytes, x + r * layout.size); });
}

}  // namespace

extern const RowwiseKernels rowwise_kernels;
const RowwiseKernels rowwise_kernels = {
    rms_norms,          head_norms,       rotations,            rotate_rows,         mhc_weights_rows, mhc_head_weights_rows,
    mhc_collapse_rows,  mhc_expand_rows,  pool_windows,         router_scores_rows,  top_experts_rows, routing_weights_rows,
    clamped_swiglu_rows, round_activations, hadamard_rows,      round_indexes,       round_rows,       row_bytes,
    store_rows,         load_rows,
};

}  // namespace pelagos::PELAGOS_ISA
