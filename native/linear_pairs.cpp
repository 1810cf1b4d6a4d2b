#include "linear_pairs.h"

#include "linear_tile.h"

namespace pelagos::PELAGOS_ISA {

namespace {

template <Format F>
struct PairReader {
    using Vector = Unit;
    struct Part { Unit of[2]; };
    static constexpr bool IS_FP8 = F == Format::fp8;
    static constexpr int BITS = IS_FP8 ? 8 : 4, COLUMNS = READ_COLUMNS, PARTS = SCALE_COLUMNS / COLUMNS, VECTORS = 2;
    static constexpr bool HAS_SCALES = true, SHARES_SCALES = IS_FP8, LOSES_NAN = IS_FP8 && UNITS == 2, IS_PLAIN = false;
#if defined(PELAGOS_AVX512_BF16)
    static constexpr int ROWS[] = {0, 8, 8, 4, 4, 4, 2, 2, 2};
#elif defined(PELAGOS_AVX512)
    static constexpr int ROWS[] = {0, 8, 8, 4, 4, 2, 2, 2, 2};
#else
    static constexpr int ROWS[] = {0, 4, 2, 2, 1};
#endif
    Fp8Weights fp8;
    explicit PairReader(const Matrix&) {}
    void begin(const uint8_t* scales, int64_t column) {
        if constexpr (IS_FP8) fp8 = Fp8Weights(scales[column / SCALE_COLUMNS]);
    }
    inline PELAGOS_INLINE void read(const uint8_t* codes, const uint8_t* scales, int64_t column, Part& part) const {
        auto keep = [&](auto u, Unit unit) PELAGOS_INLINE { part.of[u] = unit; };
        if constexpr (IS_FP8)
            fp8.each(codes + column, keep);
        else
            Fp4Weights::each(codes + column / 2, scales + column / PAIR_COLUMNS, keep);
    }
    static Unit weight(const Part& part, int v) { return part.of[v]; }
    static Unit get(const float* x, int64_t column, int v) { return load_unit(x + packed_at(column) + v * LANES); }
    static F16 add(Unit x, Unit w, F16 total) { return dot(x, w, total); }
};

struct Pairs {
    using Vector = Unit;
    static constexpr int COLUMNS = PAIR_COLUMNS / UNITS;  // of a vector
    static constexpr bool HAS_REST = false;
    static Unit get(const float* x) { return load_unit(x); }
    static F16 add(Unit x, Unit w, F16 total) { return dot(x, w, total); }
    static void decode(const Matrix& w, int64_t row, int64_t begin, int count, Unit* to) {
        const uint8_t *codes = codes_at(w, row, begin), *scales = scales_at(w, row);
        for (int i = 0; i < count; i += READ_COLUMNS) {
            auto keep = [&](auto u, Unit unit) PELAGOS_INLINE { to[i / COLUMNS + u] = unit; };
            if (w.format == Format::fp8)
                Fp8Weights(scales[(begin + i) / SCALE_COLUMNS]).each(codes + i, keep);
            else
                Fp4Weights::each(codes + i / 2, scales + (begin + i) / PAIR_COLUMNS, keep);
        }
#if !defined(PELAGOS_AVX512_BF16)
        if (w.format == Format::fp8 && has_nan_codes(codes, count)) to[0] = set1(NAN);
#endif
    }
};

}  // namespace

void few_pairs(const Product& job, int64_t begin, int64_t end) {
    if (job.w.format == Format::fp8) return multiply_any_few<PairReader<Format::fp8>>(job, begin, end);
    multiply_any_few<PairReader<Format::fp4>>(job, begin, end);
}

void tile_pairs(const Product& job, int64_t n, int num_w, int64_t r, int num_x) { multiply_tile<Pairs>(job, n, num_w, r, num_x); }

}  // namespace pelagos::PELAGOS_ISA
