// Vectors of 16 int32 as groups of four bytes each.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// Every byte 0 .. 15 of `codes` becomes table[byte].
inline I16 lookup_bytes(const uint8_t table[16], I16 codes) {
#if defined(PELAGOS_AVX512)
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), codes.v)};
#elif defined(PELAGOS_AVX2)
    __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(all, codes.lo), _mm256_shuffle_epi8(all, codes.hi)};
#elif defined(PELAGOS_NEON)
    I16 r;
    for (int i = 0; i < 4; i++) r.v[i] = vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(codes.v[i])));
    return r;
#else
    uint8_t bytes[4 * LANES];
    std::memcpy(bytes, codes.v, sizeof bytes);
    for (uint8_t& byte : bytes) byte = table[byte];
    I16 r;
    std::memcpy(r.v, bytes, sizeof bytes);
    return r;
#endif
}

// Lane l of total, and the sum of the products of its four bytes: those of a are 0 .. 127, those of b have a sign, |b| <= 127.
inline I16 add_products(I16 total, I16 a, I16 b) {
#if defined(PELAGOS_AVX512)
    return {_mm512_dpbusd_epi32(total.v, a.v, b.v)};
#elif defined(PELAGOS_AVX2)
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(total.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(a.lo, b.lo), ones)),
            _mm256_add_epi32(total.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(a.hi, b.hi), ones))};
#elif defined(PELAGOS_NEON)
    for (int i = 0; i < 4; i++) total.v[i] = vdotq_s32(total.v[i], vreinterpretq_s8_s32(a.v[i]), vreinterpretq_s8_s32(b.v[i]));
    return total;
#else
    int8_t left[4 * LANES], right[4 * LANES];
    std::memcpy(left, a.v, sizeof left);
    std::memcpy(right, b.v, sizeof right);
    for (int i = 0; i < 4 * LANES; i++) total.v[i / 4] += left[i] * right[i];
    return total;
#endif
}

}  // namespace pelagos::PELAGOS_ISA
