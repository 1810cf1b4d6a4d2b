// Rows of a matrix to vectors across rows.
#pragma once

#include "simd.h"
#include "unroll.h"

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

// 16 columns of 16 rows, one behind another. Not inlined: its 16 vectors need the registers.
inline __attribute__((noinline)) void transpose_tile(const float* rows, int64_t stride, float* columns) {
#if defined(PELAGOS_AVX512)
    __m512 quad[16];  // quad[4 g + j]: of rows 4 g .. 4 g + 3 the columns j, j + 4, j + 8, j + 12
    repeat<4>([&](auto g) PELAGOS_INLINE {
        auto row = [&](int i) { return _mm512_loadu_ps(rows + (4 * g + i) * stride); };
        __m512 a = row(0), b = row(1), c = row(2), d = row(3);
        __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), low2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b)), high2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        quad[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
        quad[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
        quad[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
        quad[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
    });
    repeat<4>([&](auto j) PELAGOS_INLINE {
        __m512 even = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0x88), even2 = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0xdd), odd2 = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0xdd);
        _mm512_storeu_ps(columns + j * LANES, _mm512_shuffle_f32x4(even, even2, 0x88));
        _mm512_storeu_ps(columns + (4 + j) * LANES, _mm512_shuffle_f32x4(odd, odd2, 0x88));
        _mm512_storeu_ps(columns + (8 + j) * LANES, _mm512_shuffle_f32x4(even, even2, 0xdd));
        _mm512_storeu_ps(columns + (12 + j) * LANES, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    });
#else
    for (int c = 0; c < LANES; c += 4) {
        F16 four[4];
        load_columns(rows + c, stride, four);
        for (int j = 0; j < 4; j++) store(columns + (c + j) * LANES, four[j]);
    }
#endif
}

}  // namespace pelagos::PELAGOS_ISA
