#include "attention.h"

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {};

}  // namespace pelagos::PELAGOS_ISA
