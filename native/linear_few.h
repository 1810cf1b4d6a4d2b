// Products with few rows of x, straight through the stored codes: T rows of x times R rows of w side by side, all R T sums in registers.
// A Reader says how codes become vectors:
//   Vector, get(x, column, v), add(in, weight, total)   what is multiplied: vector v of the part of x that begins at `column`
//   COLUMNS, VECTORS         columns that are read at once, a part, and the vectors that they make
//   PARTS                    parts of a block, which begin(scales, column) prepares
//   ROWS[T]                  rows of w side by side
//   HAS_SCALES, SHARES_SCALES                           whether there are scales, and whether those of a block are those of all rows side by side
//   LOSES_NAN                NaN codes do not become NaN
//   IS_PLAIN                 vectors are of float32
//   read(codes, scales, column, part)                   the part of a row that begins at `column`, a Part
//   weight(part, v)                                     vector v of it
#pragma once

#include <algorithm>

#include "linear.h"
#include "linear_decode.h"
#include "norm_rope.h"
#include "row_sums.h"
#include "simd.h"
#include "unroll.h"

namespace pelagos::PELAGOS_ISA {

#if defined(PELAGOS_AVX512)
constexpr int FEW = 8;           // rows of x up to which codes are decoded in registers
constexpr bool HAS_ROOM = true;  // registers hold the weights of several rows beside the sums
#elif defined(PELAGOS_GENERIC)
constexpr int FEW = 2;  // not made for speed: fewer kernels to compile
constexpr bool HAS_ROOM = false;
#else
constexpr int FEW = 4;
constexpr bool HAS_ROOM = false;
#endif

constexpr int64_t NEAREST_CACHE = 32 << 10;  // bytes of it, of which the rest is left to other things

// How far ahead the codes of R rows side by side are fetched, in the order of memory, which is what memory gives fastest. Line c of row r
// is read as number c R + r and fetched as number r C + c, so the last row's first line comes with the least lead: 4 KB, which is what
// memory gives while one line is waited for.
inline int64_t fetch_lead(int rows, int64_t row_bytes) { return rows * row_bytes + std::max<int64_t>(0, 4096 - row_bytes); }

inline const float* row_of(const Product& job, int64_t r) { return job.x + (job.row_ids ? job.row_ids[r] : r) * job.x_stride; }

inline void put_result(const Product& job, int64_t row, int64_t column, float y) {
    job.y[row * job.y_stride + column] = job.round ? round_bf16(y) : y;
}

// The sums of T rows of y, R neighbours each, from column n on.
template <int R, int T>
inline PELAGOS_INLINE void put_totals(const Product& job, int64_t n, const F16 (&total)[T][R]) {
    constexpr int together = std::min(T, LANES / R);  // rows of y whose sums fit into a vector
    repeat<(T + together - 1) / together>([&](auto part) PELAGOS_INLINE {
        constexpr int first = part * together, num = std::min(together, T - first);
        F16 rows[num * R];
        repeat<num>([&](auto t) PELAGOS_INLINE {
            repeat<R>([&](auto r) PELAGOS_INLINE { rows[t * R + r] = total[first + t][r]; });
        });
        F16 y = lane_sums(rows);
        alignas(64) float sums[LANES];
        store(sums, job.round ? round_bf16(y) : y);
        for (int t = 0; t < num; t++) std::memcpy(job.y + (first + t) * job.y_stride + n, sums + t * R, R * sizeof(float));
    });
}

// Rows of w in memory: line r is `stride` bytes behind line 0, its scales `scale_stride` behind those of line 0.
struct Lines {
    const uint8_t* codes;
    int64_t stride;
    const uint8_t* scales;
    int64_t scale_stride;
    const uint8_t* line(int r) const { return codes + r * stride; }
    const uint8_t* scales_of(int r) const { return scales + r * scale_stride; }
};

// Makes the compiler load a vector once, where it would fold the load into each of its uses.
template <class Vector>
inline PELAGOS_INLINE void hold(Vector& a) {
#if defined(PELAGOS_AVX512)
    asm("" : "+v"(a.v));
#else
    (void)a;
#endif
}

template <class Reader, int R, int T>
inline PELAGOS_INLINE void add_part(const Reader& reader, const Lines& w, int64_t column, const float* const (&x)[T],
                                                    F16 (&total)[T][R]) {
    using Vector = typename Reader::Vector;
    constexpr int V = Reader::VECTORS;
    if constexpr (R > 1 && R < T && HAS_ROOM) {  // x is loaded once for all rows of w
        typename Reader::Part parts[R];
        repeat<R>([&](auto r) PELAGOS_INLINE { reader.read(w.line(r), w.scales_of(r), column, parts[r]); });
        repeat<V>([&](auto v) PELAGOS_INLINE {
            Vector weights[R];
            repeat<R>([&](auto r) PELAGOS_INLINE { weights[r] = Reader::weight(parts[r], v); });
            repeat<T>([&](auto t) PELAGOS_INLINE {
                Vector in = Reader::get(x[t], column, v);
                if constexpr (R == 2 && Reader::IS_PLAIN) hold(in);
                repeat<R>([&](auto r) PELAGOS_INLINE { total[t][r] = Reader::add(in, weights[r], total[t][r]); });
            });
        });
    } else {
        repeat<R>([&](auto r) PELAGOS_INLINE {
            typename Reader::Part part;
            reader.read(w.line(r), w.scales_of(r), column, part);
            repeat<V>([&](auto v) PELAGOS_INLINE {
                const Vector weight = Reader::weight(part, v);
                repeat<T>([&](auto t) PELAGOS_INLINE {
                    total[t][r] = Reader::add(Reader::get(x[t], column, v), weight, total[t][r]);
                });
            });
        });
    }
}

// All columns of R rows of w times T rows of x.
template <class Reader, int R, int T>
inline PELAGOS_INLINE void multiply_lines(Reader& reader, const Product& job, const Lines& w, int64_t n,
                                                          const float* const (&x)[T]) {
    constexpr int64_t block = Reader::COLUMNS * Reader::PARTS;
    const int64_t cols = job.w.cols, whole = cols / block * block, ahead = fetch_lead(R, w.stride);
    // Codes of FP4 are those of experts, of which the next token wants others (but for the shared one): they take no place in the farther
    // caches.
    const bool is_passing = Reader::BITS == 4 && !job.is_part;
    F16 total[T][R];
    repeat<T>([&](auto t) PELAGOS_INLINE {
        repeat<R>([&](auto r) PELAGOS_INLINE { total[t][r] = zero(); });
    });
    for (int64_t column = 0; column < whole; column += block) {
        // The rows after these lie behind them: what comes next, where the processor's own prefetching sees R streams that end.
        constexpr int64_t bytes = block * Reader::BITS / 8;
        const int64_t at = column * Reader::BITS / 8;
        if (bytes >= 64 || at % 64 == 0)
            repeat<R>([&](auto r) PELAGOS_INLINE {
                for (int64_t i = 0; i < bytes; i += 64) {
                    const uint8_t* where = w.codes + ahead + (at + i) * R + r * 64;
                    if (is_passing)
                        __builtin_prefetch(where, 0, 0);
                    else
                        __builtin_prefetch(where, 0, 2);
                }
            });
        reader.begin(w.scales, column);
#pragma GCC unroll 4
        for (int part = 0; part < Reader::PARTS; part++) add_part<Reader, R, T>(reader, w, column + part * Reader::COLUMNS, x, total);
    }
    if (whole < cols) reader.begin(w.scales, whole);
    for (int64_t column = whole; column < cols; column += Reader::COLUMNS) add_part<Reader, R, T>(reader, w, column, x, total);
    put_totals<R, T>(job, n, total);
    for (int r = 0; r < R && Reader::LOSES_NAN; r++)
        if (has_nan_codes(w.line(r), cols))
            for (int t = 0; t < T; t++) put_result(job, t, n + r, NAN);
}

// Rows begin .. end of w, R at a time; returns the first that is left over.
template <class Reader, int R, int T>
inline int64_t multiply_rows(Reader& reader, const Product& job, Lines w, int64_t begin, int64_t end, const float* const (&x)[T]) {
    for (; begin + R <= end; begin += R, w.codes += R * w.stride, w.scales += R * w.scale_stride)
        multiply_lines<Reader, R, T>(reader, job, w, begin, x);
    return begin;
}

template <class Reader, int T>
inline void multiply_few(const Product& job, int64_t begin, int64_t end) {
    const Matrix& w = job.w;
    Reader reader(w);
    const float* x[T];
    for (int t = 0; t < T; t++) x[t] = row_of(job, t);
    // Rows of x that the nearest cache does not hold are read for more rows of w at once, although fewer registers are left then.
    constexpr int64_t x_bytes = T * Reader::VECTORS * LANES * int64_t(sizeof(float)) / Reader::COLUMNS;
    const bool is_wide = T > 6 && x_bytes * w.cols > NEAREST_CACHE;
    while (begin < end) {  // rows that share their scales, or whose scales lie one row behind another
        const bool has_blocks = Reader::HAS_SCALES && (Reader::SHARES_SCALES || w.block_rows > 1);
        int64_t stop = has_blocks ? std::min(end, begin + w.block_rows - (w.first_row + begin) % w.block_rows) : end;
        auto rows = [&](auto num) {
            Lines lines = {codes_at(w, begin, 0), w.cols * Reader::BITS / 8, Reader::HAS_SCALES ? scales_at(w, begin) : nullptr,
                           Reader::HAS_SCALES && !has_blocks ? scale_row_bytes(w) : 0};
            begin = multiply_rows<Reader, num, T>(reader, job, lines, begin, stop, x);
        };
        if constexpr (T > 6)
            if (is_wide) rows(std::integral_constant<int, 3>());
        rows(std::integral_constant<int, Reader::ROWS[T]>());
        rows(std::integral_constant<int, 1>());
    }
}

template <class Reader, int T = 1>
inline void multiply_any_few(const Product& job, int64_t begin, int64_t end) {
    if constexpr (T < FEW)
        if (job.num_rows > T) return multiply_any_few<Reader, T + 1>(job, begin, end);
    multiply_few<Reader, T>(job, begin, end);
}

}  // namespace pelagos::PELAGOS_ISA
