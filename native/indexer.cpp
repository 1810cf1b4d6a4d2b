#include "indexer.h"

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

extern const IndexerKernels indexer_kernels;
const IndexerKernels indexer_kernels = {};

}  // namespace pelagos::PELAGOS_ISA
