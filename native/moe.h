// Routing of one token, and the clamped SwiGLU. Outputs may lie where inputs do, but for routing_weights.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// ln(1 + t) for 0 <= t <= 1, relative error below 3e-7: 2 artanh(s) with s = t / (2 + t) <= 1/3, by its series.
inline F16 log_one_plus(F16 t) {
    F16 s = t / (set1(2.0f) + t), q = s * s;
    F16 p = set1(1.0f / 15);
    p = fma(p, q, set1(1.0f / 13));
    p = fma(p, q, set1(1.0f / 11));
    p = fma(p, q, set1(1.0f / 9));
    p = fma(p, q, set1(1.0f / 7));
    p = fma(p, q, set1(1.0f / 5));
    p = fma(p, q, set1(1.0f / 3));
    s = s + s;
    return fma(p * q, s, s);
}

// sqrt(softplus(x))
inline void router_scores(const float* logits, int n, float* scores) {
    each_vector(n, [&](int64_t i, auto part) {
        F16 x = part.get(logits + i);
        F16 softplus = max(zero(), x) + log_one_plus(exp(zero() - abs(x)));
        part.put(scores + i, sqrt(softplus));
    });
}

// Whole numbers in the order of the floats; both zeros are one, NaN is above all.
inline int32_t order_of(float x) {
    if (x != x) return INT32_MAX;
    x = x + 0.0f;
    int32_t b;
    std::memcpy(&b, &x, sizeof b);
    return b < 0 ? b ^ INT32_MAX : b;
}

// The k experts with the largest score + bias, largest first, smaller id first among equals. k <= n.
inline void top_experts(const float* scores, const float* bias, int n, int k, int32_t* chosen) {
    if (k == 0) return;
    auto key = [&](int32_t id) { return order_of(scores[id] + bias[id]); };
    int32_t least = 0;
    for (int id = 0, num = 0; id < n; id++) {
        int32_t own = key(id);
        if (num == k && own <= least) continue;
        int place = num < k ? num++ : k - 1;
        for (; place > 0 && own > key(chosen[place - 1]); place--) chosen[place] = chosen[place - 1];
        chosen[place] = id;
        least = key(chosen[num - 1]);
    }
}

// Scores of the chosen experts, scaled to sum to `factor`. They are added as the tree of the reference's ordered_sum.
inline void routing_weights(const float* scores, const int32_t* chosen, int k, float factor, float* weights) {
    if (k == 0) return;
    for (int j = 0; j < k; j++) weights[j] = scores[chosen[j]];
    for (int num = k; num > 1;) {
        int half = (num + 1) / 2;
        for (int j = half; j < num; j++) weights[j - half] = weights[j - half] + weights[j];
        num = half;
    }
    float total = weights[0] + 1e-20f;
    for (int j = 0; j < k; j++) weights[j] = scores[chosen[j]] / total * factor;
}

// silu(min(gate, limit)) * clamp(up, ±limit) * weight
inline void clamped_swiglu(const float* gate, const float* up, int64_t n, bool has_limit, float limit, float weight, float* h,
                           bool round) {
    each_vector(n, [&](int64_t i, auto part) {
        F16 g = part.get(gate + i), u = part.get(up + i);
        if (has_limit) {
            g = min(set1(limit), g);  // of two operands the second is taken where one is NaN
            u = min(set1(limit), max(set1(-limit), u));
        }
        F16 y = g * sigmoid(g) * u * set1(weight);
        part.put(h + i, round ? round_bf16(y) : y);
    });
}

}  // namespace pelagos::PELAGOS_ISA
