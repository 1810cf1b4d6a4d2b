// Manifold-constrained hyper-connections of one token: how a sub-block reads and writes the residual streams. 1 to 8 streams.
#pragma once

#include "norm_rope.h"

namespace pelagos::PELAGOS_ISA {

constexpr int MAX_STREAMS = 8;

// Sum over n terms as the reference's ordered_sum has it: term i and term i + ceil(n / 2), and so on. Overwrites them.
template <class T>
inline T ordered_sum(T* terms, int n) {
    while (n > 1) {
        int half = (n + 1) / 2;
        for (int j = half; j < n; j++) terms[j - half] = terms[j - half] + terms[j];
        n = half;
    }
    return terms[0];
}

// Stream mixing of four streams from its logits: the matrix is one vector, lane 4 j + k the share of stream j that goes to
// stream k. Sums over k meet in lanes l ^ 2, l ^ 1, sums over j in l ^ 8, l ^ 4; every lane of a row (column) finds the same bits.
inline F16 sinkhorn4(F16 logits, float hc_eps, int iterations) {
    F16 eps = set1(hc_eps);
    auto over_k = [](F16 a) {
        a = a + swap_lanes<2>(a);
        return a + swap_lanes<1>(a);
    };
    auto over_j = [](F16 a) {
        a = a + swap_lanes<8>(a);
        return a + swap_lanes<4>(a);
    };
    F16 top = max(logits, swap_lanes<2>(logits));
    F16 mix = exp(logits - max(top, swap_lanes<1>(top)));
    mix = mix / over_k(mix) + eps;
    mix = mix / (over_j(mix) + eps);
    for (int i = 1; i < iterations; i++) {
        mix = mix / (over_k(mix) + eps);
        mix = mix / (over_j(mix) + eps);
    }
    return mix;
}

// The same of any number of streams, in place; mix[j * num + k].
inline void sinkhorn(float* mix, int num, float hc_eps, int iterations) {
    auto divide = [&](int start, int stride, float eps) {  // a row or column by its sum
        float terms[MAX_STREAMS];
        for (int i = 0; i < num; i++) terms[i] = mix[start + i * stride];
        float total = ordered_sum(terms, num) + eps;
        for (int i = 0; i < num; i++) mix[start + i * stride] = mix[start + i * stride] / total;
    };
    for (int j = 0; j < num; j++) {
        float* row = mix + j * num;
        float top = row[0];
        for (int k = 1; k < num; k++) top = row[k] > top ? row[k] : top;
        for (int k = 0; k < num; k++) row[k] = row[k] - top;
        store_n(row, exp(load_n(row, num)), num);
        divide(j * num, 1, 0.0f);
        for (int k = 0; k < num; k++) row[k] = row[k] + hc_eps;
    }
    for (int k = 0; k < num; k++) divide(k, num, hc_eps);
    for (int i = 1; i < iterations; i++) {
        for (int j = 0; j < num; j++) divide(j * num, 1, hc_eps);
        for (int k = 0; k < num; k++) divide(k, num, hc_eps);
    }
}

// z: the (2 + num) * num dot products of the flat streams with `fn`, mean_square: of the flat streams; scale: 3 numbers.
// pre, post: [num]; mix: [num, num], mix[j, k] the share of stream j that goes to stream k.
inline void mhc_weights(const float* z, float mean_square, const float* base, const float* scale, int num, float norm_eps,
                        float hc_eps, int iterations, float* pre, float* post, float* mix) {
    F16 factor = set1(inverse_root(mean_square + norm_eps));
    auto logits = [&](int at, int n, float by) { return load_n(z + at, n) * factor * set1(by) + load_n(base + at, n); };
    F16 read = sigmoid(logits(0, num, scale[0])) + set1(hc_eps);
    F16 write = set1(2.0f) * sigmoid(logits(num, num, scale[1]));
    if (num == 4) {
        store(mix, sinkhorn4(logits(8, 16, scale[2]), hc_eps, iterations));
    } else {
        for (int j = 0; j < num; j++) store_n(mix + j * num, logits((2 + j) * num, num, scale[2]), num);
        sinkhorn(mix, num, hc_eps, iterations);
    }
    store_n(pre, read, num);
    store_n(post, write, num);
}

// Collapse weights before the output head. z: num dot products, scale: one number. pre may be z.
inline void mhc_head_weights(const float* z, float mean_square, const float* base, const float* scale, int num, float norm_eps,
                             float hc_eps, float* pre) {
    F16 factor = set1(inverse_root(mean_square + norm_eps));
    F16 logits = load_n(z, num) * factor * set1(scale[0]) + load_n(base, num);
    store_n(pre, sigmoid(logits) + set1(hc_eps), num);
}

// Products and sums of the next two are rounded one by one, in the reference's order: the bits are the same. Four streams, which
// every released model has, stay in registers.

// y = Σ_j pre[j] * streams[j] over channels begin .. end of `size`; streams: [num, size].
inline void mhc_collapse(const float* streams, const float* pre, int num, int64_t size, int64_t begin, int64_t end, float* y,
                         bool round) {
    each_vector(end - begin, [&](int64_t i, auto part) {
        int64_t c = begin + i;
        auto term = [&](int j) { return part.get(streams + j * size + c) * set1(pre[j]); };
        F16 total;
        if (num == 4) {
            total = (term(0) + term(2)) + (term(1) + term(3));
        } else {
            F16 terms[MAX_STREAMS];
            for (int j = 0; j < num; j++) terms[j] = term(j);
            total = ordered_sum(terms, num);
        }
        part.put(y + c, round ? round_bf16(total) : total);
    });
}

// streams[k] = post[k] * y + Σ_j mix[j, k] * streams[j] over channels begin .. end, in place.
inline void mhc_expand(float* streams, const float* y, const float* post, const float* mix, int num, int64_t size, int64_t begin,
                       int64_t end, bool round) {
    each_vector(end - begin, [&](int64_t i, auto part) {
        F16 added = part.get(y + begin + i);
        auto stream = [&](int j) { return streams + j * size + begin + i; };
        auto put = [&](int k, F16 mixed) {
            F16 total = set1(post[k]) * added + mixed;
            part.put(stream(k), round ? round_bf16(total) : total);
        };
        if (num == 4) {
            F16 a = part.get(stream(0)), b = part.get(stream(1)), c = part.get(stream(2)), d = part.get(stream(3));
            for (int k = 0; k < 4; k++)
                put(k, (a * set1(mix[k]) + c * set1(mix[8 + k])) + (b * set1(mix[4 + k]) + d * set1(mix[12 + k])));
        } else {
            F16 old[MAX_STREAMS], terms[MAX_STREAMS];
            for (int j = 0; j < num; j++) old[j] = part.get(stream(j));
            for (int k = 0; k < num; k++) {
                for (int j = 0; j < num; j++) terms[j] = old[j] * set1(mix[j * num + k]);
                put(k, ordered_sum(terms, num));
            }
        }
    });
}

}  // namespace pelagos::PELAGOS_ISA
