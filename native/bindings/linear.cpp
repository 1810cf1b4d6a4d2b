#include "bindings.h"

namespace pelagos {

void bind_linear(nb::module_& m) {
    nb::class_<Matrix>(m, "Matrix")
        .def("__init__",
             [](Matrix* self, int format, Address codes, Address scales, bool float_scales, int block_rows, int block_cols, int64_t rows,
                int64_t cols, int64_t first_row) {
                 new (self) Matrix{Format(format), at<const void>(codes), at<const void>(scales), float_scales,
                                   block_rows,     block_cols,            rows,                   cols,
                                   first_row};
             })
        .def_ro("rows", &Matrix::rows)
        .def_ro("cols", &Matrix::cols);
    m.def(
        "linear",
        [](const Matrix& w, Address x, int64_t num_rows, Address y, bool round) {
            Product job{w, at<const float>(x), w.cols, nullptr, num_rows, at<float>(y), w.rows, round};
            pool().run([&](const Team& team) { kernels().linear.linear(team, &job, 1); });
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pelagos
