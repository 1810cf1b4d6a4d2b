#include "bindings.h"

NB_MODULE(_native, m) {
    // A program that ends in the middle of its work, by a signal or with a thread running, is no fault to report.
    nb::set_leak_warnings(false);
    using namespace pelagos;
    m.def("available_isas", &available_isas);
    m.def("compiled_isas", &compiled_isas);
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("use_isa", &use_isa, nb::arg("name"));
    m.def("num_threads", [] { return pool().size(); });
    m.def(
        "set_num_threads",
        [](int num_threads) {
            if (num_threads < 1) throw nb::value_error("num_threads must be at least 1");
            pool().resize(num_threads);
        },
        nb::arg("num_threads"));
    bind_linear(m);
    bind_rowwise(m);
    bind_attention(m);
    bind_indexer(m);
    bind_forward(m);
    bind_sampling(m);
    bind_tests(m);
}
