#include "bindings.h"

namespace pelagos {

void bind_attention(nb::module_& m) {
    (void)m;
}

}  // namespace pelagos
