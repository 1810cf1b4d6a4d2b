// Rows of a matrix to vectors across rows.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// Four columns of 16 rows of numbers of 4 bytes, at any address: lane l of column j is number j at row(l).
template <class RowAt>
inline void load_columns(const RowAt& row, F16 columns[4]) {
#if defined(PELAGOS_AVX512)
    __m512 quad[4];  // of rows i, i + 4, i + 8, i + 12
    for (int i = 0; i < 4; i++) {
        quad[i] = _mm512_castps128_ps512(_mm_loadu_ps(row(i)));
        quad[i] = _mm512_mask_broadcast_f32x4(quad[i], 0x00f0, _mm_loadu_ps(row(i + 4)));
        quad[i] = _mm512_mask_broadcast_f32x4(quad[i], 0x0f00, _mm_loadu_ps(row(i + 8)));
        quad[i] = _mm512_mask_broadcast_f32x4(quad[i], 0xf000, _mm_loadu_ps(row(i + 12)));
    }
    __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(quad[0], quad[1])), high = _mm512_castps_pd(_mm512_unpackhi_ps(quad[0], quad[1]));
    __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(quad[2], quad[3]));
    __m512d high2 = _mm512_castps_pd(_mm512_unpackhi_ps(quad[2], quad[3]));
    columns[0] = {_mm512_castpd_ps(_mm512_unpacklo_pd(low, low2))};
    columns[1] = {_mm512_castpd_ps(_mm512_unpackhi_pd(low, low2))};
    columns[2] = {_mm512_castpd_ps(_mm512_unpacklo_pd(high, high2))};
    columns[3] = {_mm512_castpd_ps(_mm512_unpackhi_pd(high, high2))};
#elif defined(PELAGOS_AVX2)
    for (int half = 0; half < 2; half++) {
        __m256 quad[4];  // of rows i, i + 4 of this half
        for (int i = 0; i < 4; i++) {
            quad[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(8 * half + i))), _mm_loadu_ps(row(8 * half + i + 4)), 1);
        }
        __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(quad[0], quad[1])), high = _mm256_castps_pd(_mm256_unpackhi_ps(quad[0], quad[1]));
        __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(quad[2], quad[3]));
        __m256d high2 = _mm256_castps_pd(_mm256_unpackhi_ps(quad[2], quad[3]));
        __m256 column[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(low, low2)), _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2)),
                            _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2)), _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2))};
        for (int j = 0; j < 4; j++) (half ? columns[j].hi : columns[j].lo) = column[j];
    }
#else
    float t[4][16];
    for (int l = 0; l < 16; l++)
        for (int j = 0; j < 4; j++) std::memcpy(&t[j][l], row(l) + j, sizeof(float));
    for (int j = 0; j < 4; j++) columns[j] = load(t[j]);
#endif
}

// The same of rows that lie `stride` floats apart.
inline void load_columns(const float* rows, int64_t stride, F16 columns[4]) {
    load_columns([=](int l) { return rows + l * stride; }, columns);
}

}  // namespace pelagos::PELAGOS_ISA
