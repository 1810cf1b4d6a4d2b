// The attention half of a layer, in phases with a barrier behind each.
#pragma once

#include "compressor.h"
#include "forward_scratch.h"
#include "index_scores.h"
#include "norm_rope.h"
#include "rounding.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

extern const LinearKernels linear_kernels;
extern const AttentionKernels attention_kernels;
extern const IndexerKernels indexer_kernels;

// What every phase of a pass is given.
struct Pass {
    const Team& team;
    const ForwardJob& job;
    const ModelShape& shape;
    const Scratch& s;
};

// Rows of numbers that products take, and the same numbers packed for products of pairs (nullptr: they are not rounded).
struct Input {
    const float *plain, *packed;
    Input(const float* x, const float* packed_x = nullptr) : plain(x), packed(packed_x) {}
    const float* of(const Matrix& w) const { return pairs(w) ? packed : plain; }
    bool pairs(const Matrix& w) const { return w.pairs && packed; }
    Input from(int64_t floats) const { return {plain + floats, packed ? packed + floats : nullptr}; }  // a later row
};

inline Product product(const Matrix& w, const Input& x, int64_t num_rows, float* y, bool round) {
    return {w, x.of(w), w.cols, nullptr, num_rows, y, w.rows, round, x.pairs(w)};
}

// Position and sequence of every token of this thread's share: work(token, sequence, position).
template <class Work>
inline void each_token(const Pass& p, const Work& work) {
    Range mine = p.team.share(p.job.num_tokens);
    for (int64_t i = 0; i < p.job.num_sequences; i++) {
        const SequenceStep& step = p.job.sequences[i];
        for (int64_t t = std::max(mine.begin, step.start); t < std::min(mine.end, step.stop); t++)
            work(t, i, step.position + t - step.start);
    }
}

// Whether each thread keeps to tokens of its own from write_streams to the end of read_streams, and of routing: then no barrier lies
// between, and their streams stay in its cache. Of fewer tokens than this the products would read their weights too often.
inline bool is_by_token(const Pass& p) { return p.job.num_tokens >= 2 * p.team.size; }

// y = x W^T for the tokens of this thread's share.
inline void multiply_own(const Pass& p, const Matrix& w, const float* x, float* y) {
    const Team alone(0, 1, nullptr);
    const Range mine = p.team.share(p.job.num_tokens);
    Product own = product(w, x + mine.begin * w.cols, mine.end - mine.begin, y + mine.begin * w.rows, false);
    linear_kernels.linear(alone, &own, 1);
}

inline int64_t window_rows(const Layer& layer, const SequenceStep& step) {  // rows of the ring that new tokens may see
    return std::min<int64_t>(step.position, layer.window - 1);
}

// Where a token's pair lies: among the new ones, or in the tail of the open window.
inline const float* pair_of(const float* fresh, const SequenceStep& step, const CompressorWeights& c, int ratio, int64_t position,
                            int part) {
    if (position >= step.position) return fresh + (step.start + position - step.position) * c.pair_size;
    const float* tail = reinterpret_cast<const float*>(step.block + c.tail_at);
    return tail + (position % ratio * 2 + part) * c.pair_size;
}

// Row number `number` of a sequence, from the pairs of its window (and, with overlap, of the one before).
inline void close_window(const Pass& p, const Layer& layer, const CompressorWeights& c, const SequenceStep& step, const float* values,
                         const float* gates, int64_t number, bool is_index, const Rows& rows) {
    const float *value_of[256], *gate_of[256];
    int m = layer.ratio, num_slots = 0;
    bool overlap = c.pair_size > c.size;
    for (int j = 0; overlap && j < m; j++, num_slots++) {
        int64_t at = (number - 1) * m + j;
        const float* kept = reinterpret_cast<const float*>(step.block + c.overlap_at) + j * 2 * c.size;
        bool is_kept = number - 1 < step.position / m;  // closed before this batch
        value_of[num_slots] = at < 0 ? nullptr : is_kept ? kept : pair_of(values, step, c, m, at, 0);
        gate_of[num_slots] = at < 0 ? nullptr : is_kept ? kept + c.size : pair_of(gates, step, c, m, at, 1);
    }
    int64_t second = overlap ? c.size : 0;
    for (int j = 0; j < m; j++, num_slots++) {
        value_of[num_slots] = pair_of(values, step, c, m, number * m + j, 0) + second;
        gate_of[num_slots] = pair_of(gates, step, c, m, number * m + j, 1) + second;
    }
    float row[MAX_ROW], cos[MAX_ROW / 2], sin[MAX_ROW / 2];
    pool_window(value_of, gate_of, num_slots, 0, c.size, row);
    if (p.shape.bf16) round_all(row, c.size);
    rms_norm(row, c.norm, c.size, p.shape.norm_eps, row, p.shape.bf16);
    int half = p.shape.rope_dim / 2;
    rotation(number * m, p.shape.frequencies[layer.rotation], half, cos, sin);
    rotate(row + c.size - 2 * half, cos, sin, half, false, p.shape.bf16);
    if (p.shape.rounds) {  // before the row is stored, so that its bits do not depend on the format that it lies in
        if (is_index)
            round_index(row, c.size, p.shape.bf16);
        else
            round_row(row, c.size, p.shape.rope_dim);
    }
    store_row(c.layout, row, const_cast<uint8_t*>(rows.row(number)));
}

// Rows of all windows that the new tokens close, shared among the team.
inline void close_windows(const Pass& p, const Layer& layer, const CompressorWeights& c, const float* values, const float* gates,
                          bool is_index, const Rows* rows) {
    int64_t item = 0;
    for (int64_t i = 0; i < p.job.num_sequences; i++) {
        const SequenceStep& step = p.job.sequences[i];
        int64_t stop = (step.position + step.stop - step.start) / layer.ratio;
        for (int64_t number = step.position / layer.ratio; number < stop; number++, item++)
            if (item % p.team.size == (is_index ? p.team.size - 1 - p.team.index : p.team.index))
                close_window(p, layer, c, step, values, gates, number, is_index, rows[i]);
    }
}

// The pairs of the last m tokens, which hold those of the open window also after some tokens were dropped again, and first halves of the
// last closed window, into the sequence's memory.
inline void keep_pairs(const CompressorWeights& c, int m, const SequenceStep& step, const float* values, const float* gates) {
    int64_t end = step.position + step.stop - step.start, closed = end / m;
    float* tail = reinterpret_cast<float*>(step.block + c.tail_at);
    if (c.pair_size > c.size && closed > step.position / m) {
        float* kept = reinterpret_cast<float*>(step.block + c.overlap_at);
        for (int j = 0; j < m; j++) {
            int64_t at = (closed - 1) * m + j;
            std::memcpy(kept + j * 2 * c.size, pair_of(values, step, c, m, at, 0), c.size * sizeof(float));
            std::memcpy(kept + (j * 2 + 1) * c.size, pair_of(gates, step, c, m, at, 1), c.size * sizeof(float));
        }
    }
    for (int64_t at = std::max(end - m, step.position); at < end; at++) {
        std::memcpy(tail + at % m * 2 * c.pair_size, pair_of(values, step, c, m, at, 0), c.pair_size * sizeof(float));
        std::memcpy(tail + (at % m * 2 + 1) * c.pair_size, pair_of(gates, step, c, m, at, 1), c.pair_size * sizeof(float));
    }
}

inline Input rounded_x(const Pass& p) { return p.shape.rounds ? Input(p.s.x_rounded, p.s.x_packed) : Input(p.s.x); }

// Whether some new token sees more rows than are chosen. If none does, all see all rows, and nobody asks the index.
inline bool asks_index(const Pass& p, const Layer& layer) {
    auto asks = [&](const SequenceStep& step) { return (step.position + step.stop - step.start) / layer.ratio > p.shape.index_topk; };
    return layer.has_index && std::any_of(p.job.sequences, p.job.sequences + p.job.num_sequences, asks);
}

inline void first_products(const Pass& p, const Layer& layer) {
    int64_t T = p.job.num_tokens;
    Input x = rounded_x(p);
    Product jobs[7] = {product(layer.wq_a, x, T, p.s.latent, p.shape.bf16), product(layer.wkv, x, T, p.s.row, p.shape.bf16)};
    int num = 2;
    if (layer.ratio) {
        jobs[num++] = product(layer.compressor.wkv, p.s.x, T, p.s.values, false);
        jobs[num++] = product(layer.compressor.wgate, p.s.x, T, p.s.gates, false);
    }
    if (layer.has_index) {
        jobs[num++] = product(layer.index_compressor.wkv, p.s.x, T, p.s.index_values, false);
        jobs[num++] = product(layer.index_compressor.wgate, p.s.x, T, p.s.index_gates, false);
        if (asks_index(p, layer)) jobs[num++] = product(layer.index_weights, p.s.x, T, p.s.head_weights, false);
    }
    linear_kernels.linear(p.team, jobs, num);
}

inline void add_position_bias(float* gates, const CompressorWeights& c, int ratio, int64_t position) {
    const float* bias = c.ape + position % ratio * c.pair_size;
    for (int64_t i = 0; i < c.pair_size; i++) gates[i] += bias[i];
}

// The query latent, the window row and the gates of every token.
inline void finish_projections(const Pass& p, const Layer& layer) {
    const ModelShape& m = p.shape;
    int half = m.rope_dim / 2;
    each_token(p, [&](int64_t t, int64_t, int64_t position) {
        float* latent = p.s.latent + t * m.query_rank;
        rms_norm(latent, layer.q_norm, m.query_rank, m.norm_eps, latent, m.bf16);
        if (m.rounds) round_input(latent, m.query_rank, p.s.latent_rounded + t * m.query_rank, p.s.latent_packed + t * m.query_rank);
        float* row = p.s.row + t * m.head_dim;
        rms_norm(row, layer.kv_norm, m.head_dim, m.norm_eps, row, m.bf16);
        rotate(row + m.head_dim - m.rope_dim, p.s.cos[layer.rotation] + t * half, p.s.sin[layer.rotation] + t * half, half, false, m.bf16);
        if (m.rounds) round_row(row, m.head_dim, m.rope_dim);
        if (layer.ratio) add_position_bias(p.s.gates + t * layer.compressor.pair_size, layer.compressor, layer.ratio, position);
        if (layer.has_index)
            add_position_bias(p.s.index_gates + t * layer.index_compressor.pair_size, layer.index_compressor, layer.ratio, position);
    });
}

// Query projections; beside them the windows that are now complete.
inline void second_products(const Pass& p, const Layer& layer) {
    Input latent = p.shape.rounds ? Input(p.s.latent_rounded, p.s.latent_packed) : Input(p.s.latent);
    Product jobs[2] = {product(layer.wq_b, latent, p.job.num_tokens, p.s.q, p.shape.bf16)};
    const bool with_index = asks_index(p, layer);
    if (with_index) jobs[1] = product(layer.index_wq_b, latent, p.job.num_tokens, p.s.index_q, p.shape.bf16);
    linear_kernels.linear(p.team, jobs, with_index ? 2 : 1);
    if (layer.ratio) close_windows(p, layer, layer.compressor, p.s.values, p.s.gates, false, p.s.rows);
    if (layer.has_index) close_windows(p, layer, layer.index_compressor, p.s.index_values, p.s.index_gates, true, p.s.index_rows);
}

// Whether the rows of a ring are seen by several new tokens, so that it pays to lay them out once.
inline bool gathers(const SequenceStep& step) { return step.stop - step.start > 1; }

// Window rows of each sequence in one piece: those of the ring, then the new ones.
inline void gather_window(const Pass& p, const Layer& layer) {
    const int64_t C = p.shape.head_dim;
    float* to = p.s.window;
    for (int64_t i = 0; i < p.job.num_sequences; i++) {
        const SequenceStep& step = p.job.sequences[i];
        if (!gathers(step)) continue;
        int64_t old = window_rows(layer, step), n = step.stop - step.start;
        Range mine = p.team.share(old + n);
        for (int64_t j = mine.begin; j < mine.end; j++) {
            const uint8_t* ring = step.block + layer.window_at;
            if (j < old)
                load_row(layer.window_layout, ring + (step.position - old + j) % (layer.window - 1) * layer.window_layout.bytes, to + j * C);
            else
                std::memcpy(to + j * C, p.s.row + (step.start + j - old) * C, C * sizeof(float));
        }
        to += (old + n) * C;
    }
}

// Whether index queries and rows are compared as codes.
inline bool has_codes(const Pass& p, const Layer& layer) {
    return p.shape.rounds && layer.index_compressor.layout.format == RowFormat::index_fp4 && p.shape.index_head_dim % CODE_BLOCK == 0;
}

// Norm and rotation of query heads and index heads; one item is one head of one token.
inline void finish_queries(const Pass& p, const Layer& layer) {
    const ModelShape& m = p.shape;
    int64_t half = m.rope_dim / 2, num_index = asks_index(p, layer) ? m.num_index_heads : 0, per_token = m.num_heads + num_index;
    const int64_t num_blocks = m.index_head_dim / CODE_BLOCK;
    Range mine = p.team.share(p.job.num_tokens * per_token);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t t = item / per_token, head = item % per_token;
        const float *cos = p.s.cos[layer.rotation] + t * half, *sin = p.s.sin[layer.rotation] + t * half;
        if (head < m.num_heads) {
            float* q = p.s.q + (t * m.num_heads + head) * m.head_dim;
            head_norm(q, m.head_dim, m.norm_eps, q, m.bf16);
            rotate(q + m.head_dim - m.rope_dim, cos, sin, half, false, m.bf16);
        } else {
            int64_t h = head - m.num_heads;
            float* q = p.s.index_q + (t * num_index + h) * m.index_head_dim;
            rotate(q + m.index_head_dim - m.rope_dim, cos, sin, half, false, m.bf16);
            if (m.rounds) round_index(q, m.index_head_dim, m.bf16);
            if (has_codes(p, layer)) encode_query(q, m.index_head_dim, p.s.index_codes + (t * num_index + h) * num_blocks);
            float* weight = p.s.head_weights + t * num_index + h;
            *weight = *weight * (1.0f / std::sqrt(float(m.index_head_dim))) * (1.0f / std::sqrt(float(num_index)));
        }
    }
}

// Where each sequence's compressed rows lie. Written by thread 0.
inline void locate_rows(const Pass& p, const Layer& layer, int number) {
    for (int64_t i = 0; layer.ratio && i < p.job.num_sequences; i++) {
        const SequenceStep& step = p.job.sequences[i];
        const LayerMemory& memory = step.memory[number];
        int64_t page_rows = PAGE_TOKENS / layer.ratio;
        p.s.rows[i] = {layer.compressor.layout, memory.rows, step.pages, memory.row_page_bytes, page_rows};
        p.s.index_rows[i] = {layer.index_compressor.layout, memory.index_rows, step.pages, memory.index_page_bytes, page_rows};
    }
}

// What each query sees. Written by thread 0: a query that sees more rows than top-k gets an IndexQuery.
inline void plan_queries(const Pass& p, const Layer& layer) {
    const ModelShape& m = p.shape;
    const float* window = p.s.window;
    int64_t num_index = 0;
    for (int64_t i = 0; i < p.job.num_sequences; i++) {
        const SequenceStep& step = p.job.sequences[i];
        int64_t old = window_rows(layer, step);
        for (int64_t t = step.start; t < step.stop; t++) {
            int64_t position = step.position + t - step.start, first = std::max<int64_t>(0, position - layer.window + 1);
            AttendQuery& query = p.s.queries[t];
            query = {};
            query.q = p.s.q + t * m.num_heads * m.head_dim;
            if (gathers(step)) {
                query.window = window + (first - (step.position - old)) * m.head_dim;
            } else {
                query.window = p.s.row + t * m.head_dim;
                query.ring = step.block + layer.window_at;
                query.ring_layout = &layer.window_layout;
                query.num_slots = layer.window - 1;
            }
            query.window_position = first;
            query.num_window = int32_t(position - first + 1);
            query.out = p.s.attended + t * m.num_heads * m.head_dim;
            query.num_pairs = m.rope_dim / 2;
            query.cos = p.s.cos[layer.rotation] + t * query.num_pairs;
            query.sin = p.s.sin[layer.rotation] + t * query.num_pairs;
            query.round = m.bf16;
            if (!layer.ratio) continue;
            query.rows = p.s.rows + i;
            query.num_visible = (position + 1) / layer.ratio;
            if (!layer.has_index || query.num_visible <= m.index_topk) continue;
            int32_t* chosen = p.s.chosen_rows + t * m.index_topk;
            const int64_t head = t * m.num_index_heads;
            p.s.index_queries[num_index++] = {p.s.index_q + head * m.index_head_dim,
                                              has_codes(p, layer) ? p.s.index_codes + head * (m.index_head_dim / CODE_BLOCK) : nullptr,
                                              p.s.head_weights + head,
                                              p.s.index_rows + i,
                                              query.num_visible,
                                              chosen,
                                              0};
            query.chosen = chosen;
            query.num_chosen = m.index_topk;
        }
        if (gathers(step)) window += (old + step.stop - step.start) * m.head_dim;
    }
    *p.s.num_queries = num_index;
}

// New window rows into the rings, open windows into the tails: one sequence at a time, shared among the team.
inline void keep_state(const Pass& p, const Layer& layer) {
    for (int64_t i = p.team.index; i < p.job.num_sequences; i += p.team.size) {
        const SequenceStep& step = p.job.sequences[i];
        int64_t n = step.stop - step.start, ring = layer.window - 1;
        for (int64_t j = std::max<int64_t>(0, n - ring); j < n; j++)
            store_row(layer.window_layout, p.s.row + (step.start + j) * p.shape.head_dim,
                      step.block + layer.window_at + (step.position + j) % ring * layer.window_layout.bytes);
        if (layer.ratio) keep_pairs(layer.compressor, layer.ratio, step, p.s.values, p.s.gates);
        if (layer.has_index) keep_pairs(layer.index_compressor, layer.ratio, step, p.s.index_values, p.s.index_gates);
    }
}

inline void grouped_output(const Pass& p, const Layer& layer) {
    const ModelShape& m = p.shape;
    Product jobs[MAX_GROUPS];
    int64_t inner = layer.wo_a.cols;
    for (int g = 0; g < m.num_groups; g++) {
        Matrix w = rows_of(layer.wo_a, int64_t(g) * m.output_rank, int64_t(g + 1) * m.output_rank);
        jobs[g] = {w, p.s.attended + g * inner, m.num_groups * inner, nullptr, p.job.num_tokens, p.s.grouped + g * m.output_rank,
                   int64_t(m.num_groups) * m.output_rank, m.bf16};
    }
    linear_kernels.linear(p.team, jobs, m.num_groups);
}

inline void round_grouped(const Pass& p) {  // groups of 128 numbers, so any multiple of them may be a thread's share
    int64_t size = int64_t(p.shape.num_groups) * p.shape.output_rank, blocks = (size + 127) / 128;
    Range mine = p.team.share(p.job.num_tokens * blocks);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t begin = item % blocks * 128;
        float *x = p.s.grouped + item / blocks * size + begin, *packed = p.s.grouped_packed + item / blocks * size + packed_at(begin);
        round_input(x, std::min<int64_t>(128, size - begin), x, packed);
    }
}

// y = attention(x), [T, D], and the sequences' memory advanced.
inline void attention_block(const Pass& p, const Layer& layer, int number) {
    const Team& team = p.team;
    if (team.index == 0) locate_rows(p, layer, number);
    first_products(p, layer);
    team.wait();
    finish_projections(p, layer);
    team.wait();
    second_products(p, layer);
    gather_window(p, layer);
    if (team.index == team.size - 1) plan_queries(p, layer);
    team.wait();
    finish_queries(p, layer);
    team.wait();
    if (*p.s.num_queries > 0) {
        indexer_kernels.choose_rows(team, p.s.index_queries, *p.s.num_queries, p.shape.num_index_heads, p.shape.index_head_dim,
                                    p.shape.index_topk, p.s.indexer);
        team.wait();
    }
    attention_kernels.attend(team, p.s.queries, p.job.num_tokens, p.shape.num_heads, p.shape.head_dim, layer.sink,
                             static_cast<float*>(p.s.attention));
    team.wait();
    grouped_output(p, layer);
    keep_state(p, layer);  // not before: queries read the rings
    team.wait();
    if (p.shape.rounds) {
        round_grouped(p);
        team.wait();
    }
    Input grouped = p.shape.rounds ? Input(p.s.grouped, p.s.grouped_packed) : Input(p.s.grouped);
    Product last = product(layer.wo_b, grouped, p.job.num_tokens, p.s.y, p.shape.bf16);
    linear_kernels.linear(team, &last, 1);
    team.wait();
}

}  // namespace pelagos::PELAGOS_ISA
