#include "linear_pairs.h"

#include "linear_tile.h"

namespace pelagos::PELAGOS_ISA {

namespace {

#if defined(PELAGOS_AVX512)
constexpr int PAIR_ROWS[FEW + 1] = {0, 8, 8, 4, 4, 4, 3, 3, 3};  // of w side by side, by rows of x
#else
constexpr int PAIR_ROWS[FEW + 1] = {0, 4, 2, 2, 1};
#endif
constexpr int REUSE = UNITS == 1 ? 2 : 4;  // rows of x beyond which registers hold the weights of all rows side by side

// Calls f(u, unit) for the 2 UNITS units of 64 columns of a row.
template <Format F, class Use>
inline __attribute__((always_inline)) void each_unit(const Fp8Weights& fp8, const uint8_t* codes, const uint8_t* scales, const Use& use) {
    if constexpr (F == Format::fp8)
        fp8.each(codes, use);
    else
        Fp4Weights::each(codes, scales, use);
}

// 64 N columns from `column` on, N = 1 or 2, under one FP8 scale: R rows of w times T rows of x.
template <Format F, int N, int R, int T>
inline __attribute__((always_inline)) void add_columns(const uint8_t* codes, int64_t stride, const uint8_t* scales, int64_t scale_stride,
                                                       int64_t column, const float* const (&x)[T], F16 (&total)[T][R]) {
    constexpr int bytes = F == Format::fp8 ? 64 : 32;
    Fp8Weights fp8;
    if constexpr (F == Format::fp8) fp8 = Fp8Weights(scales[column / SCALE_COLUMNS]);
    for (int i = 0; i < N; i++, column += 64) {
        const uint8_t *from = codes + column * bytes / 64, *by = scales + column / PAIR_COLUMNS;
        const int64_t packed = packed_at(column);
        // The rows after these lie behind them: what comes next, where the processor's own prefetching sees R streams that end.
        const int64_t ahead = prefetch_distance(R * stride);
        for (int r = 0; r < R && i * bytes % 64 == 0; r++) __builtin_prefetch(from + r * stride + ahead, 0, 2);
        if constexpr (T > REUSE) {  // x is loaded once for all rows of w
            Unit weights[R][2 * UNITS];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                each_unit<F>(fp8, from + r * stride, by + r * scale_stride,
                             [&](int u, Unit weight) __attribute__((always_inline)) { weights[r][u] = weight; });
            for (int u = 0; u < 2 * UNITS; u++)
                for (int t = 0; t < T; t++) {
                    Unit in = load_unit(x[t] + packed + u * LANES);
                    for (int r = 0; r < R; r++) total[t][r] = dot(in, weights[r][u], total[t][r]);
                }
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                each_unit<F>(fp8, from + r * stride, by + r * scale_stride, [&](int u, Unit weight) __attribute__((always_inline)) {
                    for (int t = 0; t < T; t++) total[t][r] = dot(load_unit(x[t] + packed + u * LANES), weight, total[t][r]);
                });
        }
    }
}

template <Format F, int R, int T>
inline void multiply_pairs(const Product& job, int64_t n) {
    const Matrix& w = job.w;
    const uint8_t *codes = codes_at(w, n, 0), *scales = scales_at(w, n);
    const int64_t stride = w.cols * code_bits(F) / 8, scale_stride = R > 1 ? scales_at(w, n + 1) - scales : 0;
    const float* x[T];
    F16 total[T][R];
    for (int t = 0; t < T; t++) x[t] = row_of(job, t);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) total[t][r] = zero();
    int64_t column = 0;
    for (; column + SCALE_COLUMNS <= w.cols; column += SCALE_COLUMNS)
        add_columns<F, 2, R, T>(codes, stride, scales, scale_stride, column, x, total);
    if (column < w.cols) add_columns<F, 1, R, T>(codes, stride, scales, scale_stride, column, x, total);
    for (int t = 0; t < T; t++) put_results(job, t, n, total[t]);
    for (int r = 0; r < R && F == Format::fp8 && UNITS == 2; r++)
        if (has_nan_codes(codes + r * stride, w.cols))
            for (int t = 0; t < T; t++) put_result(job, t, n + r, NAN);
}

template <Format F, int T = 1>
void few_rows_of(const Product& job, int64_t begin, int64_t end) {
    if constexpr (T < FEW)
        if (job.num_rows > T) return few_rows_of<F, T + 1>(job, begin, end);
    constexpr int R = PAIR_ROWS[T];
    for (int64_t n = begin; n < end;) {
        if (n + R <= end && go_together(job.w, n, R)) {
            multiply_pairs<F, R, T>(job, n);
            n += R;
        } else {
            multiply_pairs<F, 1, T>(job, n++);
        }
    }
}

struct Pairs {
    using Vector = Unit;
    static constexpr int COLUMNS = PAIR_COLUMNS / UNITS;  // of a vector
    static constexpr bool HAS_REST = false;
    static Unit get(const float* x) { return load_unit(x); }
    static F16 add(Unit x, Unit w, F16 total) { return dot(x, w, total); }
    static void decode(const Matrix& w, int64_t row, int64_t begin, int count, Unit* to) {
        const uint8_t *codes = codes_at(w, row, begin), *scales = scales_at(w, row);
        for (int i = 0; i < count; i += 64) {
            auto keep = [&](int u, Unit unit) __attribute__((always_inline)) { to[i / COLUMNS + u] = unit; };
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
    if (job.w.format == Format::fp8) return few_rows_of<Format::fp8>(job, begin, end);
    few_rows_of<Format::fp4>(job, begin, end);
}

void tile_pairs(const Product& job, int64_t n, int num_w, int64_t r, int num_x) { multiply_tile<Pairs>(job, n, num_w, r, num_x); }

}  // namespace pelagos::PELAGOS_ISA
