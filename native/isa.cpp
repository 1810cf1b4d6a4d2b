// The table of one instruction set: compiled once for each.
#include "kernels.h"
#include "simd.h"

#define PELAGOS_STRING2(x) #x
#define PELAGOS_STRING(x) PELAGOS_STRING2(x)

namespace pelagos::PELAGOS_ISA {

extern const LinearKernels linear_kernels;
extern const RowwiseKernels rowwise_kernels;
extern const AttentionKernels attention_kernels;
extern const IndexerKernels indexer_kernels;
extern const ForwardKernels forward_kernels;
extern const SamplingKernels sampling_kernels;
extern const SimdKernels simd_kernels;

Kernels table() {
    return {PELAGOS_STRING(PELAGOS_ISA), linear_kernels, rowwise_kernels, attention_kernels, indexer_kernels, forward_kernels,
            sampling_kernels, simd_kernels};
}

}  // namespace pelagos::PELAGOS_ISA
