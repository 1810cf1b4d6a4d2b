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
                 self->pairs = can_pair(*self);
             })
        .def_ro("pairs", &Matrix::pairs)
        .def_ro("rows", &Matrix::rows)
        .def_ro("cols", &Matrix::cols);
    // x, packed: [num_rows, w.cols]; x as round_activation makes it, w.pairs. `packed` is scratch memory.
    m.def(
        "linear_pairs",
        [](const Matrix& w, Address x, int64_t num_rows, Address packed, Address y) {
            Product job{w, at<const float>(packed), w.cols, nullptr, num_rows, at<float>(y), w.rows, false, true};
            pool().run([&](const Team& team) {
                kernels().linear.pack_rows(team, at<const float>(x), num_rows, w.cols, at<float>(packed));
                team.wait();
                kernels().linear.linear(team, &job, 1);
            });
        },
        nb::call_guard<nb::gil_scoped_release>());
    // x: [num_rows, num_groups, w.cols]; w has num_groups parts of equal size, one per group of x.
    m.def(
        "linear",
        [](const Matrix& w, int num_groups, Address x, int64_t num_rows, Address y, bool round) {
            std::vector<Product> jobs;
            for (int g = 0; g < num_groups; g++) {
                int64_t size = w.rows / num_groups;
                jobs.push_back({rows_of(w, g * size, (g + 1) * size), at<const float>(x) + g * w.cols, num_groups * w.cols, nullptr, num_rows,
                                at<float>(y) + g * size, w.rows, round});
            }
            pool().run([&](const Team& team) { kernels().linear.linear(team, jobs.data(), num_groups); });
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pelagos
