// The roundings that the served model applies while it runs, and cached rows: their bytes, written and read. What the bytes
// mean is defined by pelagos/formats; results are the same, bit for bit.
#pragma once

#include <algorithm>

#include "simd.h"
#include "types.h"

namespace pelagos::PELAGOS_ISA {

inline F16 with_sign(F16 size, F16 sign) { return from_bits(bits(size) | (bits(sign) & set1i(INT32_MIN))); }

// `size` >= 0 to a multiple of `step`, a power of two, nearest, ties to even; size < 2^22 steps.
inline F16 to_multiple(F16 size, F16 step) {
    F16 large = step * set1(0x1.8p23f);  // numbers of this size are the multiples of the step
    return (size + large) - large;
}

inline F16 power_of_two_below(F16 a) { return from_bits(bits(a) & set1i(0x7f800000)); }

// The two codes that groups of numbers are rounded to. `nearest`: |a| <= MAX to the value of the nearest code, ties to the even
// code. FLOOR: the least magnitude that a group's scale is found from.
struct E4M3 {
    static constexpr float MAX = 448.0f, FLOOR = 1e-4f;
    static F16 nearest(F16 a) {
        F16 size = abs(a);
        F16 step = max(power_of_two_below(size), set1(0x1p-6f)) * set1(0x1p-3f);
        return with_sign(to_multiple(size, step), a);
    }
};
struct E2M1 {
    static constexpr float MAX = 6.0f, FLOOR = 6.0f * 0x1p-126f;
    static F16 nearest(F16 a) {
        F16 size = abs(a);
        F16 step = max(power_of_two_below(size), set1(1.0f)) * set1(0.5f);
        return with_sign(to_multiple(size, step), a);
    }
    static I16 encode(F16 a) {
        F16 value = nearest(a), size = abs(value);
        I16 code = selecti(less(size, set1(1.0f)), to_int(size + size), shift_right<22>(bits(size)) - set1i(252));
        return code | (shift_right<28>(bits(value)) & set1i(8));
    }
};

// UE8M0: byte b is 2^(b - 127), 255 is NaN.
inline float scale_of(int byte) {
    uint32_t b = byte == 255 ? 0x7fc00000u : byte == 0 ? 0x00400000u : uint32_t(byte) << 23;
    float scale;
    std::memcpy(&scale, &b, sizeof b);
    return scale;
}

inline F16 scales_of(I16 bytes) {  // of 16 bytes
    I16 normal = selecti(equal(bytes, set1i(0)), set1i(0x00400000), shift_left<23>(bytes));
    return from_bits(selecti(equal(bytes, set1i(255)), set1i(0x7fc00000), normal));
}

// The scale byte of a group: 2^ceil(log2(max(amax, FLOOR) / MAX)), 1 .. 253; 255 where the group holds NaN or infinity.
template <class Code>
inline int group_scale(const float* x, int64_t n) {
    F16 top = zero(), broken = zero();
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(x + i);
        top = max(top, abs(a));
        broken = fma(a, zero(), broken);  // infinity and NaN alone make this NaN
    });
    if (sum(broken) != 0.0f) return 255;
    float amax = max(top), ratio = (amax > Code::FLOOR ? amax : Code::FLOOR) / Code::MAX;
    uint32_t b;
    std::memcpy(&b, &ratio, sizeof b);
    return int(b >> 23) + ((b & 0x7fffff) != 0);
}

// Value -> code and scale -> value.
template <class Code>
inline void round_group(const float* x, int64_t n, float* y) {
    int byte = group_scale<Code>(x, n);
    F16 scale = set1(scale_of(byte)), inverse = set1(scale_of(254 - byte));
    each_vector(n, [&](int64_t i, auto part) {
        part.put(y + i, byte == 255 ? set1(NAN) : Code::nearest(part.get(x + i) * inverse) * scale);
    });
}

template <class Code>
inline void round_groups(const float* x, int64_t n, int64_t size, float* y) {
    for (int64_t i = 0; i < n; i += size) round_group<Code>(x + i, n - i < size ? n - i : size, y + i);
}

inline void round_all(float* x, int64_t n) {  // to BF16 values
    each_vector(n, [&](int64_t i, auto part) { part.put(x + i, round_bf16(part.get(x + i))); });
}

// The input of an FP8 or FP4 product: to FP8 in groups of 128. y may be x.
inline void round_activation(const float* x, int64_t n, float* y) { round_groups<E4M3>(x, n, 128, y); }

// An attention row: to FP8 in groups of 64, the last num_rope numbers to BF16.
inline void round_row(float* x, int n, int num_rope) {
    round_groups<E4M3>(x, n - num_rope, 64, x);
    float* rotated = x + n - num_rope;
    each_vector(num_rope, [&](int64_t i, auto part) { part.put(rotated + i, round_bf16(part.get(rotated + i))); });
}

// The normalised Hadamard transform of n numbers, a power of two, in natural order: butterflies of distance 1, 2, 4, ..., then
// one product.
inline void hadamard(float* x, int n, bool round) {
    alignas(64) float signs[4][LANES];  // of a lane's own number in the butterflies within a vector
    for (int s = 0; s < 4; s++)
        for (int l = 0; l < LANES; l++) signs[s][l] = (l >> s) & 1 ? -1.0f : 1.0f;
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(x + i);
        if (n > 1) a = fma(a, load(signs[0]), swap_lanes<1>(a));
        if (n > 2) a = fma(a, load(signs[1]), swap_lanes<2>(a));
        if (n > 4) a = fma(a, load(signs[2]), swap_lanes<4>(a));
        if (n > 8) a = fma(a, load(signs[3]), swap_lanes<8>(a));
        part.put(x + i, a);
    });
    for (int distance = LANES; distance < n; distance *= 2) {
        for (int i = 0; i < n; i = (i + LANES) & distance ? i + LANES + distance : i + LANES) {
            F16 a = load(x + i), b = load(x + i + distance);
            store(x + i, a + b);
            store(x + i + distance, a - b);
        }
    }
    F16 factor = set1(float(1.0 / __builtin_sqrt(double(n))));
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(x + i) * factor;
        part.put(x + i, round ? round_bf16(a) : a);
    });
}

// An index row or index query: Hadamard transform, then to FP4 in groups of 32.
inline void round_index(float* x, int n, bool round) {
    hadamard(x, n, round);
    round_groups<E2M1>(x, n, 32, x);
}

inline int64_t row_bytes(RowFormat format, int size, int num_rope) {
    int plain = size - num_rope;
    switch (format) {
        case RowFormat::float32: return 4 * int64_t(size);
        case RowFormat::bfloat16: return 2 * int64_t(size);
        case RowFormat::fp8: return (plain + 2 * num_rope + (plain + 63) / 64 + 7) / 8 * 8;
        case RowFormat::index_fp8: return size + 4 * ((size + 127) / 128);
        case RowFormat::index_fp4: return size / 2 + (size + 31) / 32;
    }
    return 0;
}

// BF16 numbers at any address.
inline F16 get_bf16(WholeVector, const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
inline F16 get_bf16(PartVector part, const uint8_t* p) {
    uint16_t halves[LANES] = {};
    std::memcpy(halves, p, 2 * part.n);
    return load_bf16(halves);
}
inline void put_bf16(WholeVector, uint8_t* p, F16 a) { store_bf16(reinterpret_cast<uint16_t*>(p), a); }
inline void put_bf16(PartVector part, uint8_t* p, F16 a) {
    uint16_t halves[LANES];
    store_bf16(halves, a);
    std::memcpy(p, halves, 2 * part.n);
}

inline void store_bf16_numbers(const float* x, int n, uint8_t* to) {
    each_vector(n, [&](int64_t i, auto part) { put_bf16(part, to + 2 * i, part.get(x + i)); });
}

inline void load_bf16_numbers(const uint8_t* from, int n, float* x) {
    each_vector(n, [&](int64_t i, auto part) { part.put(x + i, get_bf16(part, from + 2 * i)); });
}

// E4M3 codes of one group; returns its scale byte. A group with NaN or infinity has NaN for scale and codes.
inline int store_e4m3_group(const float* x, int n, uint8_t* codes) {
    int byte = group_scale<E4M3>(x, n);
    F16 inverse = set1(scale_of(254 - byte));
    each_vector(n, [&](int64_t i, auto part) {
        uint8_t block[LANES];
        store_bytes(block, byte == 255 ? set1i(0x7f) : to_e4m3(part.get(x + i) * inverse));
        std::memcpy(codes + i, block, part.n);
    });
    return byte;
}

inline int store_e2m1_group(const float* x, int n, uint8_t* pairs) {  // n even; a group with NaN or infinity has codes of 6
    int byte = group_scale<E2M1>(x, n);
    F16 inverse = set1(scale_of(254 - byte));
    each_vector(n, [&](int64_t i, auto part) {
        int32_t codes[LANES];
        storei(codes, byte == 255 ? set1i(7) : E2M1::encode(part.get(x + i) * inverse));
        for (int l = 0; l < part.n; l += 2) pairs[(i + l) / 2] = uint8_t(codes[l] | codes[l + 1] << 4);
    });
    return byte;
}

// 16 E4M3 codes, worth 2^-8 of their values: so much are they as half-precision numbers, which processors convert by themselves.
// CHECKED: NaN codes give NaN; else something finite, and the caller looks for them.
template <bool CHECKED = true>
inline F16 e4m3_halves(const uint8_t* codes) {
#if defined(PELAGOS_AVX512) || defined(PELAGOS_AVX2)
    // The sign fills the upper half of a word, so that after the shift it is in place; bit 14 must not have it.
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)codes));
    __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xbf80)));
    if constexpr (CHECKED) {
        __m256i size = _mm256_and_si256(half, _mm256_set1_epi16(0x3f80));
        __m256i nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x3f80));
        half = _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
    }
#if defined(PELAGOS_AVX512)
    return {_mm512_cvtph_ps(half)};
#else
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
#endif
#else
    return load_e4m3(codes) * set1(0x1p-8f);
#endif
}

// Whether one of n codes of E4M3, a multiple of 16, is NaN.
inline bool has_nan_codes(const uint8_t* codes, int64_t n) {
#if defined(PELAGOS_AVX512)
    const __m512i size = _mm512_set1_epi8(0x7f);
    __mmask64 found = 0;
    for (int64_t i = 0; i < n; i += 64) {
        __mmask64 there = n - i < 64 ? ~uint64_t(0) >> (64 - (n - i)) : ~uint64_t(0);
        found |= _mm512_cmpeq_epi8_mask(_mm512_and_si512(_mm512_maskz_loadu_epi8(there, codes + i), size), size);
    }
    return found != 0;
#elif defined(PELAGOS_AVX2)
    const __m128i size = _mm_set1_epi8(0x7f);
    __m128i found = _mm_setzero_si128();
    for (int64_t i = 0; i < n; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i*)(codes + i));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_and_si128(v, size), size));
    }
    return !_mm_testz_si128(found, found);
#else
    bool found = false;
    for (int64_t i = 0; i < n; i++) found |= (codes[i] & 0x7f) == 0x7f;
    return found;
#endif
}

inline F16 decode_e4m3(const uint8_t* codes) { return e4m3_halves(codes) * set1(256.0f); }

inline void load_e4m3_group(const uint8_t* codes, int n, float scale, float* x) {
    each_vector(n, [&](int64_t i, auto part) {
        uint8_t block[LANES] = {};
        std::memcpy(block, codes + i, part.n);
        part.put(x + i, decode_e4m3(block) * set1(scale));
    });
}

inline void load_e2m1_group(const uint8_t* pairs, int n, float scale, float* x) {
    each_vector(n, [&](int64_t i, auto part) {
        uint8_t block[LANES / 2] = {};
        std::memcpy(block, pairs + i / 2, part.n / 2);
        part.put(x + i, from_e2m1(load_nibbles(block)) * set1(scale));
    });
}

// A row of layout.size numbers to layout.bytes bytes, at any address.
inline void store_row(const RowLayout& layout, const float* x, uint8_t* row) {
    int size = layout.size, plain = size - layout.num_rope;
    switch (layout.format) {
        case RowFormat::float32: std::memcpy(row, x, 4 * size_t(size)); return;
        case RowFormat::bfloat16: store_bf16_numbers(x, size, row); return;
        case RowFormat::fp8: {
            uint8_t* scales = row + plain + 2 * layout.num_rope;
            std::memset(scales, 0, row + layout.bytes - scales);
            for (int i = 0; i < plain; i += 64)
                scales[i / 64] = uint8_t(store_e4m3_group(x + i, plain - i < 64 ? plain - i : 64, row + i));
            store_bf16_numbers(x + plain, layout.num_rope, row + plain);
            return;
        }
        case RowFormat::index_fp8:
            for (int i = 0; i < size; i += 128) {
                float scale = scale_of(store_e4m3_group(x + i, size - i < 128 ? size - i : 128, row + i));
                std::memcpy(row + size + i / 128 * 4, &scale, 4);
            }
            return;
        case RowFormat::index_fp4:
            for (int i = 0; i < size; i += 32)
                row[size / 2 + i / 32] = uint8_t(store_e2m1_group(x + i, size - i < 32 ? size - i : 32, row + i / 2));
    }
}

// Any row.
inline __attribute__((noinline)) void load_any_row(const RowLayout& layout, const uint8_t* row, float* x) {
    int size = layout.size, plain = size - layout.num_rope;
    switch (layout.format) {
        case RowFormat::float32: std::memcpy(x, row, 4 * size_t(size)); return;
        case RowFormat::bfloat16: load_bf16_numbers(row, size, x); return;
        case RowFormat::fp8: {
            const uint8_t* scales = row + plain + 2 * layout.num_rope;
            for (int i = 0; i < plain; i += 64)
                load_e4m3_group(row + i, plain - i < 64 ? plain - i : 64, scale_of(scales[i / 64]), x + i);
            load_bf16_numbers(row + plain, layout.num_rope, x + plain);
            return;
        }
        case RowFormat::index_fp8:
            for (int i = 0; i < size; i += 128) {
                float scale;
                std::memcpy(&scale, row + size + i / 128 * 4, 4);
                load_e4m3_group(row + i, size - i < 128 ? size - i : 128, scale, x + i);
            }
            return;
        case RowFormat::index_fp4:
            for (int i = 0; i < size; i += 32)
                load_e2m1_group(row + i / 2, size - i < 32 ? size - i : 32, scale_of(row[size / 2 + i / 32]), x + i);
    }
}

// A row of RowFormat::fp8 of whole vectors, without NaN codes, under scales 2^-126 .. 2^119; false where it is another.
inline PELAGOS_INLINE bool load_usual_row(const RowLayout& layout, const uint8_t* row, float* x) {
    const int plain = layout.size - layout.num_rope;
    if (layout.format != RowFormat::fp8 || plain % LANES != 0 || layout.num_rope % LANES != 0) return false;
    const uint8_t* scales = row + plain + 2 * layout.num_rope;
    for (int group = 0; group < plain; group += 64) {
        const int byte = scales[group / 64];
        if (byte == 0 || byte > 246) return false;
        const F16 factor = from_bits(set1i((byte + 8) << 23));  // 256 times the scale
        for (int i = group; i < std::min(plain, group + 64); i += LANES) store(x + i, e4m3_halves<false>(row + i) * factor);
    }
    for (int i = 0; i < layout.num_rope; i += LANES) store(x + plain + i, get_bf16(WholeVector{}, row + plain + 2 * i));
    return !has_nan_codes(row, plain);
}

// The inverse of store_row. Reads no byte outside the row.
inline void load_row(const RowLayout& layout, const uint8_t* row, float* x) {
    if (!load_usual_row(layout, row, x)) load_any_row(layout, row, x);
}

}  // namespace pelagos::PELAGOS_ISA
