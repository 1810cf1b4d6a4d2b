#include "rowwise.h"

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

extern const RowwiseKernels rowwise_kernels;
const RowwiseKernels rowwise_kernels = {};

}  // namespace pelagos::PELAGOS_ISA
