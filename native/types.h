// What ops are given: matrices as they lie in a checkpoint, and rows as they lie in a cache. Nothing here owns memory.
#pragma once

#include <cstdint>

namespace pelagos {

enum class Format : int32_t { float32 = 0, bfloat16 = 1, fp8 = 2, fp4 = 3 };

// y = x W^T with W [rows, cols], row-major, in a stored format. fp8: E4M3 codes; fp4: two E2M1 codes a byte, the even column in the low
// half. scales: one per block of block_rows x block_cols, row-major, UE8M0 bytes or (float_scales) float32; the block grid
// starts at row `first_row` of the stored matrix, so that a slice of rows finds its scales. Any alignment.
struct Matrix {
    Format format = Format::float32;
    const void* codes = nullptr;   // of this slice's first row
    const void* scales = nullptr;  // of the whole stored matrix
    bool float_scales = false;
    int32_t block_rows = 1, block_cols = 1;
    int64_t rows = 0, cols = 0;
    int64_t first_row = 0;
    bool pairs = false;  // products with rounded rows may be those of pairs: linear.h
};

// How one cached row of `size` numbers lies in memory. The last num_rope of them were rotated (attention rows alone).
//   float32, bfloat16   the numbers
//   fp8                 attention row: E4M3 in groups of 64 | rope dims as BF16 | UE8M0 scales | zeros up to a multiple of 8
//   index_fp8           E4M3 in groups of 128 | float32 scales
//   index_fp4           two E2M1 codes a byte in groups of 32 | UE8M0 scales
enum class RowFormat : int32_t { float32 = 0, bfloat16 = 1, fp8 = 2, index_fp8 = 3, index_fp4 = 4 };

struct RowLayout {
    RowFormat format = RowFormat::float32;
    int32_t size = 0, num_rope = 0;
    int64_t bytes = 0;  // of one row
};

// Rows 0, 1, ... of one sequence: row i is number i % page_rows of page pages[i / page_rows], pages lying page_bytes apart in an arena.
// A plain array of rows has one page.
struct Rows {
    RowLayout layout;
    const uint8_t* arena = nullptr;
    const int32_t* pages = nullptr;  // nullptr: pages lie one behind another
    int64_t page_bytes = 0;
    int64_t page_rows = 1;

    const uint8_t* row(int64_t i) const {
        int64_t page = i / page_rows, place = i % page_rows;
        return arena + (pages ? pages[page] : page) * page_bytes + place * layout.bytes;
    }
};

}  // namespace pelagos
