// Every instruction set's functions, and the one set that runs. Chosen once; tests may force any that the processor has.
#pragma once

#include <string>
#include <vector>

#include "attention.h"
#include "forward.h"
#include "indexer.h"
#include "linear.h"
#include "rowwise.h"
#include "sampling.h"
#include "simd_probe.h"

namespace pelagos {

struct Kernels {
    const char* isa;
    LinearKernels linear;
    RowwiseKernels rowwise;
    AttentionKernels attention;
    IndexerKernels indexer;
    ForwardKernels forward;
    SamplingKernels sampling;
    SimdKernels simd;
};

const Kernels& kernels();
std::vector<std::string> available_isas();  // best first
std::vector<std::string> compiled_isas();   // also those that this processor lacks
void use_isa(const std::string& name);      // throws std::invalid_argument for one that is not available

}  // namespace pelagos
