// One bind_* per op family. Arguments are addresses and sizes: the Python wrappers in pelagos/ops/cpu check them and allocate.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "../kernels.h"

namespace nb = nanobind;

namespace pelagos {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void bind_linear(nb::module_& m);
void bind_rowwise(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_indexer(nb::module_& m);
void bind_forward(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_tests(nb::module_& m);

}  // namespace pelagos
