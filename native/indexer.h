#pragma once

#include "pool.h"
#include "types.h"

namespace pelagos {

struct IndexerKernels {
};

}  // namespace pelagos
