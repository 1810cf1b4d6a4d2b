#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

// num_rows rows of x, each times W^T. Row r of the input is x + (row_ids ? row_ids[r] : r) * x_stride; row r of the output is
// y + r * y_stride. round: y is rounded to BF16 (and stays float32).
struct Product {
    Matrix w;
    const float* x = nullptr;
    int64_t x_stride = 0;
    const int32_t* row_ids = nullptr;
    int64_t num_rows = 0;
    float* y = nullptr;
    int64_t y_stride = 0;
    bool round = false;
};

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
};

}  // namespace pelagos
