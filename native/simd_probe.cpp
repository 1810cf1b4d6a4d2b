#include "simd_probe.h"

#include "row_sums.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

using Step = void (*)(const void* a, const void* b, void* out, int64_t i);

template <F16 (*f)(F16)>
void unary(const void* a, const void*, void* out, int64_t i) {
    store((float*)out + 16 * i, f(load((const float*)a + 16 * i)));
}

template <F16 (*f)(F16, F16)>
void binary(const void* a, const void* b, void* out, int64_t i) {
    store((float*)out + 16 * i, f(load((const float*)a + 16 * i), load((const float*)b + 16 * i)));
}

template <float (*f)(F16)>
void reduce(const void* a, const void*, void* out, int64_t i) {
    ((float*)out)[i] = f(load((const float*)a + 16 * i));
}

// Of blocks that come in multiples of NUM.
template <int NUM>
void reduce_many(const void* a, const void*, void* out, int64_t i) {
    F16 rows[NUM];
    for (int r = 0; r < NUM; r++) rows[r] = load((const float*)a + 16 * (i / NUM * NUM + r));
    float t[16];
    store(t, lane_sums(rows));
    ((float*)out)[i] = t[i % NUM];
}

void each_exp1(const void* a, const void*, void* out, int64_t i) {
    for (int64_t k = 16 * i; k < 16 * i + 16; k++) ((float*)out)[k] = exp1(((const float*)a)[k]);
}
void decode_bf16(const void* a, const void*, void* out, int64_t i) {
    store((float*)out + 16 * i, load_bf16((const uint16_t*)a + 16 * i));
}
void encode_bf16(const void* a, const void*, void* out, int64_t i) {
    store_bf16((uint16_t*)out + 16 * i, load((const float*)a + 16 * i));
}
void decode_e4m3(const void* a, const void*, void* out, int64_t i) {
    store((float*)out + 16 * i, load_e4m3((const uint8_t*)a + 16 * i));
}
void encode_e4m3(const void* a, const void*, void* out, int64_t i) {
    store_bytes((uint8_t*)out + 16 * i, to_e4m3(load((const float*)a + 16 * i)));
}
// The first i % 17 numbers of each block are read, and the first (i / 17) % 17 of what was read are written.
void partial(const void* a, const void*, void* out, int64_t i) {
    store_n((float*)out + 16 * i, load_n((const float*)a + 16 * i, int(i % 17)), int(i / 17 % 17));
}

struct Entry {
    const char* name;
    Step step;
};

F16 difference(F16 a, F16 b) { return a - b; }
F16 product(F16 a, F16 b) { return a * b; }
F16 quotient(F16 a, F16 b) { return a / b; }
F16 added(F16 a, F16 b) { return a + b; }
F16 fused(F16 a, F16 b) { return fma(a, b, a); }
F16 smaller_first(F16 a, F16 b) { return select(less(a, b), a, b); }
F16 whole(F16 a) { return to_float(to_int(a)); }

constexpr Entry TABLE[] = {
    // float32 -> float32
    {"exp", unary<exp>},
    {"sigmoid", unary<sigmoid>},
    {"sqrt", unary<sqrt>},
    {"nearest", unary<nearest>},
    {"whole", unary<whole>},
    {"abs", unary<abs>},
    {"round_bf16", unary<round_bf16>},
    {"exp1", each_exp1},
    {"partial", partial},
    // float32, float32 -> float32
    {"add", binary<added>},
    {"subtract", binary<difference>},
    {"multiply", binary<product>},
    {"divide", binary<quotient>},
    {"fma", binary<fused>},  // a * b + a
    {"min", binary<min>},
    {"max", binary<max>},
    {"select", binary<smaller_first>},
    // 16 float32 -> one float32
    {"sum", reduce<sum>},
    {"sums_2", reduce_many<2>},
    {"sums_3", reduce_many<3>},
    {"sums_4", reduce_many<4>},
    {"sums_6", reduce_many<6>},
    {"sums_8", reduce_many<8>},
    {"sums_10", reduce_many<10>},
    {"sums_12", reduce_many<12>},
    {"sums_15", reduce_many<15>},
    {"sums_16", reduce_many<16>},
    {"largest", reduce<max>},
    // bfloat16 or E4M3 codes -> float32, and back
    {"decode_bf16", decode_bf16},
    {"encode_bf16", encode_bf16},
    {"decode_e4m3", decode_e4m3},
    {"encode_e4m3", encode_e4m3},
};

bool apply(const char* name, const void* a, const void* b, void* out, int64_t num_blocks) {
    for (const Entry& entry : TABLE) {
        if (std::strcmp(name, entry.name) != 0) continue;
        for (int64_t i = 0; i < num_blocks; i++) entry.step(a, b, out, i);
        return true;
    }
    return false;
}

}  // namespace

extern const SimdKernels simd_kernels;
const SimdKernels simd_kernels = {apply};

}  // namespace pelagos::PELAGOS_ISA
