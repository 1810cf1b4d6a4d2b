#include "bindings.h"

namespace pelagos {

namespace {

struct Queries {
    std::vector<IndexQuery> all;
    std::vector<IndexCodes> codes;

    // rows: packed rows of one sequence. Queries are compared as codes if rows are codes and they have their form.
    Queries(const Rows& rows, Address q, Address weights, Address num_visible, int64_t num_queries, int H, int C) {
        const float* numbers = at<const float>(q);
        bool coded = rows.layout.format == RowFormat::index_fp4 && C % CODE_BLOCK == 0;
        codes.resize(coded ? num_queries * H * (C / CODE_BLOCK) : 0);
        for (int64_t i = 0; coded && i < num_queries * H; i++)
            coded = kernels().indexer.encode(numbers + i * C, C, codes.data() + i * (C / CODE_BLOCK));
        for (int64_t t = 0; t < num_queries; t++)
            all.push_back({numbers + t * H * C, coded ? codes.data() + t * H * (C / CODE_BLOCK) : nullptr, at<const float>(weights) + t * H, &rows,
                           at<const int64_t>(num_visible)[t], nullptr, 0});
    }
};

}  // namespace

void bind_indexer(nb::module_& m) {
    m.def(
        "index_scores",
        [](const RowLayout& layout, Address rows, Address q, Address weights, Address num_visible, int64_t num_queries, int H, Address scores,
           int64_t stride) {
            Rows all{layout, at<const uint8_t>(rows), nullptr, layout.bytes, 1};
            Queries queries(all, q, weights, num_visible, num_queries, H, layout.size);
            pool().run([&](const Team& team) {
                kernels().indexer.index_scores(team, queries.all.data(), num_queries, H, layout.size, at<float>(scores), stride);
            });
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "top_rows",
        [](Address scores, int64_t stride, Address num_visible, int64_t num_queries, int k, Address chosen) {
            pool().run([&](const Team& team) {
                kernels().indexer.top_rows(team, at<const float>(scores), stride, at<const int64_t>(num_visible), num_queries, k, at<int32_t>(chosen));
            });
        },
        nb::call_guard<nb::gil_scoped_release>());
    // pages: [pages] int32, page_rows rows each, or 0. chosen: [T, k], -1 behind what a query has.
    m.def(
        "choose_rows",
        [](const RowLayout& layout, Address arena, Address pages, int64_t page_rows, Address q, Address weights, Address num_visible,
           int64_t num_queries, int H, int k, Address chosen) {
            Rows all{layout, at<const uint8_t>(arena), at<const int32_t>(pages), page_rows * layout.bytes, page_rows};
            Queries queries(all, q, weights, num_visible, num_queries, H, layout.size);
            int64_t most = 0;
            for (int64_t t = 0; t < num_queries; t++) {
                queries.all[t].chosen = at<int32_t>(chosen) + t * k;
                most = std::max(most, queries.all[t].num_visible);
            }
            const IndexerKernels& chosen_kernels = kernels().indexer;
            std::vector<uint8_t> scratch(chosen_kernels.choose_rows_scratch(num_queries, most, H, layout.size, k, pool().size()) + 64);
            pool().run([&](const Team& team) {
                chosen_kernels.choose_rows(team, queries.all.data(), num_queries, H, layout.size, k, scratch.data());
            });
            for (auto& query : queries.all) std::fill(query.chosen + query.num_chosen, query.chosen + k, -1);
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pelagos
