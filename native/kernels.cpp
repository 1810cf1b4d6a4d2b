#include "kernels.h"

#include <atomic>
#include <stdexcept>

#if defined(PELAGOS_HAS_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pelagos {

namespace generic { Kernels table(); }
namespace avx2 { Kernels table(); }
namespace avx512 { Kernels table(); }
namespace avx512_bf16 { Kernels table(); }
namespace neon { Kernels table(); }

namespace {

// What each instruction set's sources are compiled with, see CMakeLists.txt.
#if defined(PELAGOS_HAS_AVX2)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("f16c");
}
#endif
#if defined(PELAGOS_HAS_AVX512) || defined(PELAGOS_HAS_AVX512_BF16)
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif
#if defined(PELAGOS_HAS_AVX512_BF16)
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}
#endif
#if defined(PELAGOS_HAS_NEON)
bool has_neon() {  // with dot products, which every Apple processor has
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;
#endif
}
#endif

struct Build {
    const char* isa;
    bool (*runs_here)();
    Kernels (*table)();
};

constexpr Build BUILDS[] = {  // best first
#if defined(PELAGOS_HAS_AVX512_BF16)
    {"avx512_bf16", has_avx512_bf16, avx512_bf16::table},
#endif
#if defined(PELAGOS_HAS_AVX512)
    {"avx512", has_avx512, avx512::table},
#endif
#if defined(PELAGOS_HAS_AVX2)
    {"avx2", has_avx2, avx2::table},
#endif
#if defined(PELAGOS_HAS_NEON)
    {"neon", has_neon, neon::table},
#endif
    {"generic", [] { return true; }, generic::table},
};

const std::vector<Kernels>& all() {
    static const std::vector<Kernels> tables = [] {
        std::vector<Kernels> found;
        for (const Build& build : BUILDS)
            if (build.runs_here()) found.push_back(build.table());
        return found;
    }();
    return tables;
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> pointer{&all().front()};
    return pointer;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_acquire); }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const auto& table : all()) names.emplace_back(table.isa);
    return names;
}

std::vector<std::string> compiled_isas() {
    std::vector<std::string> names;
    for (const Build& build : BUILDS) names.emplace_back(build.isa);
    return names;
}

void use_isa(const std::string& name) {
    for (const auto& table : all()) {
        if (name == table.isa) {
            chosen().store(&table, std::memory_order_release);
            return;
        }
    }
    throw std::invalid_argument("this processor or build has no instruction set " + name);
}

}  // namespace pelagos
