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

// Values of stored codes, 16 columns at a time, or, where registers hold a table of a scale's values, a block of FP4.
template <Format F>
struct PlainReader {
    using Vector = F16;
    static constexpr int BITS = F == Format::float32 ? 32 : F == Format::bfloat16 ? 16 : F == Format::fp8 ? 8 : 4;
    static constexpr int VECTORS = F == Format::fp4 && HAS_ROOM ? 2 : 1, COLUMNS = VECTORS * LANES;
    static constexpr int PARTS = F == Format::fp8 ? 4 : F == Format::bfloat16 || (F == Format::fp4 && !HAS_ROOM) ? 2 : 1;
    struct Part { F16 of[VECTORS]; };
    static constexpr bool HAS_SCALES = pelagos::PELAGOS_ISA::HAS_SCALES<F>, SHARES_SCALES = false, LOSES_NAN = F == Format::fp8, IS_PLAIN = true;
#if defined(PELAGOS_AVX512)
    static constexpr int ROWS[] = {0, 8, 8, 4, 4, 4, 4, 2, 2};
#else
    static constexpr int ROWS[] = {0, 4, 2, 2, 1};
#endif
    bool has_floats;
    explicit PlainReader(const Matrix& w) : has_floats(w.float_scales) {}
    void begin(const uint8_t*, int64_t) {}
    inline PELAGOS_INLINE void read(const uint8_t* row, const uint8_t* scales, int64_t column, Part& part) const {
        const uint8_t* codes = row + column * BITS / 8;
        if constexpr (F == Format::fp8) {
            part.of[0] = e4m3_halves<false>(codes) * set1(factor<F>(scale_of_block(scales, column / BLOCK_COLUMNS<F>, has_floats)));
        } else if constexpr (F == Format::fp4) {
            const Fp4Values values(scale_of_block(scales, column / BLOCK_COLUMNS<F>, has_floats));
            for (int v = 0; v < VECTORS; v++) part.of[v] = values.load(codes + v * LANES / 2);
        } else {
            part.of[0] = load_codes<F>(codes);
        }
    }
    static F16 weight(const Part& part, int v) { return part.of[v]; }
    static F16 get(const float* x, int64_t column, int v) { return load(x + column + v * LANES); }
    static F16 add(F16 x, F16 w, F16 total) { return fma(x, w, total); }
};

#if defined(PELAGOS_AVX512_BF16)
// FP8 codes that are BF16 numbers under their scales (can_pair), by table, with half the steps of a conversion. NaN codes are NaN.
struct TableReader {
    using Vector = F16;
    using Part = Fp8Table::Values;
    static constexpr int BITS = 8, COLUMNS = 64, VECTORS = 4, PARTS = SCALE_COLUMNS / COLUMNS;
    static constexpr bool HAS_SCALES = true, SHARES_SCALES = true, LOSES_NAN = false, IS_PLAIN = true;
    static constexpr int ROWS[] = {0, 8, 8, 4, 4, 2, 2, 2, 2};
    Fp8Table fp8;
    explicit TableReader(const Matrix&) {}
    void begin(const uint8_t* scales, int64_t column) { fp8 = Fp8Table(scales[column / SCALE_COLUMNS]); }
    void read(const uint8_t* codes, const uint8_t*, int64_t column, Part& part) const { part = fp8.values(codes + column); }
    static F16 weight(const Part& part, int v) { return part[v]; }
    static F16 get(const float* x, int64_t column, int v) { return load(x + column + v * LANES); }
    static F16 add(F16 x, F16 w, F16 total) { return fma(x, w, total); }
};
#endif

void few_rows(const Product& job, int64_t begin, int64_t end) {
    switch (job.w.format) {
        case Format::float32: return multiply_any_few<PlainReader<Format::float32>>(job, begin, end);
        case Format::bfloat16: return multiply_any_few<PlainReader<Format::bfloat16>>(job, begin, end);
        case Format::fp8:
#if defined(PELAGOS_AVX512_BF16)
            if (job.w.pairs) return multiply_any_few<TableReader>(job, begin, end);
#endif
            return multiply_any_few<PlainReader<Format::fp8>>(job, begin, end);
        case Format::fp4: return multiply_any_few<PlainReader<Format::fp4>>(job, begin, end);
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
        const bool has_whole_parts = is_regular(job.w) && (job.w.format != Format::fp4 || job.w.cols % 32 == 0);
        is_few = job.pairs ? job.num_rows <= MOST_FEW_PAIRS : job.num_rows <= MOST_FEW && has_whole_parts;
        row_block = is_few ? vector_block(job) : ROW_BLOCK;
        num_tiles = is_few ? 1 : (job.num_rows + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
        num_units = job.num_rows ? (job.w.rows + row_block - 1) / row_block * num_tiles : 0;
        int64_t rows = is_few ? job.num_rows : std::min<int64_t>(TOKEN_BLOCK, job.num_rows);
        cost = row_block * job.w.cols * (code_bits(job.w.format) + (job.pairs ? 4 * UNITS : 8) * rows);
    }
};

Product part_of(const Product& job, int64_t first, int64_t last) {  // rows of x
    Product part = job;
    part.is_part = true;
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

void prefetch(const void* memory, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const uint8_t*>(memory) + i, 0, 2);
}

// The first rows of a matrix, which nothing would fetch before they are wanted, and their scales, which come by themselves later on.
void prefetch(const Matrix& w) {
    const int64_t row_bytes = w.cols * code_bits(w.format) / 8;
    prefetch(w.codes, std::min({fetch_lead(8, row_bytes), w.rows * row_bytes, int64_t(8192)}));
    if (w.scales) prefetch(scales_at(w, 0), std::min<int64_t>(1024, (w.rows + w.block_rows - 1) / w.block_rows * scale_row_bytes(w)));
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
            if (begin < end && !is_last) prefetch(products[p + 1].w);
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
const LinearKernels linear_kernels = {linear, prefetch, pack_rows};

}  // namespace pelagos::PELAGOS_ISA
