// E4M3 codes by table lookup, with the byte permutations of AVX-512 VBMI.
#pragma once

#include "simd.h"

#if defined(PELAGOS_AVX512_BF16)
namespace pelagos::PELAGOS_ISA {

// Upper and lower bytes of the words of codes 0 .. 127, [0] under scale 1, [1] under 2.
struct Fp8Tables {
    uint8_t upper[2][128], lower[2][128];
    constexpr Fp8Tables() : upper{}, lower{} {
        for (int odd = 0; odd < 2; odd++)
            for (int code = 0; code < 128; code++) {
                int exponent = code >> 3, mantissa = code & 7, word = 0;
                if (code == 127) {
                    word = 0x7fc0;
                } else if (code > 0) {
                    for (; exponent == 0 && mantissa < 8; mantissa *= 2) word -= 128;  // a subnormal code: shifted until it is normal
                    word += (code < 8 ? 1 + 120 : exponent + 120) * 128 + (mantissa & 7) * 16 + odd * 128;
                }
                upper[odd][code] = uint8_t(word >> 8);
                lower[odd][code] = uint8_t(word);
            }
    }
};
alignas(64) inline constexpr Fp8Tables FP8_TABLES{};

// Values of E4M3 codes under one UE8M0 scale, 10 .. 246: all are normal BF16 numbers.
struct Fp8Table {
    __m512i upper[2], lower[2];  // tables of 128 bytes under the scale
    Fp8Table() = default;
    explicit Fp8Table(int scale) {
        const int exponent = scale - 127, odd = exponent & 1;
        const __m512i twos = _mm512_set1_epi8(int8_t(exponent >> 1));
        for (int i = 0; i < 2; i++) {
            __mmask64 is_number = i ? ~uint64_t(0) >> 1 : ~uint64_t(1);  // not zero, not NaN
            upper[i] = _mm512_load_si512(FP8_TABLES.upper[odd] + 64 * i);
            upper[i] = _mm512_mask_add_epi8(upper[i], is_number, upper[i], twos);
            lower[i] = _mm512_load_si512(FP8_TABLES.lower[odd] + 64 * i);
        }
    }
    // Byte 16 q + i, i < 8, of the places is for word 8 q + i of the first unit, byte 16 q + 8 + i for that of the second.
    inline PELAGOS_INLINE void words(__m512i places, __m512i (&unit)[2]) const {
        __m512i high = _mm512_permutex2var_epi8(upper[0], places, upper[1]), low = _mm512_permutex2var_epi8(lower[0], places, lower[1]);
        high = _mm512_ternarylogic_epi32(high, places, _mm512_set1_epi8(-128), 0xf8);  // high | places & sign
        unit[0] = _mm512_unpacklo_epi8(low, high);
        unit[1] = _mm512_unpackhi_epi8(low, high);
    }
    // Values of 64 codes: words of two units, which become float32 one vector at a time.
    struct Values {
        __m512i unit[2];
        inline PELAGOS_INLINE F16 operator[](int v) const {  // values 16 v .. 16 v + 15
            const __m512i words = unit[v / 2];
            return {_mm512_castsi512_ps(v % 2 ? _mm512_and_si512(words, _mm512_set1_epi32(-0x10000)) : _mm512_slli_epi32(words, 16))};
        }
    };
    inline PELAGOS_INLINE Values values(const uint8_t* codes) const {
        // Even words become the first 16 columns of a unit, odd ones the others.
        alignas(64) static constexpr uint8_t columns[] = {0,  16, 1,  17, 2,  18, 3,  19, 32, 48, 33, 49, 34, 50, 35, 51,  //
                                                          4,  20, 5,  21, 6,  22, 7,  23, 36, 52, 37, 53, 38, 54, 39, 55,  //
                                                          8,  24, 9,  25, 10, 26, 11, 27, 40, 56, 41, 57, 42, 58, 43, 59,  //
                                                          12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63};
        Values values;
        words(_mm512_permutexvar_epi8(_mm512_load_si512(columns), _mm512_loadu_si512(codes)), values.unit);
        return values;
    }
};

}  // namespace pelagos::PELAGOS_ISA
#endif
