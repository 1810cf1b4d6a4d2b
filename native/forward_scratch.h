// Scratch memory of a forward pass: one block, cut up the same way when it is measured and when it is used.
#pragma once

#include <algorithm>
#include <atomic>

#include "forward.h"
#include "linear_pairs.h"
#include "rounding.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

constexpr int MAX_ROW = 1024, MAX_GROUPS = 64;  // head size and output groups; checked where a model is built

// The input of FP8 and FP4 products of a rounding model, also as products of pairs take it. rounded may be x.
inline void round_input(const float* x, int64_t n, float* rounded, float* packed) {
    round_activation(x, n, rounded);
    pack_row(rounded, n, packed);
}

class Cutter {
  public:
    explicit Cutter(void* base) : base_(static_cast<uint8_t*>(base)) {}
    template <class T>
    T* take(int64_t count) {
        int64_t at = used_;
        used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    int64_t used() const { return used_; }

  private:
    uint8_t* base_;
    int64_t used_ = 0;
};

// T tokens, M streams, D width, H heads, C head size, P pair size, E experts, K chosen, F expert width.
struct Scratch {
    float *cos[2], *sin[2];      // [T, R / 2] of either rotation table
    float *z, *pre, *post, *mix; // mHC of the current sub-block
    float *x, *x_rounded, *x_packed;  // [T, D] its normed input, and that as FP8 products take it (round_input)
    float *latent, *latent_rounded, *latent_packed, *q, *row, *values, *gates, *index_values, *index_gates, *index_q, *head_weights;
    float *window;               // [sum of (window - 1 + n), C]
    float *attended, *grouped, *grouped_packed;  // [T, H C], [T, G O]
    float *y;                    // [T, D] a sub-block's output
    float *scores, *weights;     // router: [T, E], [T, K]
    int32_t *chosen, *slot_tokens, *slot_of, *experts_used;  // [T, K], tokens by expert, the inverse, experts with tokens
    float* slot_weights;         // [T, K] by expert
    int32_t *counts;             // [E + 1] first slot of each expert, and a counter of experts used
    float *gate, *up, *expert_out;  // [T (K + 1), F] twice, [T (K + 1), D]
    float *expert_rounded, *expert_packed;  // [T (K + 1), F]
    int32_t *chosen_rows;        // [T, top-k]
    Product* products;
    AttendQuery* queries;
    IndexQuery* index_queries;
    IndexCodes* index_codes;
    Rows *rows, *index_rows;     // per sequence
    int64_t* num_queries;        // one number, written by thread 0
    std::atomic<int32_t>* next_expert;  // one number
    void *attention, *indexer;
};

inline int64_t max_visible(const ForwardJob& job) {
    int64_t most = 0;
    for (int l = 0; l < job.num_layers; l++)
        for (int64_t s = 0; s < job.num_sequences && job.layers[l].ratio; s++) {
            const SequenceStep& step = job.sequences[s];
            most = std::max(most, (step.position + step.stop - step.start) / job.layers[l].ratio);
        }
    return most;
}

inline Scratch cut(const ForwardJob& job, int num_threads, const AttentionKernels& attention, const IndexerKernels& indexer,
                   Cutter& cutter) {
    const ModelShape& m = *job.shape;
    int64_t T = job.num_tokens, D = m.width, heads = int64_t(m.num_heads) * m.head_dim, slots = T * (m.num_chosen + 1);
    int64_t pairs = 0, index_pairs = 0, window = 0;
    for (int l = 0; l < job.num_layers; l++) {
        pairs = std::max<int64_t>(pairs, job.layers[l].compressor.pair_size);
        index_pairs = std::max<int64_t>(index_pairs, job.layers[l].index_compressor.pair_size);
        window = std::max<int64_t>(window, job.layers[l].window);
    }
    Scratch s;
    for (int i = 0; i < 2; i++) {
        s.cos[i] = cutter.take<float>(T * m.rope_dim / 2);
        s.sin[i] = cutter.take<float>(T * m.rope_dim / 2);
    }
    s.z = cutter.take<float>(T * (2 + m.num_streams) * m.num_streams);
    s.pre = cutter.take<float>(T * m.num_streams);
    s.post = cutter.take<float>(T * m.num_streams);
    s.mix = cutter.take<float>(T * m.num_streams * m.num_streams);
    s.x = cutter.take<float>(T * D * (job.draft ? m.num_streams : 1));
    s.x_rounded = cutter.take<float>(T * D * (job.draft ? m.num_streams : 1));
    s.x_packed = cutter.take<float>(T * D * (job.draft ? m.num_streams : 1));
    s.latent = cutter.take<float>(T * m.query_rank);
    s.latent_rounded = cutter.take<float>(T * m.query_rank);
    s.latent_packed = cutter.take<float>(T * m.query_rank);
    s.q = cutter.take<float>(T * heads);
    s.row = cutter.take<float>(T * m.head_dim);
    s.values = cutter.take<float>(T * pairs);
    s.gates = cutter.take<float>(T * pairs);
    s.index_values = cutter.take<float>(T * index_pairs);
    s.index_gates = cutter.take<float>(T * index_pairs);
    s.index_q = cutter.take<float>(T * m.num_index_heads * m.index_head_dim);
    s.head_weights = cutter.take<float>(T * m.num_index_heads);
    s.window = cutter.take<float>((T + job.num_sequences * window) * m.head_dim);
    s.attended = cutter.take<float>(T * heads);
    s.grouped = cutter.take<float>(T * m.num_groups * m.output_rank);
    s.grouped_packed = cutter.take<float>(T * m.num_groups * m.output_rank);
    s.y = cutter.take<float>(T * D * (job.draft ? m.num_streams : 1));
    s.scores = cutter.take<float>(T * m.num_experts);
    s.weights = cutter.take<float>(T * m.num_chosen);
    s.chosen = cutter.take<int32_t>(T * m.num_chosen);
    s.slot_tokens = cutter.take<int32_t>(T * m.num_chosen);
    s.slot_weights = cutter.take<float>(T * m.num_chosen);
    s.slot_of = cutter.take<int32_t>(T * m.num_chosen);
    s.experts_used = cutter.take<int32_t>(m.num_experts);
    s.counts = cutter.take<int32_t>(m.num_experts + 2);
    s.gate = cutter.take<float>(slots * m.expert_dim);
    s.up = cutter.take<float>(slots * m.expert_dim);
    s.expert_rounded = cutter.take<float>(slots * m.expert_dim);
    s.expert_packed = cutter.take<float>(slots * m.expert_dim);
    s.expert_out = cutter.take<float>(slots * D);
    s.chosen_rows = cutter.take<int32_t>(T * m.index_topk);
    s.products = cutter.take<Product>(2 * m.num_experts + m.num_groups + 8);
    s.queries = cutter.take<AttendQuery>(T);
    s.index_queries = cutter.take<IndexQuery>(T);
    s.index_codes = cutter.take<IndexCodes>(m.rounds ? T * m.num_index_heads * (m.index_head_dim / CODE_BLOCK) : 0);
    s.rows = cutter.take<Rows>(job.num_sequences);
    s.index_rows = cutter.take<Rows>(job.num_sequences);
    s.num_queries = cutter.take<int64_t>(1);
    s.next_expert = cutter.take<std::atomic<int32_t>>(1);
    int64_t visible = max_visible(job);
    s.attention = cutter.take<float>(attention.attend_scratch(T, visible, m.num_heads, m.head_dim, num_threads));
    s.indexer = cutter.take<uint8_t>(
        indexer.choose_rows_scratch(T, visible, m.num_index_heads, m.index_head_dim, m.index_topk, num_threads));
    return s;
}

}  // namespace pelagos::PELAGOS_ISA
