#include "kernels.h"

#include <stdexcept>

namespace pelagos {

namespace generic { Kernels table(); }
#if defined(PELAGOS_HAS_X86)
namespace avx2 { Kernels table(); }
namespace avx512 { Kernels table(); }
#elif defined(PELAGOS_HAS_NEON)
namespace neon { Kernels table(); }
#endif

namespace {

std::vector<Kernels> find() {
    std::vector<Kernels> found;
#if defined(PELAGOS_HAS_X86)
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (has_avx2 && has_avx512) found.push_back(avx512::table());
    if (has_avx2) found.push_back(avx2::table());
#elif defined(PELAGOS_HAS_NEON)
    found.push_back(neon::table());
#endif
    found.push_back(generic::table());
    return found;
}

const std::vector<Kernels>& all() {
    static const std::vector<Kernels> tables = find();
    return tables;
}

const Kernels*& chosen() {
    static const Kernels* pointer = &all().front();
    return pointer;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const auto& table : all()) names.emplace_back(table.isa);
    return names;
}

void use_isa(const std::string& name) {
    for (const auto& table : all()) {
        if (name == table.isa) {
            chosen() = &table;
            return;
        }
    }
    throw std::invalid_argument("this processor or build has no instruction set " + name);
}

}  // namespace pelagos
