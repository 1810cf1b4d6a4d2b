#include "bindings.h"

NB_MODULE(_native, m) {
    using namespace pelagos;
    m.def("available_isas", &available_isas);
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("use_isa", &use_isa, nb::arg("name"));
    m.def("num_threads", [] { return pool().size(); });
    m.def("set_num_threads", &set_num_threads, nb::arg("num_threads"), nb::call_guard<nb::gil_scoped_release>());
    bind_linear(m);
    bind_rowwise(m);
    bind_attention(m);
    bind_indexer(m);
}
