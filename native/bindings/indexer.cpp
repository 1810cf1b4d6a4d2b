#include "bindings.h"

namespace pelagos {

void bind_indexer(nb::module_& m) {
    (void)m;
}

}  // namespace pelagos
