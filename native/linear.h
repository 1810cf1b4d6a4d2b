#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

// num_rows rows of x, each times W^T. Row r of the input is x + (row_ids ? row_ids[r] : r) * x_stride; row r of the output is
// y + r * y_stride. round: y is rounded to BF16 (and stays float32).
//
// The order of a sum. Lane l of 16 adds the columns l, l + 16, l + 32, ... by fused multiply-add. With `pairs` (w.pairs, and rows of x
// that round_activation has made and pack_row has packed) weights are code times scale, and columns go in blocks of 32: word m of a block is
// its column 4 (m % 8) + m / 8, and lane l adds word 2 l + 1, then word 2 l. That is what the BF16 dot product of AVX-512 computes; every
// product is exact and none is below the normal numbers. Then the lanes are added as a tree (simd.h).
struct Product {
    Matrix w;
    const float* x = nullptr;
    int64_t x_stride = 0;
    const int32_t* row_ids = nullptr;
    int64_t num_rows = 0;
    float* y = nullptr;
    int64_t y_stride = 0;
    bool round = false;
    bool pairs = false;
    bool is_part = false;  // more rows of x come with the same rows of w
};

// Whether the products of a matrix may be those of pairs: with x a multiple of 2^-31 every product is a multiple of 2^-126, and weights
// are finite BF16 numbers.
constexpr int MIN_PAIR_SCALE = 41, MAX_PAIR_SCALE = 246;  // UE8M0: 2^-86, 2^119
inline bool can_pair(const Matrix& w) {
    bool is_fp8 = w.format == Format::fp8, is_fp4 = w.format == Format::fp4;
    if (w.float_scales || w.cols % 64 != 0 || !((is_fp8 && w.block_cols == 128) || (is_fp4 && w.block_cols == 32))) return false;
    const uint8_t* scales = static_cast<const uint8_t*>(w.scales);
    int64_t num = (w.first_row + w.rows + w.block_rows - 1) / w.block_rows * ((w.cols + w.block_cols - 1) / w.block_cols);
    bool fits = true;
    for (int64_t i = 0; i < num; i++) fits &= scales[i] >= MIN_PAIR_SCALE && scales[i] <= MAX_PAIR_SCALE;
    return fits;
}

// Rows start .. stop of a matrix.
inline Matrix rows_of(const Matrix& w, int64_t start, int64_t stop) {
    int64_t bits = w.format == Format::float32 ? 32 : w.format == Format::bfloat16 ? 16 : w.format == Format::fp8 ? 8 : 4;
    Matrix part = w;
    part.codes = static_cast<const uint8_t*>(w.codes) + start * w.cols * bits / 8;
    part.rows = stop - start;
    part.first_row = w.first_row + start;
    return part;
}

struct LinearKernels {
    // All products, their outputs shared among the team; every thread calls it. No barrier before or behind. An element of y has the
    // same bits for any team and any other rows.
    void (*linear)(const Team& team, const Product* products, int num_products);
    // Starts fetching the first rows of a matrix that is wanted soon.
    void (*prefetch)(const Matrix& w);
    // Rows of rounded x [rows, n] as products of pairs take them, [rows, n].
    void (*pack_rows)(const Team& team, const float* x, int64_t rows, int64_t n, float* packed);
};

}  // namespace pelagos
