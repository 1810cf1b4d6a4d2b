// Vectors of 16 floats and 16 int32 over AVX-512, AVX2, NEON or plain C++. One interface, one order of every operation: a kernel gives
// the same bits on each of them. Sources that include this are compiled once per instruction set, with PELAGOS_ISA naming it.
//
// Where a sum runs over a row, lane l adds the elements l, l + 16, l + 32, ... in order with fused multiply-add, and
// sum() adds the lanes as a fixed tree. Results therefore depend on the row alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "unroll.h"

#if defined(PELAGOS_AVX512) || defined(PELAGOS_AVX2)
#include <immintrin.h>
#elif defined(PELAGOS_NEON)
#include <arm_neon.h>
#endif

#ifndef PELAGOS_ISA
#error "PELAGOS_ISA must name the instruction set: avx512_bf16, avx512, avx2, neon or generic"
#endif

namespace pelagos::PELAGOS_ISA {

constexpr int LANES = 16;

#if defined(PELAGOS_AVX512)

struct F16 { __m512 v; };
struct I16 { __m512i v; };
struct M16 { __mmask16 v; };

inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }  // 0 <= n <= 16, zeros behind
inline void store_n(float* p, F16 a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F16 nearest(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline M16 less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline M16 is_nan(F16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline F16 select(M16 m, F16 yes, F16 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

inline I16 set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16 loadi(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void storei(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I16 operator|(I16 a, I16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int N> inline I16 shift_left(I16 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> inline I16 shift_right(I16 a) { return {_mm512_srli_epi32(a.v, N)}; }  // logical
inline M16 equal(I16 a, I16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline I16 selecti(M16 m, I16 yes, I16 no) { return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)}; }
inline I16 bits(F16 a) { return {_mm512_castps_si512(a.v)}; }
inline F16 from_bits(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I16 to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // of whole numbers
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I16 load_bytes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline void store_bytes(uint8_t* p, I16 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
inline I16 load_halves(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_halves(uint16_t* p, I16 a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v)); }

// Lanes added in pairs l and l + 8, then l + 4, l + 2, l + 1.
inline float sum(F16 a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float max(F16 a) { return _mm512_reduce_max_ps(a.v); }  // of numbers

#elif defined(PELAGOS_AVX2)

struct F16 { __m256 lo, hi; };
struct I16 { __m256i lo, hi; };
struct M16 { __m256 lo, hi; };

inline __m256i mask_of(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
inline F16 load_n(const float* p, int n) { return {_mm256_maskload_ps(p, mask_of(n)), _mm256_maskload_ps(p + 8, mask_of(n - 8))}; }
inline void store_n(float* p, F16 a, int n) { _mm256_maskstore_ps(p, mask_of(n), a.lo); _mm256_maskstore_ps(p + 8, mask_of(n - 8), a.hi); }
inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 sqrt(F16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline F16 nearest(F16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline M16 less(F16 a, F16 b) { return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)}; }
inline M16 is_nan(F16 a) { return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)}; }
inline F16 select(M16 m, F16 yes, F16 no) { return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)}; }

inline I16 set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 loadi(const int32_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))}; }
inline void storei(int32_t* p, I16 a) { _mm256_storeu_si256((__m256i*)p, a.lo); _mm256_storeu_si256((__m256i*)(p + 8), a.hi); }
inline I16 operator+(I16 a, I16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I16 operator&(I16 a, I16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I16 operator|(I16 a, I16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int N> inline I16 shift_left(I16 a) { return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)}; }
template <int N> inline I16 shift_right(I16 a) { return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)}; }
inline M16 equal(I16 a, I16 b) {
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.lo, b.lo)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.hi, b.hi))};
}
inline I16 bits(F16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F16 from_bits(I16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I16 selecti(M16 m, I16 yes, I16 no) { return bits(select(m, from_bits(yes), from_bits(no))); }
inline I16 to_int(F16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F16 to_float(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I16 load_bytes(const uint8_t* p) {
    __m128i b = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
inline void store_bytes(uint8_t* p, I16 a) {
    I16 low = a & set1i(0xff);
    __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(low.lo, low.hi), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}
inline I16 load_halves(const uint16_t* p) {
    __m256i h = _mm256_loadu_si256((const __m256i*)p);
    return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(h)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(h, 1))};
}
inline void store_halves(uint16_t* p, I16 a) {
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0xd8);
    _mm256_storeu_si256((__m256i*)p, packed);
}
inline float sum(F16 a) {
    __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float max(F16 a) {
    __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

#else

#if defined(PELAGOS_NEON)
struct F16 { float32x4_t v[4]; };
struct I16 { int32x4_t v[4]; };
struct M16 { uint32x4_t v[4]; };
#define PELAGOS_EACH(expression) for (int i = 0; i < 4; i++) r.v[i] = (expression)

inline F16 set1(float x) { F16 r; PELAGOS_EACH(vdupq_n_f32(x)); return r; }
inline F16 load(const float* p) { F16 r; PELAGOS_EACH(vld1q_f32(p + 4 * i)); return r; }
inline void store(float* p, F16 a) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.v[i]); }
inline F16 operator+(F16 a, F16 b) { F16 r; PELAGOS_EACH(vaddq_f32(a.v[i], b.v[i])); return r; }
inline F16 operator-(F16 a, F16 b) { F16 r; PELAGOS_EACH(vsubq_f32(a.v[i], b.v[i])); return r; }
inline F16 operator*(F16 a, F16 b) { F16 r; PELAGOS_EACH(vmulq_f32(a.v[i], b.v[i])); return r; }
inline F16 operator/(F16 a, F16 b) { F16 r; PELAGOS_EACH(vdivq_f32(a.v[i], b.v[i])); return r; }
inline F16 fma(F16 a, F16 b, F16 c) { F16 r; PELAGOS_EACH(vfmaq_f32(c.v[i], a.v[i], b.v[i])); return r; }
inline F16 min(F16 a, F16 b) { F16 r; PELAGOS_EACH(vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); return r; }
inline F16 max(F16 a, F16 b) { F16 r; PELAGOS_EACH(vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); return r; }
inline F16 sqrt(F16 a) { F16 r; PELAGOS_EACH(vsqrtq_f32(a.v[i])); return r; }
inline F16 nearest(F16 a) { F16 r; PELAGOS_EACH(vrndnq_f32(a.v[i])); return r; }
inline M16 less(F16 a, F16 b) { M16 r; PELAGOS_EACH(vcltq_f32(a.v[i], b.v[i])); return r; }
inline M16 is_nan(F16 a) { M16 r; PELAGOS_EACH(vmvnq_u32(vceqq_f32(a.v[i], a.v[i]))); return r; }
inline F16 select(M16 m, F16 yes, F16 no) { F16 r; PELAGOS_EACH(vbslq_f32(m.v[i], yes.v[i], no.v[i])); return r; }
inline I16 set1i(int32_t x) { I16 r; PELAGOS_EACH(vdupq_n_s32(x)); return r; }
inline I16 loadi(const int32_t* p) { I16 r; PELAGOS_EACH(vld1q_s32(p + 4 * i)); return r; }
inline void storei(int32_t* p, I16 a) { for (int i = 0; i < 4; i++) vst1q_s32(p + 4 * i, a.v[i]); }
inline I16 operator+(I16 a, I16 b) { I16 r; PELAGOS_EACH(vaddq_s32(a.v[i], b.v[i])); return r; }
inline I16 operator-(I16 a, I16 b) { I16 r; PELAGOS_EACH(vsubq_s32(a.v[i], b.v[i])); return r; }
inline I16 operator&(I16 a, I16 b) { I16 r; PELAGOS_EACH(vandq_s32(a.v[i], b.v[i])); return r; }
inline I16 operator|(I16 a, I16 b) { I16 r; PELAGOS_EACH(vorrq_s32(a.v[i], b.v[i])); return r; }
template <int N> inline I16 shift_left(I16 a) { I16 r; PELAGOS_EACH(vshlq_n_s32(a.v[i], N)); return r; }
template <int N> inline I16 shift_right(I16 a) {
    I16 r;
    PELAGOS_EACH(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), N)));
    return r;
}
inline M16 equal(I16 a, I16 b) { M16 r; PELAGOS_EACH(vceqq_s32(a.v[i], b.v[i])); return r; }
inline I16 selecti(M16 m, I16 yes, I16 no) { I16 r; PELAGOS_EACH(vbslq_s32(m.v[i], yes.v[i], no.v[i])); return r; }
inline I16 bits(F16 a) { I16 r; PELAGOS_EACH(vreinterpretq_s32_f32(a.v[i])); return r; }
inline F16 from_bits(I16 a) { F16 r; PELAGOS_EACH(vreinterpretq_f32_s32(a.v[i])); return r; }
inline I16 to_int(F16 a) { I16 r; PELAGOS_EACH(vcvtnq_s32_f32(a.v[i])); return r; }
inline F16 to_float(I16 a) { F16 r; PELAGOS_EACH(vcvtq_f32_s32(a.v[i])); return r; }
#undef PELAGOS_EACH
#else
struct F16 { float v[16]; };
struct I16 { int32_t v[16]; };
struct M16 { bool v[16]; };
#define PELAGOS_EACH(expression) for (int i = 0; i < 16; i++) r.v[i] = (expression)

inline F16 set1(float x) { F16 r; PELAGOS_EACH(x); return r; }
inline F16 load(const float* p) { F16 r; std::memcpy(r.v, p, sizeof r.v); return r; }
inline void store(float* p, F16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F16 operator+(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] + b.v[i]); return r; }
inline F16 operator-(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] - b.v[i]); return r; }
inline F16 operator*(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] * b.v[i]); return r; }
inline F16 operator/(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] / b.v[i]); return r; }
inline F16 fma(F16 a, F16 b, F16 c) { F16 r; PELAGOS_EACH(std::fma(a.v[i], b.v[i], c.v[i])); return r; }
inline F16 min(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); return r; }
inline F16 max(F16 a, F16 b) { F16 r; PELAGOS_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); return r; }
inline F16 sqrt(F16 a) { F16 r; PELAGOS_EACH(std::sqrt(a.v[i])); return r; }
inline F16 nearest(F16 a) { F16 r; PELAGOS_EACH(std::nearbyint(a.v[i])); return r; }
inline M16 less(F16 a, F16 b) { M16 r; PELAGOS_EACH(a.v[i] < b.v[i]); return r; }
inline M16 is_nan(F16 a) { M16 r; PELAGOS_EACH(a.v[i] != a.v[i]); return r; }
inline F16 select(M16 m, F16 yes, F16 no) { F16 r; PELAGOS_EACH(m.v[i] ? yes.v[i] : no.v[i]); return r; }
inline I16 set1i(int32_t x) { I16 r; PELAGOS_EACH(x); return r; }
inline I16 loadi(const int32_t* p) { I16 r; std::memcpy(r.v, p, sizeof r.v); return r; }
inline void storei(int32_t* p, I16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline I16 operator+(I16 a, I16 b) { I16 r; PELAGOS_EACH(int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i]))); return r; }
inline I16 operator-(I16 a, I16 b) { I16 r; PELAGOS_EACH(int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i]))); return r; }
inline I16 operator&(I16 a, I16 b) { I16 r; PELAGOS_EACH(a.v[i] & b.v[i]); return r; }
inline I16 operator|(I16 a, I16 b) { I16 r; PELAGOS_EACH(a.v[i] | b.v[i]); return r; }
template <int N> inline I16 shift_left(I16 a) { I16 r; PELAGOS_EACH(int32_t(uint32_t(a.v[i]) << N)); return r; }
template <int N> inline I16 shift_right(I16 a) { I16 r; PELAGOS_EACH(int32_t(uint32_t(a.v[i]) >> N)); return r; }
inline M16 equal(I16 a, I16 b) { M16 r; PELAGOS_EACH(a.v[i] == b.v[i]); return r; }
inline I16 selecti(M16 m, I16 yes, I16 no) { I16 r; PELAGOS_EACH(m.v[i] ? yes.v[i] : no.v[i]); return r; }
inline I16 bits(F16 a) { I16 r; std::memcpy(r.v, a.v, sizeof r.v); return r; }
inline F16 from_bits(I16 a) { F16 r; std::memcpy(r.v, a.v, sizeof r.v); return r; }
inline I16 to_int(F16 a) { I16 r; PELAGOS_EACH(int32_t(std::nearbyint(a.v[i]))); return r; }
inline F16 to_float(I16 a) { F16 r; PELAGOS_EACH(float(a.v[i])); return r; }
#undef PELAGOS_EACH
#endif

inline F16 load_n(const float* p, int n) {
    float t[16] = {};
    for (int i = 0; i < n && i < 16; i++) t[i] = p[i];
    return load(t);
}
inline void store_n(float* p, F16 a, int n) {
    float t[16];
    store(t, a);
    for (int i = 0; i < n && i < 16; i++) p[i] = t[i];
}
inline I16 load_bytes(const uint8_t* p) {
    int32_t t[16];
    for (int i = 0; i < 16; i++) t[i] = p[i];
    return loadi(t);
}
inline void store_bytes(uint8_t* p, I16 a) {
    int32_t t[16];
    storei(t, a);
    for (int i = 0; i < 16; i++) p[i] = uint8_t(t[i]);
}
inline I16 load_halves(const uint16_t* p) {
    uint16_t h[16];  // p may be an odd address
    int32_t t[16];
    std::memcpy(h, p, sizeof h);
    for (int i = 0; i < 16; i++) t[i] = h[i];
    return loadi(t);
}
inline void store_halves(uint16_t* p, I16 a) {
    uint16_t h[16];
    int32_t t[16];
    storei(t, a);
    for (int i = 0; i < 16; i++) h[i] = uint16_t(t[i]);
    std::memcpy(p, h, sizeof h);
}
inline float sum(F16 a) {
    float t[16];
    store(t, a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] + t[i + half];
    return t[0];
}
inline float max(F16 a) {
    float t[16];
    store(t, a);
    for (int i = 1; i < 16; i++) t[0] = t[i] > t[0] ? t[i] : t[0];
    return t[0];
}

#endif

inline F16 zero() { return set1(0.0f); }
inline F16 abs(F16 a) { return from_bits(bits(a) & set1i(0x7fffffff)); }

// e^(x - n ln 2), for n the whole number nearest to x / ln 2.
inline F16 exp_rest(F16 x, F16 n) {
    F16 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    return fma(p, r * r, r + set1(1.0f));
}

// e^x, within 2 units of the last place; 0 below -87.33 (no subnormal results), infinity above 88.72.
inline F16 exp(F16 x) {
    F16 n = nearest(x * set1(1.44269504088896341f));
    n = min(max(n, set1(-127.0f)), set1(128.0f));
    F16 p = exp_rest(x, n);
    // 2^n in two factors, so that n = 128 does not overflow before the product does.
    I16 whole = to_int(n), half = shift_right<1>(whole + set1i(256)) - set1i(128);
    F16 low = from_bits(shift_left<23>(half + set1i(127))), high = from_bits(shift_left<23>(whole - half + set1i(127)));
    F16 y = p * low * high;
    y = select(less(x, set1(-87.33654f)), zero(), y);
    y = select(less(set1(88.722839f), x), set1(INFINITY), y);
    return select(is_nan(x), x, y);
}
inline float exp1(float x) {  // the same bits as a lane of exp
    float t[16];
    store(t, exp(set1(x)));
    return t[0];
}
inline F16 sigmoid(F16 x) { return set1(1.0f) / (set1(1.0f) + exp(zero() - x)); }

// BF16: the upper half of a float32, rounded to the nearest, ties to even.
inline F16 from_bf16(I16 halves) { return from_bits(shift_left<16>(halves)); }
inline F16 load_bf16(const uint16_t* p) { return from_bf16(load_halves(p)); }
inline I16 to_bf16(F16 a) {
    I16 b = bits(a), rounded = shift_right<16>(b + set1i(0x7fff) + (shift_right<16>(b) & set1i(1)));
    return selecti(is_nan(a), shift_right<16>(b) | set1i(0x40), rounded);
}
inline F16 round_bf16(F16 a) {  // the same, back in float32
    I16 b = bits(a), rounded = b + set1i(0x7fff) + (shift_right<16>(b) & set1i(1));
    return from_bits(selecti(is_nan(a), b | set1i(0x400000), rounded) & set1i(-0x10000));
}
inline void store_bf16(uint16_t* p, F16 a) { store_halves(p, to_bf16(a)); }

// E4M3: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f and 0xff are NaN.
inline F16 from_e4m3(I16 bytes) {
    I16 magnitude = bytes & set1i(0x7f);
    I16 moved = shift_left<20>(magnitude) | shift_left<24>(bytes & set1i(0x80));
    F16 value = from_bits(moved) * set1(0x1p120f);  // exponents 1 .. 15 become 121 .. 135, subnormals are right as well
    return select(equal(magnitude, set1i(0x7f)), set1(NAN), value);
}
inline F16 load_e4m3(const uint8_t* p) { return from_e4m3(load_bytes(p)); }
// Codes of numbers with |a| <= 448, nearest, ties to even. NaN gives 0x7f.
inline I16 to_e4m3(F16 a) {
    I16 sign = shift_right<24>(bits(a)) & set1i(0x80);
    F16 size = abs(a);
    I16 b = bits(size);
    I16 normal = shift_right<20>(b + set1i(0x7ffff) + (shift_right<20>(b) & set1i(1)) - set1i(120 << 23));
    I16 small = bits(size + set1(0x1p14f)) - set1i(0x46800000);  // a multiple of 2^-9: the bits behind those of 2^14
    I16 code = selecti(less(size, set1(0x1p-6f)), small, normal);
    return selecti(is_nan(a), set1i(0x7f), code | sign);
}

// Lane l gets what lane l ^ D held, D = 1, 2, 4 or 8.
template <int D>
inline F16 swap_lanes(F16 a) {
#if defined(PELAGOS_AVX512)
    if constexpr (D == 1) return {_mm512_permute_ps(a.v, 0xb1)};
    if constexpr (D == 2) return {_mm512_permute_ps(a.v, 0x4e)};
    if constexpr (D == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
    if constexpr (D == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
#elif defined(PELAGOS_AVX2)
    if constexpr (D == 1) return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
    if constexpr (D == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
    if constexpr (D == 4) return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
    if constexpr (D == 8) return {a.hi, a.lo};
#else
    float from[16], to[16];
    store(from, a);
    for (int l = 0; l < 16; l++) to[l] = from[l ^ D];
    return load(to);
#endif
}

// Lane l gets p[l / 2]: 8 numbers, each twice.
inline F16 load_twice(const float* p) {
#if defined(PELAGOS_AVX512)
    const __m512i places = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return {_mm512_permutexvar_ps(places, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
#elif defined(PELAGOS_AVX2)
    __m256 a = _mm256_loadu_ps(p);
    return {_mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
            _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
#else
    float t[16];
    for (int l = 0; l < 16; l++) t[l] = p[l / 2];
    return load(t);
#endif
}

// 16 four-bit codes from 8 bytes, the low half of a byte first.
inline I16 load_nibbles(const uint8_t* p) {
#if defined(PELAGOS_AVX512) || defined(PELAGOS_AVX2)
    const __m128i low = _mm_set1_epi8(0x0f);
    __m128i pairs = _mm_loadl_epi64((const __m128i*)p);
    __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
#if defined(PELAGOS_AVX512)
    return {_mm512_cvtepu8_epi32(codes)};
#else
    return {_mm256_cvtepu8_epi32(codes), _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8))};
#endif
#else
    int32_t t[16];
    for (int i = 0; i < 16; i++) t[i] = (p[i / 2] >> (i % 2 * 4)) & 15;
    return loadi(t);
#endif
}

// E2M1: sign, then 0, 0.5, 1, 1.5, 2, 3, 4, 6.
inline F16 from_e2m1(I16 codes) {
#if defined(PELAGOS_AVX512)
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f,  //
                                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return {_mm512_permutexvar_ps(codes.v, values)};
#elif defined(PELAGOS_AVX2)
    const __m256 sizes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);  // found by the lower three bits
    I16 sign = shift_left<28>(codes & set1i(8));
    return {_mm256_or_ps(_mm256_permutevar8x32_ps(sizes, codes.lo), _mm256_castsi256_ps(sign.lo)),
            _mm256_or_ps(_mm256_permutevar8x32_ps(sizes, codes.hi), _mm256_castsi256_ps(sign.hi))};
#else
    I16 size = codes & set1i(7);
    F16 whole = to_float(size), large = from_bits(shift_left<22>(size + set1i(252)));
    F16 value = select(less(whole, set1(2.0f)), whole * set1(0.5f), large);
    return from_bits(bits(value) | shift_left<28>(codes & set1i(8)));
#endif
}

// Calls f(i, part) for the vectors of a row of n numbers: part.get and part.put load and store 16 numbers, or what is left at the end.
struct WholeVector {
    static constexpr int n = LANES;
    static F16 get(const float* p) { return load(p); }
    static void put(float* p, F16 a) { store(p, a); }
};
struct PartVector {
    int n;
    F16 get(const float* p) const { return load_n(p, n); }
    void put(float* p, F16 a) const { store_n(p, a, n); }
};
template <class F>
inline void each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) f(i, WholeVector{});
    if (i < n) f(i, PartVector{int(n - i)});
}

}  // namespace pelagos::PELAGOS_ISA
