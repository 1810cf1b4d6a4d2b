// RMS normalisation and rotary position encoding of one row. Outputs may lie where inputs do.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// Mean of x². Number i is added, with fused multiply-add and in order, to sum i % 64; the 64 sums are added as
// (s[l] + s[l + 16]) + (s[l + 32] + s[l + 48]), then as sum() says.
inline float mean_square(const float* x, int64_t n) {
    F16 a = zero(), b = zero(), c = zero(), d = zero();
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        F16 p = load(x + i), q = load(x + i + 16), r = load(x + i + 32), s = load(x + i + 48);
        a = fma(p, p, a);
        b = fma(q, q, b);
        c = fma(r, r, c);
        d = fma(s, s, d);
    }
    F16* sums[4] = {&a, &b, &c, &d};
    for (int k = 0; i < n; i += LANES, k++) {
        F16 last = load_n(x + i, n - i < LANES ? int(n - i) : LANES);
        *sums[k] = fma(last, last, *sums[k]);
    }
    return sum((a + b) + (c + d)) / float(n);
}

inline float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

inline float round_bf16(float x) {
    float t[LANES];
    store(t, round_bf16(set1(x)));
    return t[0];
}

inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* y, bool round) {
    F16 factor = set1(inverse_root(mean_square(x, n) + eps));
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(weight + i) * (part.get(x + i) * factor);
        part.put(y + i, round ? round_bf16(a) : a);
    });
}

// x / sqrt(mean(x²) + eps). With `round` the factor is rounded to BF16 first, as activations in BF16 have it.
inline void head_norm(const float* x, int64_t n, float eps, float* y, bool round) {
    float root = inverse_root(mean_square(x, n) + eps);
    F16 factor = set1(round ? round_bf16(root) : root);
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(x + i) * factor;
        part.put(y + i, round ? round_bf16(a) : a);
    });
}

// cos and sin of the float32 number position * frequency, each within 0.51 units of the last place for angles below 2^30:
// the angle is reduced to [-pi/4, pi/4] and the series are summed in float64.
inline void rotation(int64_t position, const float* frequencies, int half, float* cos, float* sin) {
    constexpr double HALF_PI = 0x1.921fb54442d18p+0, HALF_PI_REST = 0x1.1a62633145c07p-54;
    const float at = float(position);
    for (int i = 0; i < half; i++) {
        double angle = double(at * frequencies[i]);
        double turns = __builtin_nearbyint(angle * 0x1.45f306dc9c883p-1);  // quarters
        double r = __builtin_fma(-turns, HALF_PI_REST, __builtin_fma(-turns, HALF_PI, angle)), s = r * r;
        double odd = -1.0 / 39916800;
        odd = __builtin_fma(odd, s, 1.0 / 362880);
        odd = __builtin_fma(odd, s, -1.0 / 5040);
        odd = __builtin_fma(odd, s, 1.0 / 120);
        odd = __builtin_fma(odd, s, -1.0 / 6);
        odd = __builtin_fma(odd * s, r, r);
        double even = 1.0 / 479001600;
        even = __builtin_fma(even, s, -1.0 / 3628800);
        even = __builtin_fma(even, s, 1.0 / 40320);
        even = __builtin_fma(even, s, -1.0 / 720);
        even = __builtin_fma(even, s, 1.0 / 24);
        even = __builtin_fma(even, s, -0.5);
        even = __builtin_fma(even, s, 1.0);
        double quarter = turns - 4.0 * __builtin_floor(turns * 0.25);  // 0 .. 3
        bool swapped = quarter == 1.0 || quarter == 3.0;
        double c = swapped ? odd : even, d = swapped ? even : odd;
        cos[i] = float(quarter == 1.0 || quarter == 2.0 ? -c : c);
        sin[i] = float(quarter >= 2.0 ? -d : d);
    }
}

// Turns the pairs (2i, 2i + 1) of 2 * half numbers in place: (e, o) -> (e cos - o sin, e sin + o cos); `inverse` turns back.
// Products and sums are rounded one by one: the bits are those of the reference.
inline void rotate(float* x, const float* cos, const float* sin, int half, bool inverse, bool round) {
    alignas(64) const float signs[LANES] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    F16 sign = inverse ? zero() - load(signs) : load(signs);
    auto turned = [&](F16 a, F16 c, F16 s) {
        F16 y = a * c + swap_lanes<1>(a) * (s * sign);
        return round ? round_bf16(y) : y;
    };
    int i = 0;
    for (; i + 8 <= half; i += 8) store(x + 2 * i, turned(load(x + 2 * i), load_twice(cos + i), load_twice(sin + i)));
    if (i < half) {
        float c[8] = {}, s[8] = {};
        std::memcpy(c, cos + i, sizeof(float) * (half - i));
        std::memcpy(s, sin + i, sizeof(float) * (half - i));
        store_n(x + 2 * i, turned(load_n(x + 2 * i, 2 * (half - i)), load_twice(c), load_twice(s)), 2 * (half - i));
    }
}

}  // namespace pelagos::PELAGOS_ISA
