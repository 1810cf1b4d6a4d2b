#include "bindings.h"

namespace pelagos {

namespace {

// Queries of one sequence at ascending positions, for tests and benchmarks: the model's forward pass makes its own. window: rows [S, C]
// from position window_start on, of which a query sees the last window_size up to its own position.
struct AttendSequence {
    Address q, positions, out;  // [T, H, C] float32, [T] int64, [T, H, C] float32
    int64_t num_queries;
    Address window;
    int64_t window_start, window_size;
    Rows rows = {};
    Address num_visible = 0;  // [T] int64; 0: no compressed rows
    Address chosen = 0;       // [T, max_chosen] int32, num_visible of them used; 0: all rows before num_visible
    int64_t max_chosen = 0;

    void add_queries(int num_heads, int head_dim, std::vector<AttendQuery>& queries) const {
        for (int64_t t = 0; t < num_queries; t++) {
            const int64_t position = at<const int64_t>(positions)[t], first = std::max<int64_t>(0, position - window_size + 1);
            AttendQuery query;
            query.q = at<const float>(q) + t * num_heads * head_dim;
            query.out = at<float>(out) + t * num_heads * head_dim;
            query.window = at<const float>(window) + (first - window_start) * head_dim;
            query.window_position = first;
            query.num_window = int32_t(position - first + 1);
            if (num_visible) {
                query.rows = &rows;
                query.num_visible = at<const int64_t>(num_visible)[t];
                query.chosen = chosen ? at<const int32_t>(chosen) + t * max_chosen : nullptr;
                query.num_chosen = chosen ? int32_t(query.num_visible) : 0;
            }
            queries.push_back(query);
        }
    }
};

}  // namespace

void bind_attention(nb::module_& m) {
    nb::class_<AttendSequence>(m, "AttendSequence")
        .def("__init__",
             [](AttendSequence* self, Address q, Address positions, Address out, int64_t num_queries, Address window, int64_t window_start,
                int64_t window_size) {
                 new (self) AttendSequence{q, positions, out, num_queries, window, window_start, window_size};
             })
        .def("see_rows",
             [](AttendSequence& self, int format, int size, int num_rope, int64_t row_bytes, Address arena, Address pages, int64_t page_bytes,
                int64_t page_rows, Address num_visible, Address chosen, int64_t max_chosen) {
                 RowLayout layout{RowFormat(format), size, num_rope, row_bytes};
                 self.rows = {layout, at<const uint8_t>(arena), pages ? at<const int32_t>(pages) : nullptr, page_bytes, page_rows};
                 self.num_visible = num_visible;
                 self.chosen = chosen;
                 self.max_chosen = max_chosen;
             });
    m.def("attend_scratch", [](int64_t num_queries, int64_t max_visible, int num_heads, int head_dim) {
        return kernels().attention.attend_scratch(num_queries, max_visible, num_heads, head_dim, pool().size());
    });
    m.def(
        "attend",
        [](const std::vector<const AttendSequence*>& sequences, int num_heads, int head_dim, Address sink, Address scratch) {
            std::vector<AttendQuery> queries;
            for (const AttendSequence* sequence : sequences) sequence->add_queries(num_heads, head_dim, queries);
            pool().run([&](const Team& team) {
                kernels().attention.attend(team, queries.data(), int64_t(queries.size()), num_heads, head_dim, at<const float>(sink),
                                           at<float>(scratch));
            });
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pelagos
