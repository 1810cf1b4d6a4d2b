#include "bindings.h"

namespace pelagos {

namespace {

template <class T>
struct Wire {  // how Python passes an argument: pointers as addresses
    using Type = T;
    static T value(Type x) { return x; }
};
template <class T>
struct Wire<T*> {
    using Type = Address;
    static T* value(Type address) { return at<T>(address); }
};

// Makes a function of the table one of Python, which runs it in the pool.
template <class... Args>
void bind(nb::module_& m, const char* name, void (*RowwiseKernels::*op)(const Team&, Args...)) {
    m.def(
        name,
        [op](typename Wire<Args>::Type... args) {
            pool().run([&](const Team& team) { (kernels().rowwise.*op)(team, Wire<Args>::value(args)...); });
        },
        nb::call_guard<nb::gil_scoped_release>());
}

// z = streams x fn^T, which the weights of residual streams start from.
void project_streams(Address streams, Address fn, int64_t rows, int64_t n, int64_t wide, Address z) {
    Product job;
    job.w.codes = at<const void>(fn);
    job.w.rows = wide;
    job.w.cols = n;
    job.x = at<const float>(streams);
    job.x_stride = n;
    job.num_rows = rows;
    job.y = at<float>(z);
    job.y_stride = wide;
    pool().run([&](const Team& team) { kernels().linear.linear(team, &job, 1); });
}

RowLayout row_layout(int format, int size, int num_rope) {
    return {RowFormat(format), size, num_rope, kernels().rowwise.row_bytes(RowFormat(format), size, num_rope)};
}

}  // namespace

void bind_rowwise(nb::module_& m) {
    bind(m, "rms_norm", &RowwiseKernels::rms_norm);
    bind(m, "head_norm", &RowwiseKernels::head_norm);
    bind(m, "rotation", &RowwiseKernels::rotation);
    bind(m, "rotate", &RowwiseKernels::rotate);
    m.def("project_streams", &project_streams, nb::call_guard<nb::gil_scoped_release>());
    bind(m, "mhc_weights", &RowwiseKernels::mhc_weights);
    bind(m, "mhc_head_weights", &RowwiseKernels::mhc_head_weights);
    bind(m, "mhc_collapse", &RowwiseKernels::mhc_collapse);
    bind(m, "mhc_expand", &RowwiseKernels::mhc_expand);
    bind(m, "pool_window", &RowwiseKernels::pool_window);
    bind(m, "router_scores", &RowwiseKernels::router_scores);
    bind(m, "top_experts", &RowwiseKernels::top_experts);
    bind(m, "routing_weights", &RowwiseKernels::routing_weights);
    bind(m, "clamped_swiglu", &RowwiseKernels::clamped_swiglu);
    bind(m, "round_activation", &RowwiseKernels::round_activation);
    bind(m, "hadamard", &RowwiseKernels::hadamard);
    bind(m, "round_index", &RowwiseKernels::round_index);
    bind(m, "round_row", &RowwiseKernels::round_row);

    nb::class_<RowLayout>(m, "RowLayout")
        .def("__init__",
             [](RowLayout* self, int format, int size, int num_rope) { new (self) RowLayout(row_layout(format, size, num_rope)); })
        .def_ro("size", &RowLayout::size)
        .def_ro("num_rope", &RowLayout::num_rope)
        .def_ro("bytes", &RowLayout::bytes);
    bind(m, "store_rows", &RowwiseKernels::store_rows);
    bind(m, "load_rows", &RowwiseKernels::load_rows);
}

}  // namespace pelagos
