// Matrix products with stored weights.
//
// An output is one chain of 16 lanes over the columns (simd.h), whatever path computes it: few rows of x go straight through the
// stored codes (bound by memory), many go through blocks of decoded weights (bound by arithmetic).
#include "linear.h"

#include "linear_decode.h"
#include "norm_rope.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

#if defined(PELAGOS_AVX512)
constexpr int MANY = 6, WIDE = 4;  // rows of x, rows of w of the blocked kernel: 24 of 32 registers are sums
constexpr int FEW = 8;             // rows of x up to which codes are decoded in registers
constexpr int VECTOR_ROWS[FEW + 1] = {0, 8, 8, 4, 4, 3, 3, 2, 2};  // of w, by rows of x
#elif defined(PELAGOS_AVX2)
constexpr int MANY = 3, WIDE = 2;  // a vector is two registers: 12 of 16 are sums
constexpr int FEW = 4;
constexpr int VECTOR_ROWS[FEW + 1] = {0, 4, 2, 2, 1};
#else
constexpr int MANY = 4, WIDE = 2;
constexpr int FEW = 4;
constexpr int VECTOR_ROWS[FEW + 1] = {0, 4, 2, 2, 1};
#endif
constexpr int VECTOR_BLOCK = 8;   // rows of w that one thread takes at a time, with few rows of x
constexpr int ROW_BLOCK = 32, COLUMN_BLOCK = 512, TOKEN_BLOCK = 60;  // of the blocked kernel: 64 KB of weights, 120 KB of x, 120 KB of sums

// Whether one of n codes of E4M3, a multiple of 16, is NaN.
inline bool has_nan_codes(const uint8_t* codes, int64_t n) {
#if defined(PELAGOS_AVX512) || defined(PELAGOS_AVX2)
    const __m128i size = _mm_set1_epi8(0x7f);
    __m128i found = _mm_setzero_si128();
    for (int64_t i = 0; i < n; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i*)(codes + i));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_and_si128(v, size), size));
    }
    return !_mm_testz_si128(found, found);
#else
    bool found = false;
    for (int64_t i = 0; i < n; i++) found |= (codes[i] & 0x7f) == 0x7f;
    return found;
#endif
}

inline const float* row_of(const Product& job, int64_t r) { return job.x + (job.row_ids ? job.row_ids[r] : r) * job.x_stride; }

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
inline __attribute__((always_inline)) void multiply_vectors_of_block(const uint8_t* const (&codes)[R], const float (&scale)[R], int64_t at, int num,
                                                                     const float* const (&x)[T], F16 (&total)[R][T]) {
    constexpr int64_t step = VECTOR_BYTES<F>;
    for (int v = 0; v < num; v++) {
        F16 in[T];
        for (int t = 0; t < T; t++) in[t] = load(x[t] + (at + v) * LANES);
        for (int r = 0; r < R; r++) {
            F16 value = Decoder<F>(scale[r]).load(codes[r] + (at + v) * step);
            for (int t = 0; t < T; t++) total[r][t] = fma(in[t], value, total[r][t]);
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
    F16 total[R][T];
    for (int r = 0; r < R; r++) {
        codes[r] = codes_at(w, n + r, 0);
        if constexpr (HAS_SCALES<F>) scales[r] = RowScales(w, n + r);
    }
    for (int t = 0; t < T; t++) x[t] = row_of(job, t);
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) total[r][t] = zero();
    int64_t num_blocks = w.cols / block, rest = w.cols % block / LANES;
    for (int64_t b = 0; b < num_blocks + (rest > 0); b++) {
        float scale[R] = {};
        for (int r = 0; r < R && HAS_SCALES<F>; r++) scale[r] = scales[r][b];
        if (b < num_blocks)
            multiply_vectors_of_block<F, R, T>(codes, scale, b * vectors, vectors, x, total);
        else
            multiply_vectors_of_block<F, R, T>(codes, scale, b * vectors, int(rest), x, total);
    }
    for (int r = 0; r < R; r++) {
        bool broken = F == Format::fp8 && has_nan_codes(codes[r], w.cols);
        for (int t = 0; t < T; t++) {
            float y = broken ? NAN : sum(total[r][t]);
            job.y[t * job.y_stride + n + r] = job.round ? round_bf16(y) : y;
        }
    }
}

template <Format F, int T>
void multiply_vectors(const Product& job, int64_t begin, int64_t end) {
    constexpr int R = VECTOR_ROWS[T];
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

// sums += x w^T over `count` columns, MANY rows of x and WIDE rows of w [WIDE, COLUMN_BLOCK]; sums of row t lie t * stride vectors on.
inline void multiply_block(const float* const* x, const float* w, int64_t count, float* sums, int64_t stride) {
    F16 total[MANY][WIDE];
    for (int t = 0; t < MANY; t++)
        for (int r = 0; r < WIDE; r++) total[t][r] = load(sums + (t * stride + r) * LANES);
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) {
        F16 weights[WIDE];
        for (int r = 0; r < WIDE; r++) weights[r] = load(w + r * COLUMN_BLOCK + k);
        for (int t = 0; t < MANY; t++) {
            F16 in = load(x[t] + k);
            for (int r = 0; r < WIDE; r++) total[t][r] = fma(in, weights[r], total[t][r]);
        }
    }
    if (k < count)
        for (int t = 0; t < MANY; t++) {
            F16 in = load_n(x[t] + k, int(count - k));
            for (int r = 0; r < WIDE; r++) total[t][r] = fma(in, load(w + r * COLUMN_BLOCK + k), total[t][r]);
        }
    for (int t = 0; t < MANY; t++)
        for (int r = 0; r < WIDE; r++) store(sums + (t * stride + r) * LANES, total[t][r]);
}

// Rows n .. n + num_w of w times rows r .. r + num_x of x, at most ROW_BLOCK and TOKEN_BLOCK.
void multiply_tile(const Product& job, int64_t n, int num_w, int64_t r, int num_x) {
    alignas(64) float weights[ROW_BLOCK * COLUMN_BLOCK];
    alignas(64) float sums[TOKEN_BLOCK * ROW_BLOCK * LANES];
    int wide = (num_w + WIDE - 1) / WIDE * WIDE, many = (num_x + MANY - 1) / MANY * MANY;
    std::memset(sums, 0, sizeof(float) * many * ROW_BLOCK * LANES);
    for (int64_t begin = 0; begin < job.w.cols; begin += COLUMN_BLOCK) {
        int64_t count = std::min<int64_t>(COLUMN_BLOCK, job.w.cols - begin);
        for (int i = 0; i < num_w; i++) decode(job.w, n + i, begin, count, weights + i * COLUMN_BLOCK);
        for (int i = num_w; i < wide; i++) std::memset(weights + i * COLUMN_BLOCK, 0, sizeof(float) * COLUMN_BLOCK);
        for (int t = 0; t < many; t += MANY) {
            const float* x[MANY];
            for (int i = 0; i < MANY; i++) x[i] = row_of(job, r + std::min(t + i, num_x - 1)) + begin;  // what is missing is not read later
            for (int i = 0; i < wide; i += WIDE)
                multiply_block(x, weights + i * COLUMN_BLOCK, count, sums + (t * ROW_BLOCK + i) * LANES, ROW_BLOCK);
        }
    }
    for (int t = 0; t < num_x; t++)
        for (int i = 0; i < num_w; i++) {
            float y = sum(load(sums + (t * ROW_BLOCK + i) * LANES));
            job.y[(r + t) * job.y_stride + n + i] = job.round ? round_bf16(y) : y;
        }
}

// How a product is cut into units of equal cost, in the order rows of w, then tiles of rows of x.
struct Cut {
    bool is_few;
    int64_t row_block, num_tiles, num_units, cost;  // cost of one unit

    explicit Cut(const Product& job) {
        is_few = job.num_rows <= FEW && is_regular(job.w);
        row_block = is_few ? VECTOR_BLOCK : ROW_BLOCK;
        num_tiles = is_few ? 1 : (job.num_rows + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
        num_units = job.num_rows ? (job.w.rows + row_block - 1) / row_block * num_tiles : 0;
        int64_t rows = is_few ? job.num_rows : std::min<int64_t>(TOKEN_BLOCK, job.num_rows);
        cost = row_block * job.w.cols * (code_bits(job.w.format) + 8 * rows);
    }
};

void run_units(const Product& job, const Cut& cut, int64_t begin, int64_t end) {
    if (cut.is_few) return few_rows(job, begin * cut.row_block, std::min(job.w.rows, end * cut.row_block));
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t n = unit / cut.num_tiles * ROW_BLOCK, r = unit % cut.num_tiles * TOKEN_BLOCK;
        multiply_tile(job, n, int(std::min<int64_t>(ROW_BLOCK, job.w.rows - n)), r, int(std::min<int64_t>(TOKEN_BLOCK, job.num_rows - r)));
    }
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
            if (begin < end) run_units(products[p], cut, begin, end);
        }
        at += cut.num_units * cut.cost;
    }
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {linear};

}  // namespace pelagos::PELAGOS_ISA
