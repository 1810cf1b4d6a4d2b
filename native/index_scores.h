// Scores of 16 neighbouring index rows for one query; lanes are the rows.
//
// The product of a head and a row is one sum per 32 channels, and the sum of these. Numbers of FP4 codes under one scale have exact
// products and sums, so it makes no difference to the bits whether they are added as float32 numbers or as integers.
#pragma once

#include "indexer.h"
#include "rounding.h"
#include "simd_bytes.h"
#include "transpose.h"

namespace pelagos::PELAGOS_ISA {

constexpr int MAX_INDEX_SIZE = 256;  // C
constexpr int CODE_ZERO = 12;        // what is added to twice an E2M1 value, so that no code is negative
#if defined(PELAGOS_AVX512)
constexpr int HEADS = 8;  // sums side by side
#else
constexpr int HEADS = 4;
#endif

inline bool encode_query(const float* q, int C, IndexCodes* codes) {
    bool exact = true;
    for (int begin = 0; begin < C; begin += CODE_BLOCK, codes++) {
        int byte = group_scale<E2M1>(q + begin, CODE_BLOCK), total = 0;
        const float scale = scale_of(byte), twice = 2.0f * scale_of(254 - byte);
        for (int i = 0; i < CODE_BLOCK; i++) {
            const int c = i / 8 * 8 + (i % 4) * 2 + i % 8 / 4;  // the even ones of eight, then the odd
            const float value = byte == 255 ? 0.0f : q[begin + c] * twice;
            codes->values[i] = int8_t(value);
            exact = exact && float(codes->values[i]) == value;
            total += codes->values[i];
        }
        codes->bias = -CODE_ZERO * total;
        codes->scale = 0.25f * scale;
    }
    return exact;
}

// 16 rows as numbers, [C, 16].
struct NumberBlock {
    alignas(64) float columns[MAX_INDEX_SIZE * LANES];

    // Rows from `first` on, those before `count`.
    void fill(const Rows& rows, int64_t first, int64_t count, int C) {
        alignas(64) float block[LANES * MAX_INDEX_SIZE];
        int padded = (C + 3) / 4 * 4;
        for (int l = 0; l < LANES; l++) {
            if (first + l < count)
                load_row(rows.layout, rows.row(first + l), block + l * padded);
            else
                std::memset(block + l * padded, 0, sizeof(float) * C);
            for (int c = C; c < padded; c++) block[l * padded + c] = 0.0f;
        }
        for (int c = 0; c < C; c += 4) {
            F16 four[4];
            load_columns(block + c, padded, four);
            for (int i = 0; i < 4 && c + i < C; i++) store(columns + (c + i) * LANES, four[i]);
        }
    }

    template <int N>
    void products(const IndexQuery& query, int head, int C, F16* dot) const {
        const float* q = query.q + int64_t(head) * C;
        for (int h = 0; h < N; h++) dot[h] = zero();
        for (int begin = 0; begin < C; begin += CODE_BLOCK) {
            F16 part[N];
            for (int h = 0; h < N; h++) part[h] = zero();
            for (int c = begin; c < std::min(C, begin + CODE_BLOCK); c++) {
                F16 column = load(columns + c * LANES);
                for (int h = 0; h < N; h++) part[h] = fma(set1(q[h * C + c]), column, part[h]);
            }
            for (int h = 0; h < N; h++) dot[h] = dot[h] + part[h];
        }
    }
};

// 16 rows of FP4 codes, four channels a lane: [C / 4, 16], in the order of IndexCodes, and their scales [C / 32, 16].
struct CodedBlock {
    alignas(64) int32_t columns[MAX_INDEX_SIZE / 4 * LANES];
    alignas(64) float scales[MAX_INDEX_SIZE / CODE_BLOCK * LANES];

    // Rows from `first` on; for those from `count` on the last one before it.
    void fill(const Rows& rows, int64_t first, int64_t count, int C) {
        alignas(16) static const uint8_t twice[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
        const uint8_t* at[LANES];
        const bool in_one_page = rows.page_rows % LANES == 0 && first + LANES <= count;
        at[0] = rows.row(first);
        for (int l = 1; l < LANES; l++) at[l] = in_one_page ? at[0] + l * rows.layout.bytes : rows.row(std::min(first + l, count - 1));
        const I16 low_half = set1i(0x0f0f0f0f);
        for (int b = 0; b < C / CODE_BLOCK; b++) {
            F16 codes[4];
            load_columns([&](int l) { return reinterpret_cast<const float*>(at[l] + b * CODE_BLOCK / 2); }, codes);
            int32_t* to = columns + b * 8 * LANES;
            for (int i = 0; i < 4; i++, to += 2 * LANES) {
                storei(to, lookup_bytes(twice, bits(codes[i]) & low_half));
                storei(to + LANES, lookup_bytes(twice, shift_right<4>(bits(codes[i])) & low_half));
            }
            uint8_t bytes[LANES];
            for (int l = 0; l < LANES; l++) bytes[l] = at[l][C / 2 + b];
            store(scales + b * LANES, scales_of(load_bytes(bytes)));
        }
    }

    template <int N>
    void products(const IndexQuery& query, int head, int C, F16* dot) const {
        const int num_blocks = C / CODE_BLOCK;
        const IndexCodes* codes = query.codes + int64_t(head) * num_blocks;
        for (int h = 0; h < N; h++) dot[h] = zero();
        for (int b = 0; b < num_blocks; b++) {
            I16 total[N];
            for (int h = 0; h < N; h++) total[h] = set1i(codes[h * num_blocks + b].bias);
            for (int i = 0; i < 8; i++) {
                I16 column = loadi(columns + (b * 8 + i) * LANES);
                for (int h = 0; h < N; h++) {
                    int32_t four;
                    std::memcpy(&four, codes[h * num_blocks + b].values + 4 * i, sizeof four);
                    total[h] = add_products(total[h], column, set1i(four));
                }
            }
            F16 scale = load(scales + b * LANES);
            for (int h = 0; h < N; h++) dot[h] = fma(to_float(total[h]), scale * set1(codes[h * num_blocks + b].scale), dot[h]);
        }
    }
};

template <int N, class Block>
inline F16 add_heads(const Block& block, const IndexQuery& query, int head, int C, F16 score) {
    F16 dot[N];
    block.template products<N>(query, head, C, dot);
    for (int h = 0; h < N; h++) score = fma(max(dot[h], zero()), set1(query.head_weights[head + h]), score);
    return score;
}

template <class Block>
inline F16 score_block(const Block& block, const IndexQuery& query, int H, int C) {
    F16 score = zero();
    int h = 0;
    for (; h + HEADS <= H; h += HEADS) score = add_heads<HEADS>(block, query, h, C, score);
    for (; h + 4 <= H; h += 4) score = add_heads<4>(block, query, h, C, score);
    for (; h < H; h++) score = add_heads<1>(block, query, h, C, score);
    return score;
}

}  // namespace pelagos::PELAGOS_ISA
