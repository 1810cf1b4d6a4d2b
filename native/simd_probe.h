// The functions of simd.h on arrays, so that tests can compare them with an oracle and across instruction sets.
#pragma once

#include <cstdint>

namespace pelagos {

struct SimdKernels {
    // Applies the function called `name` to num_blocks blocks of 16 numbers; false if there is none. `b` is the second operand of
    // those that have two. Types: see the table in simd_probe.cpp.
    bool (*apply)(const char* name, const void* a, const void* b, void* out, int64_t num_blocks);
};

}  // namespace pelagos
