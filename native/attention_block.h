// Online softmax over one block of up to 64 rows, for some heads of one query.
//
// Both products are sums in order: a logit over the channels, a channel of the output over the rows. Lanes are rows in the first,
// channels in the second, so the same product serves both, and no lanes are added but those of the 64 weights.
//
// Shapes: H heads, C head size, P = C rounded up to whole vectors.
#pragma once

#include <algorithm>
#include <cfloat>

#include "attention.h"
#include "norm_rope.h"
#include "rounding.h"
#include "transpose.h"

namespace pelagos::PELAGOS_ISA {

constexpr int BLOCK = 64;       // rows of a block
constexpr int HEAD_BLOCK = 8;   // heads whose weights are computed together, and the unit of work of a thread
constexpr float NOTHING = -FLT_MAX;  // the maximum where no row has been seen

// Sums in registers: 2 x HEADS of 16 floats.
#if defined(PELAGOS_AVX512)
constexpr int TALL = 8, WIDE = 2;
#else
constexpr int TALL = 4, WIDE = 1;
#endif

struct HeadShape {
    int num_heads, size;  // H, C
    int64_t padded;       // P
    float scale;          // of logits

    HeadShape(int num_heads, int size)
        : num_heads(num_heads), size(size), padded((size + LANES - 1) / LANES * LANES), scale(1.0f / std::sqrt(float(size))) {}
    int64_t state_size() const { return num_heads * (2 + padded); }
    int64_t block_size() const { return BLOCK * (2 * padded + LANES); }
};

// Softmax so far: per head the largest logit, the sum of weights relative to it, and the weighted sum of rows [H, P].
struct State {
    float *maximum, *total, *sums;

    State(float* memory, const HeadShape& shape)
        : maximum(memory), total(memory + shape.num_heads), sums(memory + 2 * shape.num_heads) {}
    void clear(const HeadShape& shape, int begin, int end) const {
        for (int h = begin; h < end; h++) {
            maximum[h] = NOTHING;
            total[h] = 0.0f;
        }
        std::memset(sums + begin * shape.padded, 0, (end - begin) * shape.padded * sizeof(float));
    }
};

// Rows decoded to float32, as they are and with lanes across rows. Places that no query sees hold anything, as do channels behind C.
struct Block {
    float* rows;      // [64, stride]
    float* columns;   // [4, P, 16]
    int64_t stride;   // not a multiple of 2 KiB, so that a column of rows does not fall on one set of the cache
    int64_t padded;

    Block(float* memory, const HeadShape& shape)
        : rows(memory), columns(memory + BLOCK * (shape.padded + LANES)), stride(shape.padded + LANES), padded(shape.padded) {}
    float* row(int place) const { return rows + place * stride; }
    void fill_columns(int begin, int end) const {
        for (int first = begin / LANES * LANES; first < end; first += LANES) {
            float* to = columns + first * padded;
            for (int64_t c = 0; c < padded; c += LANES, to += LANES * LANES) transpose_tile(rows + first * stride + c, stride, to);
        }
    }
};

// c[i, j] = c[i, j] * factor[i] + sum over k in order of a[i, k] * b[k, j], with M x 16 N numbers c. Where factor is nullptr c is
// only written. b: vector j of line k lies at b + j * b_panel + k * b_step.
template <int M, int N>
inline void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_step, int64_t b_panel, int64_t depth, const float* factor,
                     float* c, int64_t c_stride) {
    F16 total[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) total[i][j] = factor ? load(c + i * c_stride + j * LANES) * set1(factor[i]) : zero();
    for (int64_t k = 0; k < depth; k++) {
        F16 line[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) line[j] = load(b + j * b_panel + k * b_step);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            F16 left = set1(a[i * a_stride + k]);
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) total[i][j] = fma(left, line[j], total[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) store(c + i * c_stride + j * LANES, total[i][j]);
}

template <int M>
inline void multiply_panels(const float* a, int64_t a_stride, const float* b, int64_t b_step, int64_t b_panel, int64_t depth,
                            const float* factor, float* c, int64_t c_stride, int64_t num_panels) {
    int64_t j = 0;
    for (; j + WIDE <= num_panels; j += WIDE)
        multiply<M, WIDE>(a, a_stride, b + j * b_panel, b_step, b_panel, depth, factor, c + j * LANES, c_stride);
    for (; j < num_panels; j++)
        multiply<M, 1>(a, a_stride, b + j * b_panel, b_step, b_panel, depth, factor, c + j * LANES, c_stride);
}

// The same for any number of lines of a, and of panels (columns of 16) of b.
inline void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_step, int64_t b_panel, int64_t depth, const float* factor,
                     float* c, int64_t c_stride, int num_lines, int64_t num_panels) {
    int i = 0;
    auto rest = [&](int taken) { return factor ? factor + taken : nullptr; };
    for (; i + TALL <= num_lines; i += TALL)
        multiply_panels<TALL>(a + i * a_stride, a_stride, b, b_step, b_panel, depth, rest(i), c + i * c_stride, c_stride, num_panels);
    for (; i < num_lines; i++)
        multiply_panels<1>(a + i * a_stride, a_stride, b, b_step, b_panel, depth, rest(i), c + i * c_stride, c_stride, num_panels);
}

// e^x of x <= 0, within 2 units of the last place; 0 below -87. NaN stays NaN.
inline F16 exp_below(F16 x) {
    F16 y = max(set1(-100.0f), x);
    F16 n = nearest(y * set1(1.44269504088896341f));
    return select(less(x, set1(-87.0f)), zero(), from_bits(bits(exp_rest(y, n)) + shift_left<23>(to_int(n))));
}

// Scaled logits of the places begin .. end of 64, in place; other lanes of their vectors get NOTHING. Returns the largest.
inline float scale_logits(float* logits, int begin, int end, float scale) {
    alignas(64) static const float numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const F16 factor = set1(scale), lane = load(numbers), nothing = set1(NOTHING);
    F16 largest = nothing;
    for (int first = begin / LANES * LANES; first < end; first += LANES) {
        F16 x = load(logits + first) * factor;
        if (first < begin) x = select(less(lane, set1(float(begin - first))), nothing, x);
        if (end < first + LANES) x = select(less(lane, set1(float(end - first))), x, nothing);
        store(logits + first, x);
        largest = max(largest, x);
    }
    return max(largest);
}

// Logits to weights relative to `maximum`, in place. Returns their sum.
inline float weigh(float* logits, int begin, int end, float maximum) {
    const F16 shift = set1(maximum);
    F16 total = zero();
    for (int first = begin / LANES * LANES; first < end; first += LANES) {
        F16 weight = exp_below(load(logits + first) - shift);
        store(logits + first, weight);
        total = total + weight;
    }
    return sum(total);
}

// The places begin .. end of a block, for the heads first_head .. last_head of the query q [H, C].
inline void add_block(const State& state, const HeadShape& shape, const float* q, int first_head, int last_head, const Block& block,
                      int begin, int end) {
    alignas(64) float weights[HEAD_BLOCK * BLOCK], maximum[LANES] = {}, sums[LANES] = {}, factor[LANES];
    const int first = begin / LANES * LANES, num_panels = (end - first + LANES - 1) / LANES;
    for (int h = first_head; h < last_head; h += HEAD_BLOCK) {
        const int n = std::min(HEAD_BLOCK, last_head - h);
        multiply(q + int64_t(h) * shape.size, shape.size, block.columns + first * block.padded, LANES, LANES * block.padded, shape.size, nullptr,
                 weights + first, BLOCK, n, num_panels);
        for (int i = 0; i < n; i++) {
            float* line = weights + i * BLOCK;
            maximum[i] = std::max(state.maximum[h + i], scale_logits(line, begin, end, shape.scale));
            sums[i] = weigh(line, begin, end, maximum[i]);
        }
        F16 change = exp_below(load_n(state.maximum + h, n) - load(maximum));
        store(factor, change);
        store_n(state.total + h, fma(load_n(state.total + h, n), change, load(sums)), n);
        std::memcpy(state.maximum + h, maximum, n * sizeof(float));
        multiply(weights + begin, BLOCK, block.row(begin), block.stride, LANES, end - begin, factor, state.sums + h * shape.padded, shape.padded,
                 n, shape.padded / LANES);
    }
}

// Calls use(head, l) for the heads first_head .. last_head; before every 16 of them prepare(head, n) for n heads, which are lanes then.
template <class Prepare, class Use>
inline void each_head(int first_head, int last_head, const Prepare& prepare, const Use& use) {
    for (int h = first_head; h < last_head; h += LANES) {
        const int n = std::min(LANES, last_head - h);
        prepare(h, n);
        for (int l = 0; l < n; l++) use(h + l, l);
    }
}

// Adds the softmax of later rows to that of earlier ones.
inline void add_state(const State& state, const State& later, const HeadShape& shape, int first_head, int last_head) {
    alignas(64) float ours[LANES], theirs[LANES];
    auto prepare = [&](int h, int n) {
        F16 before = load_n(state.maximum + h, n), behind = load_n(later.maximum + h, n), maximum = max(behind, before);
        F16 factor = exp_below(before - maximum), factor2 = exp_below(behind - maximum);
        store_n(state.total + h, fma(load_n(state.total + h, n), factor, load_n(later.total + h, n) * factor2), n);
        store_n(state.maximum + h, maximum, n);
        store(ours, factor);
        store(theirs, factor2);
    };
    each_head(first_head, last_head, prepare, [&](int h, int l) {
        float* sums = state.sums + h * shape.padded;
        const float* more = later.sums + h * shape.padded;
        const F16 factor = set1(ours[l]), factor2 = set1(theirs[l]);
        for (int64_t c = 0; c < shape.padded; c += LANES) store(sums + c, fma(load(sums + c), factor, load(more + c) * factor2));
    });
}

// Output [H, C], with the sink's share of the softmax left out of the sum of rows, turned back.
inline void finish(const State& state, const HeadShape& shape, const float* sink, int first_head, int last_head, const AttendQuery& query) {
    alignas(64) float factors[LANES];
    auto prepare = [&](int h, int n) {
        F16 own = load_n(state.maximum + h, n), sinks = load_n(sink + h, n), maximum = max(sinks, own);
        F16 factor = exp_below(own - maximum);
        store(factors, factor / fma(load_n(state.total + h, n), factor, exp_below(sinks - maximum)));
    };
    each_head(first_head, last_head, prepare, [&](int h, int l) {
        const F16 factor = set1(factors[l]);
        const float* sums = state.sums + h * shape.padded;
        float* to = query.out + int64_t(h) * shape.size;
        each_vector(shape.size, [&](int64_t c, auto part) { part.put(to + c, load(sums + c) * factor); });
        if (!query.cos) return;
        if (query.round) round_all(to, shape.size);
        rotate(to + shape.size - 2 * query.num_pairs, query.cos, query.sin, query.num_pairs, true, query.round);
    });
}

}  // namespace pelagos::PELAGOS_ISA
