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

struct LinearKernels {
    // All products, their outputs shared among the team; every thread calls it. No barrier before or behind. An element of y has the
    // same bits for any team and any other rows.
    void (*linear)(const Team& team, const Product* products, int num_products);
};

}  // namespace pelagos
