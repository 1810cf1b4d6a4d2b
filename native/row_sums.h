// Sums over the lanes of several vectors at once.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// Lane r is sum(rows[r]), to the bit, for the NUM <= 16 vectors; other lanes are anything. Vectors meet in one register as soon as
// half their lanes are added, so that eight of them take a third of the steps of eight sums.
template <int NUM>
inline PELAGOS_INLINE F16 lane_sums(const F16 (&rows)[NUM]) {
    static_assert(NUM >= 1 && NUM <= LANES);
#if defined(PELAGOS_AVX512)
    auto row = [&](int r) { return rows[r < NUM ? r : NUM - 1].v; };
    auto halves = [&](int r) {  // 8 partial sums of row r, then those of row r + 1
        return _mm512_add_ps(_mm512_shuffle_f32x4(row(r), row(r + 1), 0x44), _mm512_shuffle_f32x4(row(r), row(r + 1), 0xee));
    };
    auto quarters = [&](int r) {  // 4 of each of rows r .. r + 3
        __m512 a = halves(r), b = halves(r + 2);
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    __m512 a = quarters(0);
    if constexpr (NUM <= 4) {
        a = _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
        a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
        return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), a)};
    } else {
        auto eighths = [&](__m512 first, int r) {  // 2 of each of rows r .. r + 7; `first` are the quarters of r
            __m512d p = _mm512_castps_pd(first), q = _mm512_castps_pd(quarters(r + 4));
            return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
        };
        a = eighths(a, 0);
        if constexpr (NUM <= 8) {
            a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
            return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0), a)};
        } else {
            __m512 b = eighths(quarters(8), 8);
            a = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
            return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), a)};
        }
    }
#elif defined(PELAGOS_AVX2)
    auto four = [&](int r) {
        auto half = [&](int i) { return _mm256_add_ps(rows[i < NUM ? i : NUM - 1].lo, rows[i < NUM ? i : NUM - 1].hi); };
        auto quarters = [&](int i) {  // 4 partial sums of row i, then those of row i + 1
            __m256 a = half(i), b = half(i + 1);
            return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        };
        __m256d p = _mm256_castps_pd(quarters(r)), q = _mm256_castps_pd(quarters(r + 2));
        __m256 a = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(p, q)), _mm256_castpd_ps(_mm256_unpackhi_pd(p, q)));
        a = _mm256_add_ps(a, _mm256_permute_ps(a, 0xb1));
        return _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6));
    };
    auto eight = [&](int r) { return _mm256_permute2f128_ps(four(r), four(r + 4), 0x20); };
    if constexpr (NUM <= 4) return {four(0), _mm256_setzero_ps()};
    if constexpr (NUM <= 8) return {eight(0), _mm256_setzero_ps()};
    return {eight(0), eight(8)};
#else
    float t[LANES] = {};
    for (int r = 0; r < NUM; r++) t[r] = sum(rows[r]);
    return load(t);
#endif
}

}  // namespace pelagos::PELAGOS_ISA
