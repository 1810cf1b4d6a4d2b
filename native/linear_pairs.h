// Products of a rounding model: x is E4M3 times powers of two, w FP8 or FP4, so that both are BF16 numbers and every product of two is
// exact. What is computed is defined in linear.h; with the BF16 instructions of AVX-512 a vector is 32 columns, elsewhere 16.
#pragma once

#include "fp8_table.h"
#include "linear.h"
#include "linear_decode.h"
#include "simd.h"
#include "unroll.h"

namespace pelagos::PELAGOS_ISA {

constexpr int PAIR_COLUMNS = 32;    // of a block
constexpr int SCALE_COLUMNS = 128;  // of an FP8 scale, or four of FP4

// The column of a block that is its word m.
constexpr int word_column(int m) { return m % 8 * 4 + m / 8; }

// Blocks become UNITS vectors each: 32 words, or the 16 odd words as float32 and then the 16 even ones. `dot` adds the products of one.
#if defined(PELAGOS_AVX512_BF16)
constexpr int UNITS = 1;
struct Unit { __m512i v; };
inline Unit load_unit(const float* p) { return {_mm512_loadu_si512(p)}; }
inline F16 dot(Unit x, Unit w, F16 total) { return {_mm512_dpbf16_ps(total.v, (__m512bh)x.v, (__m512bh)w.v)}; }
#else
constexpr int UNITS = 2;
using Unit = F16;
inline Unit load_unit(const float* p) { return load(p); }
inline F16 dot(Unit x, Unit w, F16 total) { return fma(x, w, total); }
#endif
constexpr int READ_COLUMNS = 64 / UNITS;  // that are read at once: two units
static_assert(sizeof(Unit) == LANES * sizeof(float));

// Where a column, a multiple of 32, lies in a packed row: every unit takes the place of 16 floats.
inline int64_t packed_at(int64_t column) { return column / PAIR_COLUMNS * UNITS * LANES; }

// The whole blocks of x, BF16 numbers, as `dot` takes them; a row of n numbers has room for n floats.
inline void pack_row(const float* x, int64_t n, float* packed) {
#if defined(PELAGOS_AVX512_BF16)
    alignas(64) static constexpr uint16_t upper_halves[] = {1, 9,  17, 25, 33, 41, 49, 57, 3, 11, 19, 27, 35, 43, 51, 59,
                                                            5, 13, 21, 29, 37, 45, 53, 61, 7, 15, 23, 31, 39, 47, 55, 63};
    const __m512i places = _mm512_load_si512(upper_halves);
    for (int64_t i = 0; i + PAIR_COLUMNS <= n; i += PAIR_COLUMNS, packed += LANES)
        _mm512_storeu_si512(packed, _mm512_permutex2var_epi16(_mm512_loadu_si512(x + i), places, _mm512_loadu_si512(x + i + LANES)));
#else
    for (int64_t i = 0; i + PAIR_COLUMNS <= n; i += PAIR_COLUMNS, packed += 2 * LANES)
        for (int l = 0; l < LANES; l++) {
            packed[l] = x[i + word_column(2 * l + 1)];
            packed[LANES + l] = x[i + word_column(2 * l)];
        }
#endif
}

// Weights of READ_COLUMNS columns: each(codes, scale, f) calls f(u, unit) for their two units, u a constant. Scales are those of Matrix::pairs.
#if defined(PELAGOS_AVX512_BF16)

struct Fp4Tables {  // words of all codes under every scale, twice: an index has the lowest bit of the next code above its own
    uint16_t of[256][32];
    constexpr Fp4Tables() : of{} {
        constexpr uint16_t sizes[] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
        for (int scale = 0; scale < 256; scale++)
            for (int i = 0; i < 32; i++) of[scale][i] = uint16_t((i % 8 ? sizes[i % 8] + (scale - 127) * 128 : 0) | (i % 16 / 8) << 15);
    }
};
alignas(64) inline constexpr Fp4Tables FP4_TABLES{};

struct Fp4Weights {
    template <class F>
    static inline PELAGOS_INLINE void each(const uint8_t* codes, const uint8_t* scales, const F& f) {
        const __m512i shifts = _mm512_set_epi64(0x000c000c000c000c, 0x000c000c000c000c, 0x0008000800080008, 0x0008000800080008,  //
                                                0x0004000400040004, 0x0004000400040004, 0, 0);
        repeat<2>([&](auto u) PELAGOS_INLINE {
            __m512i words = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(codes + 16 * u)));
            __m512i table = _mm512_load_si512(FP4_TABLES.of[scales[u]]);
            f(u, Unit{_mm512_permutexvar_epi16(_mm512_srlv_epi16(words, shifts), table)});
        });
    }
};

struct Fp8Weights : Fp8Table {
    using Fp8Table::Fp8Table;
    template <class F>
    inline PELAGOS_INLINE void each(const uint8_t* codes, const F& f) const {
        // Byte 16 q + i is column 4 i + q of the first block, byte 16 q + 8 + i that of the second.
        alignas(64) static constexpr uint8_t columns[] = {0, 4, 8,  12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60,  //
                                                          1, 5, 9,  13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61,  //
                                                          2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62,  //
                                                          3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59, 63};
        __m512i unit[2];
        words(_mm512_permutexvar_epi8(_mm512_load_si512(columns), _mm512_loadu_si512(codes)), unit);
        repeat<2>([&](auto u) PELAGOS_INLINE { f(u, Unit{unit[u]}); });
    }
};

#else

// Codes of the odd (else even) words of 16 bytes in the lowest four bits of a lane; above them there is anything.
template <bool ODD>
inline I16 fp4_words(const uint8_t* codes) {
    constexpr int s = ODD ? 16 : 0;
#if defined(PELAGOS_AVX512)
    const __m512i shifts = _mm512_setr_epi32(s, s, s, s, s + 4, s + 4, s + 4, s + 4, s + 8, s + 8, s + 8, s + 8, s + 12, s + 12, s + 12, s + 12);
    return {_mm512_srlv_epi32(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codes)), shifts)};
#elif defined(PELAGOS_AVX2)
    const __m256i shifts = _mm256_setr_epi32(s, s, s, s, s + 4, s + 4, s + 4, s + 4);
    __m256i words = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)codes));
    return {_mm256_srlv_epi32(words, shifts), _mm256_srlv_epi32(words, _mm256_add_epi32(shifts, _mm256_set1_epi32(8)))};
#else
    uint32_t words[4];
    int32_t t[LANES];
    std::memcpy(words, codes, sizeof words);
    for (int l = 0; l < LANES; l++) t[l] = int32_t(words[l % 4] >> (l / 4 * 4 + s));
    return loadi(t);
#endif
}

struct Fp4Weights {
    template <class F>
    static inline PELAGOS_INLINE void each(const uint8_t* codes, const uint8_t* scales, const F& f) {
        const Fp4Values values(SCALES.of[scales[0]]);
        repeat<2>([&](auto u) PELAGOS_INLINE { f(u, values.of_codes(fp4_words<u == 0>(codes))); });
    }
};

// The odd (else even) words of 32 bytes of E4M3 codes, worth 2^-8 of their values (e4m3_halves). A NaN code may give a number: the caller
// looks for them.
template <bool ODD>
inline F16 fp8_words(const uint8_t* codes) {
#if defined(PELAGOS_AVX512) || defined(PELAGOS_AVX2)
    // Byte q of the odd (even) dword r is lane 4 q + r: into the upper half of a word, one bit down, but for the sign.
    constexpr int d = ODD ? 1 : 0;
    const __m256i dwords = _mm256_setr_epi32(d, d + 2, d + 4, d + 6, d, d + 2, d + 4, d + 6);
    const __m256i places = _mm256_setr_epi8(-1, 0, -1, 4, -1, 8, -1, 12, -1, 1, -1, 5, -1, 9, -1, 13,  //
                                            -1, 2, -1, 6, -1, 10, -1, 14, -1, 3, -1, 7, -1, 11, -1, 15);
    __m256i words = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)codes), dwords), places);
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(int16_t(0xbf80)));
#if defined(PELAGOS_AVX512)
    return {_mm512_cvtph_ps(half)};
#else
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
#endif
#else
    uint8_t t[LANES];
    for (int l = 0; l < LANES; l++) t[l] = codes[word_column(2 * l + (ODD ? 1 : 0))];
    return e4m3_halves<false>(t);
#endif
}

struct Fp8Weights {
    F16 scale;
    Fp8Weights() = default;
    explicit Fp8Weights(int byte) : scale(set1(factor<Format::fp8>(SCALES.of[byte]))) {}
    template <class F>
    inline PELAGOS_INLINE void each(const uint8_t* codes, const F& f) const {
        repeat<2>([&](auto u) PELAGOS_INLINE { f(u, fp8_words<u == 0>(codes) * scale); });
    }
};

#endif

// linear_pairs.cpp: few rows of x (see linear.cpp) times rows begin .. end of w; rows n .. n + num_w of w times r .. r + num_x of x.
void few_pairs(const Product& job, int64_t begin, int64_t end);
void tile_pairs(const Product& job, int64_t n, int num_w, int64_t r, int num_x);

}  // namespace pelagos::PELAGOS_ISA
