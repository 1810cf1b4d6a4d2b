// Stored weights to float32, exactly: code times scale, in the order of columns.
#pragma once

#include <algorithm>

#include "rounding.h"
#include "simd.h"
#include "types.h"

namespace pelagos::PELAGOS_ISA {

inline int64_t code_bits(Format format) {
    return format == Format::float32 ? 32 : format == Format::bfloat16 ? 16 : format == Format::fp8 ? 8 : 4;
}

inline const uint8_t* codes_at(const Matrix& w, int64_t row, int64_t col) {
    return static_cast<const uint8_t*>(w.codes) + (row * w.cols + col) * code_bits(w.format) / 8;
}

// 16 E2M1 codes from 8 bytes, the low half of a byte first; above a code's four bits there is anything.
inline I16 fp4_codes(const uint8_t* pairs) {
#if defined(PELAGOS_AVX512)
    const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i words = _mm512_permutexvar_epi32(places, _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)pairs)));
    return {_mm512_srlv_epi32(words, shifts)};
#elif defined(PELAGOS_AVX2)
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    int32_t low, high;
    std::memcpy(&low, pairs, 4);
    std::memcpy(&high, pairs + 4, 4);
    return {_mm256_srlv_epi32(_mm256_set1_epi32(low), shifts), _mm256_srlv_epi32(_mm256_set1_epi32(high), shifts)};
#else
    return load_nibbles(pairs);
#endif
}

// Values of the 16 codes of a format with few of them, under one scale.
#if defined(PELAGOS_AVX512)
struct Fp4Values {
    __m512 of;
    explicit Fp4Values(float scale)
        : of(_mm512_mul_ps(_mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f,  //
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f),
                           _mm512_set1_ps(scale))) {}
    F16 of_codes(I16 codes) const { return {_mm512_permutexvar_ps(codes.v, of)}; }
    F16 load(const uint8_t* pairs) const { return of_codes(fp4_codes(pairs)); }
};
#else
struct Fp4Values {
    F16 scale;
    explicit Fp4Values(float value) : scale(set1(value)) {}
    F16 of_codes(I16 codes) const { return from_e2m1(codes) * scale; }
    F16 load(const uint8_t* pairs) const { return of_codes(fp4_codes(pairs)); }
};
#endif

// 16 columns without their scale; `factor` of a scale makes them whole.
template <Format F>
inline F16 load_codes(const uint8_t* codes) {
    if constexpr (F == Format::float32) return load(reinterpret_cast<const float*>(codes));
    if constexpr (F == Format::bfloat16) return load_bf16(reinterpret_cast<const uint16_t*>(codes));
    if constexpr (F == Format::fp8) return e4m3_halves(codes);
    if constexpr (F == Format::fp4) return from_e2m1(fp4_codes(codes));
}
template <Format F>
constexpr bool HAS_SCALES = F == Format::fp8 || F == Format::fp4;
template <Format F>
inline float factor(float scale) {
    return F == Format::fp8 ? 256.0f * scale : scale;
}

// Columns under one scale in the official layouts.
template <Format F>
constexpr int64_t BLOCK_COLUMNS = F == Format::fp8 ? 128 : 32;

// Whole vectors of 16 columns, in blocks of the official layouts.
inline bool is_regular(const Matrix& w) {
    int64_t block = w.format == Format::fp8 ? BLOCK_COLUMNS<Format::fp8> : BLOCK_COLUMNS<Format::fp4>;
    bool has_scales = w.format == Format::fp8 || w.format == Format::fp4;
    return w.cols % LANES == 0 && (!has_scales || w.block_cols == block);
}

struct ScaleTable {
    float of[256];
    constexpr ScaleTable() : of{} {
        double value = 0x1p-127;
        for (int i = 0; i < 255; i++, value *= 2) of[i] = float(value);
        of[255] = __builtin_nanf("");
    }
};
inline constexpr ScaleTable SCALES{};

// How many bytes a row of scales has, and where those of a row of the matrix begin.
inline int64_t scale_row_bytes(const Matrix& w) { return (w.cols + w.block_cols - 1) / w.block_cols * (w.float_scales ? 4 : 1); }
inline const uint8_t* scales_at(const Matrix& w, int64_t row) {
    return static_cast<const uint8_t*>(w.scales) + (w.first_row + row) / w.block_rows * scale_row_bytes(w);
}

// The scale of one block of columns, of those of a row.
inline float scale_of_block(const uint8_t* scales, int64_t block, bool are_floats) {
    if (!are_floats) return SCALES.of[scales[block]];
    float value;
    std::memcpy(&value, scales + 4 * block, 4);
    return value;
}

// Any matrix: columns begin .. begin + count of a row.
inline void decode_slowly(const Matrix& w, int64_t row, int64_t begin, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) {
        int64_t col = begin + i;
        uint8_t block[64] = {};
        const uint8_t* from = codes_at(w, row, col - (w.format == Format::fp4 ? (row * w.cols + col) % 2 : 0));
        int64_t odd = w.format == Format::fp4 ? (row * w.cols + col) % 2 : 0;
        std::memcpy(block, from, std::max<int64_t>(1, code_bits(w.format) / 8));
        float t[LANES];
        auto scale = [&] { return scale_of_block(scales_at(w, row), col / w.block_cols, w.float_scales); };
        switch (w.format) {
            case Format::float32: store(t, load_codes<Format::float32>(block)); break;
            case Format::bfloat16: store(t, load_codes<Format::bfloat16>(block)); break;
            case Format::fp8: store(t, load_codes<Format::fp8>(block) * set1(factor<Format::fp8>(scale()))); break;
            case Format::fp4: store(t, load_codes<Format::fp4>(block) * set1(scale())); break;
        }
        to[i] = t[odd];
    }
}

template <Format F>
inline void decode_regular(const Matrix& w, int64_t row, int64_t begin, int64_t count, float* to) {
    const uint8_t* codes = codes_at(w, row, begin);
    constexpr int64_t step = LANES * (F == Format::float32 ? 32 : F == Format::bfloat16 ? 16 : F == Format::fp8 ? 8 : 4) / 8;
    if constexpr (!HAS_SCALES<F>) {
        for (int64_t i = 0; i < count; i += LANES, codes += step) store(to + i, load_codes<F>(codes));
    } else {
        const uint8_t* scales = scales_at(w, row);
        for (int64_t i = 0; i < count;) {
            int64_t block = (begin + i) / BLOCK_COLUMNS<F>, end = std::min(count, (block + 1) * BLOCK_COLUMNS<F> - begin);
            F16 scale = set1(factor<F>(scale_of_block(scales, block, w.float_scales)));
            for (; i < end; i += LANES, codes += step) store(to + i, load_codes<F>(codes) * scale);
        }
    }
}

// Columns begin .. begin + count of a row (of a regular matrix: whole vectors), zeros behind up to a whole vector.
inline void decode(const Matrix& w, int64_t row, int64_t begin, int64_t count, float* to) {
    if (!is_regular(w)) {
        decode_slowly(w, row, begin, count, to);
        for (int64_t i = count; i % LANES; i++) to[i] = 0.0f;
        return;
    }
    switch (w.format) {
        case Format::float32: return decode_regular<Format::float32>(w, row, begin, count, to);
        case Format::bfloat16: return decode_regular<Format::bfloat16>(w, row, begin, count, to);
        case Format::fp8: return decode_regular<Format::fp8>(w, row, begin, count, to);
        case Format::fp4: return decode_regular<Format::fp4>(w, row, begin, count, to);
    }
}

}  // namespace pelagos::PELAGOS_ISA
