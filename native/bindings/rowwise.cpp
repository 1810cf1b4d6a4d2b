#include "bindings.h"

namespace pelagos {

void bind_rowwise(nb::module_& m) {
    (void)m;
}

}  // namespace pelagos
