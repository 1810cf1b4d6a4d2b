#include "bindings.h"

#include <nanobind/stl/tuple.h>

#include <mutex>
#include <tuple>

namespace pelagos {

namespace {

// row of the logits, temperature, top_k, top_p, min_p, seed, choice, position, address of what is allowed
using Wanted = std::tuple<int64_t, double, uint64_t, double, double, uint64_t, uint64_t, uint64_t, Address>;

struct Chooser {
    std::mutex busy;  // one call at a time has the scratch memory
    std::vector<float> scratch;
    std::vector<TokenChoice> rows;
};

}  // namespace

void bind_sampling(nb::module_& m) {
    m.def("choose_tokens", [](Address logits, int64_t vocab_size, const std::vector<Wanted>& wanted) {
        static Chooser chooser;
        std::vector<int32_t> tokens(wanted.size());
        nb::gil_scoped_release released;
        std::lock_guard<std::mutex> hold(chooser.busy);
        chooser.rows.clear();
        for (const auto& [row, temperature, top_k, top_p, min_p, seed, choice, position, allowed] : wanted)
            chooser.rows.push_back({at<const float>(logits) + row * vocab_size, at<const uint8_t>(allowed), temperature, top_p, min_p, top_k, seed,
                                    choice, position});
        const SamplingKernels& chosen = kernels().sampling;
        const size_t needed = size_t(chosen.choose_scratch(vocab_size, pool().size()));
        if (chooser.scratch.size() < needed) chooser.scratch.resize(needed);
        auto choose = [&](const Team& team) {
            chosen.choose(team, chooser.rows.data(), int64_t(wanted.size()), vocab_size, chooser.scratch.data(), tokens.data());
        };
        if (wanted.size() == 1)
            choose(Team(0, 1, nullptr));  // one thread has all of it, so no other is woken
        else
            pool().run(choose);
        return tokens;
    });
}

}  // namespace pelagos
