// What tests need beside the ops: the functions of simd.h, and the pool.
#include <cstring>

#include "bindings.h"

namespace pelagos {

namespace {

// Starts `num_regions` regions with `num_barriers` barriers each. Before a barrier every thread writes its place in a line, behind it
// every thread reads the whole line. Returns how many places held something else than that round's number.
int64_t count_missed(int num_regions, int num_barriers) {
    std::vector<uint32_t> line(1024);
    std::atomic<int64_t> num_missed{0};
    uint32_t round = 0;
    for (int region = 0; region < num_regions; region++) {
        pool().run([&, first = round](const Team& team) {
            for (int i = 1; i <= num_barriers; i++) {
                line[team.index] = first + i;
                team.wait();
                for (int t = 0; t < team.size; t++) num_missed += line[t] != first + i;
                team.wait();
            }
        });
        round += num_barriers;
    }
    return num_missed;
}

// The bits of 2^-130 halved in every thread: 0 in one that flushes subnormals.
std::vector<uint32_t> half_of_a_subnormal() {
    std::vector<uint32_t> halves(pool().size());
    pool().run([&](const Team& team) {
        volatile float x = 0x1p-130f;
        float half = x * 0.5f;
        std::memcpy(&halves[team.index], &half, sizeof half);
    });
    return halves;
}

std::vector<std::pair<int64_t, int64_t>> shares(int64_t n, int64_t grain) {
    std::vector<std::pair<int64_t, int64_t>> parts(pool().size());
    pool().run([&](const Team& team) {
        Range mine = team.share(n, grain);
        parts[team.index] = {mine.begin, mine.end};
    });
    return parts;
}

}  // namespace

void bind_tests(nb::module_& m) {
    m.def("simd", [](const std::string& name, Address a, Address b, Address out, int64_t num_blocks) {
        if (!kernels().simd.apply(name.c_str(), at<const void>(a), at<const void>(b), at<void>(out), num_blocks))
            throw nb::value_error("no such function");
    });
    m.def("count_missed", &count_missed, nb::call_guard<nb::gil_scoped_release>());
    m.def("half_of_a_subnormal", &half_of_a_subnormal, nb::call_guard<nb::gil_scoped_release>());
    m.def("shares", &shares, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace pelagos
