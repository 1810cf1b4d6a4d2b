// Matrix products with stored weights.
//
// An output is one chain of 16 lanes over the columns (linear.h), whatever path computes it: few rows of x go straight through the
// stored codes (bound by memory), many go through blocks of decoded weights (bound by arithmetic).
#include "linear.h"

#include "linear_decode.h"
#include "linear_pairs.h"
#include "linear_tile.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

#if defined(PELAGOS_AVX512)
constexpr int VECTOR_ROWS[FEW + 1] = {0, 8, 8, 4, 4, 4, 3, 3, 3};  // of w, by rows of x
constexpr int PLAIN_ROWS[FEW + 1] = {0, 8, 8, 8, 6, 4, 4, 3, 3};   // where no registers are needed for scales and tables
#else
constexpr int VECTOR_ROWS[FEW + 1] = {0, 4, 2, 2, 1}, PLAIN_ROWS[FEW + 1] = {0, 4, 2, 2, 1};
#endif
// Rows of x up to which they go through the codes, in parts of FEW: beyond, blocks of decoded weights are faster.
#if defined(PELAGOS_AVX512)
constexpr int MOST_FEW = 24, MOST_FEW_PAIRS = 64;
#else
constexpr int MOST_FEW = 24, MOST_FEW_PAIRS = 24;
#endif

// Rows of w that one thread takes at a time, with few rows of x: a multiple of most of the numbers above, so that few are left over.
inline int64_t vector_block(const Product& job) {
    if (job.w.rows >= 512) return 24;
    return job.num_rows <= 3 ? 8 : 12;  // of a small matrix each thread shall have its part
}

// What makes values of the codes of one row and block.
template <Format F>
struct Decoder {
    F16 scale;
    explicit Decoder(float value) : scale(set1(factor<F>(value))) {}
    F16 load(const uint8_t* codes) const {
        if constexpr (F == Format::fp8) return e4m3_halves<false>(codes) * scale;
        return load_codes<F>(codes);
    }
};
template <>
struct Decoder<Format::fp4> : Fp4Values {
    using Fp4Values::Fp4Values;
};

template <Format F>
constexpr int64_t VECTOR_BYTES = LANES * (F == Format::float32 ? 32 : F == Format::bfloat16 ? 16 : F == Format::fp8 ? 8 : 4) / 8;

// `num` vectors of one block: all rows side by side, so that their chains of sums overlap.
template <Format F, int R, int T>
inline __attribute__((always_inline)) void multiply_vectors_of_block(const uint8_t* const (&codes)[R], int64_t stride, const float (&scale)[R],
                                                                     int64_t at, int num, const float* const (&x)[T], F16 (&total)[T][R]) {
    constexpr int64_t step = VECTOR_BYTES<F>;
    for (int v = 0; v < num; v++) {
        // The rows after these lie behind them: what comes next, where the processor's own prefetching sees R streams that end.
        const int64_t ahead = prefetch_distance(R * stride);
        for (int r = 0; r < R && (at + v) * step % 64 == 0; r++) __builtin_prefetch(codes[r] + ahead + (at + v) * step, 0, 2);
        auto in = [&](int t) { return load(x[t] + (at + v) * LANES); };
        auto value = [&](int r) { return Decoder<F>(scale[r]).load(codes[r] + (at + v) * step); };
        if constexpr (R < T) {  // the fewer ones stay in registers
            F16 weights[R];
            for (int r = 0; r < R; r++) weights[r] = value(r);
            for (int t = 0; t < T; t++) {
                F16 input = in(t);
                for (int r = 0; r < R; r++) total[t][r] = fma(input, weights[r], total[t][r]);
            }
        } else {
            F16 inputs[T];
            for (int t = 0; t < T; t++) inputs[t] = in(t);
            for (int r = 0; r < R; r++) {
                F16 weight = value(r);
                for (int t = 0; t < T; t++) total[t][r] = fma(inputs[t], weight, total[t][r]);
            }
        }
    }
}

// R rows of w from row n on, times T rows of x.
template <Format F, int R, int T>
inline void multiply_codes(const Product& job, int64_t n) {
    constexpr int64_t block = BLOCK_COLUMNS<F>;
    constexpr int vectors = int(block / LANES);
    const Matrix& w = job.w;
    const uint8_t* codes[R];
    RowScales scales[R];
    const float* x[T];
    F16 total[T][R];
    for (int r = 0; r < R; r++) {
        codes[r] = codes_at(w, n + r, 0);
        if constexpr (HAS_SCALES<F>) scales[r] = RowScales(w, n + r);
    }
    for (int t = 0; t < T; t++) x[t] = row_of(job, t);
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) total[t][r] = zero();
    const int64_t num_blocks = w.cols / block, rest = w.cols % block / LANES, stride = w.cols * code_bits(F) / 8;
    for (int64_t b = 0; b < num_blocks + (rest > 0); b++) {
        float scale[R] = {};
        for (int r = 0; r < R && HAS_SCALES<F>; r++) scale[r] = scales[r][b];
        if (b < num_blocks)
            multiply_vectors_of_block<F, R, T>(codes, stride, scale, b * vectors, vectors, x, total);
        else
            multiply_vectors_of_block<F, R, T>(codes, stride, scale, b * vectors, int(rest), x, total);
    }
    for (int t = 0; t < T; t++) put_results(job, t, n, total[t]);
    for (int r = 0; r < R && F == Format::fp8; r++)
        if (has_nan_codes(codes[r], w.cols))
            for (int t = 0; t < T; t++) put_result(job, t, n + r, NAN);
}

#if defined(PELAGOS_AVX512_BF16)
// R rows of w from row n on, under one scale a block, times T rows of x: FP8 codes that are BF16 numbers under their scales (can_pair), by
// table, with half the steps of a conversion. NaN codes are NaN.
template <int R, int T>
inline void multiply_tabled(const Product& job, int64_t n) {
    const Matrix& w = job.w;
    const uint8_t *codes = codes_at(w, n, 0), *scales = scales_at(w, n);
    const int64_t ahead = prefetch_distance(R * w.cols);
    const float* x[T];
    F16 total[T][R];
    for (int t = 0; t < T; t++) x[t] = row_of(job, t);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) total[t][r] = zero();
    for (int64_t column = 0; column < w.cols; column += 64) {
        const Fp8Weights fp8(scales[column / SCALE_COLUMNS]);
        for (int r = 0; r < R; r++) {
            const uint8_t* from = codes + r * w.cols + column;
            __builtin_prefetch(from + ahead, 0, 2);
            F16 weights[4];
            fp8.plain(from, weights);
            for (int t = 0; t < T; t++)
                for (int v = 0; v < 4; v++) total[t][r] = fma(load(x[t] + column + v * LANES), weights[v], total[t][r]);
        }
    }
    for (int t = 0; t < T; t++) put_results(job, t, n, total[t]);
}

template <int T>
void multiply_tabled_rows(const Product& job, int64_t begin, int64_t end) {
    constexpr int R = VECTOR_ROWS[T];
    for (int64_t n = begin; n < end;) {
        if (n + R <= end && go_together(job.w, n, R)) {
            multiply_tabled<R, T>(job, n);
            n += R;
        } else {
            multiply_tabled<1, T>(job, n++);
        }
    }
}
#endif

template <Format F, int T>
void multiply_vectors(const Product& job, int64_t begin, int64_t end) {
#if defined(PELAGOS_AVX512_BF16)
    if constexpr (F == Format::fp8)
        if (job.w.pairs) return multiply_tabled_rows<T>(job, begin, end);
#endif
    constexpr int R = HAS_SCALES<F> ? VECTOR_ROWS[T] : PLAIN_ROWS[T];
    int64_t n = begin;
    for (; n + R <= end; n += R) multiply_codes<F, R, T>(job, n);
    for (; n < end; n++) multiply_codes<F, 1, T>(job, n);
}

template <Format F, int T = 1>
void multiply_few(const Product& job, int64_t begin, int64_t end) {
    if constexpr (T < FEW)
        if (job.num_rows > T) return multiply_few<F, T + 1>(job, begin, end);
    multiply_vectors<F, T>(job, begin, end);
}

void few_rows(const Product& job, int64_t begin, int64_t end) {
    switch (job.w.format) {
        case Format::float32: return multiply_few<Format::float32>(job, begin, end);
        case Format::bfloat16: return multiply_few<Format::bfloat16>(job, begin, end);
        case Format::fp8: return multiply_few<Format::fp8>(job, begin, end);
        case Format::fp4: return multiply_few<Format::fp4>(job, begin, end);
    }
}

struct Plain {
    using Vector = F16;
    static constexpr int COLUMNS = LANES;
    static constexpr bool HAS_REST = true;
    static F16 get(const float* x) { return load(x); }
    static F16 add(F16 x, F16 w, F16 total) { return fma(x, w, total); }
    static void decode(const Matrix& w, int64_t row, int64_t begin, int count, F16* to) {
        pelagos::PELAGOS_ISA::decode(w, row, begin, count, reinterpret_cast<float*>(to));
    }
};

// How a product is cut into units of equal cost, in the order rows of w, then tiles of rows of x.
struct Cut {
    bool is_few;
    int64_t row_block, num_tiles, num_units, cost;  // cost of one unit

    explicit Cut(const Product& job) {
        is_few = job.pairs ? job.num_rows <= MOST_FEW_PAIRS : job.num_rows <= MOST_FEW && is_regular(job.w);
        row_block = is_few ? vector_block(job) : ROW_BLOCK;
        num_tiles = is_few ? 1 : (job.num_rows + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
        num_units = job.num_rows ? (job.w.rows + row_block - 1) / row_block * num_tiles : 0;
        int64_t rows = is_few ? job.num_rows : std::min<int64_t>(TOKEN_BLOCK, job.num_rows);
        cost = row_block * job.w.cols * (code_bits(job.w.format) + (job.pairs ? 4 * UNITS : 8) * rows);
    }
};

Product part_of(const Product& job, int64_t first, int64_t last) {  // rows of x
    Product part = job;
    part.num_rows = last - first;
    part.y += first * job.y_stride;
    if (job.row_ids)
        part.row_ids += first;
    else
        part.x += first * job.x_stride;
    return part;
}

void run_units(const Product& job, const Cut& cut, int64_t begin, int64_t end) {
    if (cut.is_few) {
        auto few = job.pairs ? few_pairs : few_rows;
        if (job.num_rows <= FEW) return few(job, begin * cut.row_block, std::min(job.w.rows, end * cut.row_block));
        for (int64_t unit = begin; unit < end; unit++)  // what the first rows of x have read of w, the next ones find in the cache
            for (int64_t first = 0; first < job.num_rows; first += FEW)
                few(part_of(job, first, std::min<int64_t>(job.num_rows, first + FEW)), unit * cut.row_block,
                    std::min(job.w.rows, (unit + 1) * cut.row_block));
        return;
    }
    auto tile = job.pairs ? tile_pairs : multiply_tile<Plain>;
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t n = unit / cut.num_tiles * ROW_BLOCK, r = unit % cut.num_tiles * TOKEN_BLOCK;
        tile(job, n, int(std::min<int64_t>(ROW_BLOCK, job.w.rows - n)), r, int(std::min<int64_t>(TOKEN_BLOCK, job.num_rows - r)));
    }
}

// The first rows of a matrix, which nothing would fetch before they are wanted. Scales come by themselves.
void prefetch_start(const Product& job) {
    const uint8_t* codes = static_cast<const uint8_t*>(job.w.codes);
    const int64_t size = std::min(prefetch_distance(0), job.w.rows * job.w.cols * code_bits(job.w.format) / 8);
    for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(codes + i, 0, 2);
}

void linear(const Team& team, const Product* products, int num_products) {
    int64_t total = 0, at = 0;
    for (int p = 0; p < num_products; p++) {
        Cut cut(products[p]);
        total += cut.num_units * cut.cost;
    }
    int64_t from = total / team.size * team.index, to = team.index + 1 == team.size ? total : total / team.size * (team.index + 1);
    for (int p = 0; p < num_products; p++) {
        Cut cut(products[p]);
        auto unit_at = [&](int64_t place) {  // the first unit that starts at or behind a place of all costs
            return std::min(cut.num_units, std::max<int64_t>(0, (place - at + cut.cost - 1) / cut.cost));
        };
        if (cut.num_units && to > at) {
            int64_t begin = from <= at ? 0 : unit_at(from), end = unit_at(to);
            const bool is_last = p + 1 == num_products || at + cut.num_units * cut.cost >= to;
            if (begin < end && !is_last) prefetch_start(products[p + 1]);
            if (begin < end) run_units(products[p], cut, begin, end);
        }
        at += cut.num_units * cut.cost;
    }
}

void pack_rows(const Team& team, const float* x, int64_t rows, int64_t n, float* packed) {
    Range mine = team.share(rows);
    for (int64_t i = mine.begin; i < mine.end; i++) pack_row(x + i * n, n, packed + i * n);
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {linear, pack_rows};

}  // namespace pelagos::PELAGOS_ISA
