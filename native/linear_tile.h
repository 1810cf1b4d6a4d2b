// The blocked kernel of products with many rows of x. Kind says what a vector is: Plain (linear.cpp) or Pairs (linear_pairs.cpp).
#pragma once

#include <algorithm>

#include "linear_few.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

#if defined(PELAGOS_AVX512)
constexpr int MANY = 6, WIDE = 4;  // rows of x, rows of w of the blocked kernel: 24 of 32 registers are sums
#elif defined(PELAGOS_AVX2)
constexpr int MANY = 3, WIDE = 2;  // a vector is two registers: 12 of 16 are sums
#else
constexpr int MANY = 4, WIDE = 2;
#endif
constexpr int ROW_BLOCK = 32, TOKEN_BLOCK = 60;  // rows of w, rows of x of a tile
constexpr int TILE_VECTORS = 32;                 // of a row of w: a tile has 64 KB of weights, 120 KB of x, 120 KB of sums

// The sums of NUM neighbours of a row of y, from `column` on.
template <int NUM>
inline void put_results(const Product& job, int64_t row, int64_t column, const F16 (&totals)[NUM]) {
    F16 y = lane_sums(totals);
    store_n(job.y + row * job.y_stride + column, job.round ? round_bf16(y) : y, NUM);
}

// sums += x w^T over `num` whole vectors and `rest` floats of one, MANY rows of x and WIDE rows of w [WIDE, TILE_VECTORS]; sums of row t
// lie t * ROW_BLOCK vectors on.
template <class Kind>
inline void multiply_block(const float* const* x, const typename Kind::Vector* w, int num, int rest, float* sums) {
    F16 total[MANY][WIDE];
    for (int t = 0; t < MANY; t++)
        for (int r = 0; r < WIDE; r++) total[t][r] = load(sums + (t * ROW_BLOCK + r) * LANES);
    for (int k = 0; k < num; k++) {
        typename Kind::Vector weights[WIDE];
        for (int r = 0; r < WIDE; r++) weights[r] = w[r * TILE_VECTORS + k];
        for (int t = 0; t < MANY; t++) {
            auto in = Kind::get(x[t] + k * LANES);
            for (int r = 0; r < WIDE; r++) total[t][r] = Kind::add(in, weights[r], total[t][r]);
        }
    }
    if constexpr (Kind::HAS_REST)
        for (int t = 0; t < MANY && rest; t++) {
            F16 in = load_n(x[t] + num * LANES, rest);
            for (int r = 0; r < WIDE; r++) total[t][r] = Kind::add(in, w[r * TILE_VECTORS + num], total[t][r]);
        }
    for (int t = 0; t < MANY; t++)
        for (int r = 0; r < WIDE; r++) store(sums + (t * ROW_BLOCK + r) * LANES, total[t][r]);
}

// Rows n .. n + num_w of w times rows r .. r + num_x of x, at most ROW_BLOCK and TOKEN_BLOCK.
template <class Kind>
inline void multiply_tile(const Product& job, int64_t n, int num_w, int64_t r, int num_x) {
    constexpr int columns = TILE_VECTORS * Kind::COLUMNS;
    alignas(64) typename Kind::Vector weights[ROW_BLOCK * TILE_VECTORS];
    alignas(64) float sums[TOKEN_BLOCK * ROW_BLOCK * LANES];
    int wide = (num_w + WIDE - 1) / WIDE * WIDE, many = (num_x + MANY - 1) / MANY * MANY;
    std::memset(sums, 0, sizeof(float) * many * ROW_BLOCK * LANES);
    for (int i = num_w; i < wide; i++) std::memset(weights + i * TILE_VECTORS, 0, sizeof weights[0] * TILE_VECTORS);
    for (int64_t begin = 0; begin < job.w.cols; begin += columns) {
        int count = int(std::min<int64_t>(columns, job.w.cols - begin)), rest = count % Kind::COLUMNS;
        for (int i = 0; i < num_w; i++) Kind::decode(job.w, n + i, begin, count, weights + i * TILE_VECTORS);
        for (int t = 0; t < many; t += MANY) {
            const float* x[MANY];  // what is missing is not read later
            for (int i = 0; i < MANY; i++) x[i] = row_of(job, r + std::min(t + i, num_x - 1)) + begin / Kind::COLUMNS * LANES;
            for (int i = 0; i < wide; i += WIDE)
                multiply_block<Kind>(x, weights + i * TILE_VECTORS, count / Kind::COLUMNS, rest, sums + (t * ROW_BLOCK + i) * LANES);
        }
    }
    for (int t = 0; t < num_x; t++) {
        const float* of_row = sums + t * ROW_BLOCK * LANES;
        int i = 0;
        for (; i + 8 <= num_w; i += 8) {
            F16 totals[8];
            for (int k = 0; k < 8; k++) totals[k] = load(of_row + (i + k) * LANES);
            put_results(job, r + t, n + i, totals);
        }
        for (; i < num_w; i++) put_result(job, r + t, n + i, sum(load(of_row + i * LANES)));
    }
}

}  // namespace pelagos::PELAGOS_ISA
