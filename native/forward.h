// The whole forward pass of a batch: weights, state and scratch of the caller, one region of the pool.
#pragma once

#include "attention.h"
#include "indexer.h"
#include "linear.h"
#include "pool.h"
#include "types.h"

namespace pelagos {

constexpr int PAGE_TOKENS = 128;

// Parameters of one sub-block's residual streams; fn [(2 + M) M, M D] (of the output head: [M, M D]).
struct StreamWeights {
    Matrix fn;
    const float* base = nullptr;
    const float* scale = nullptr;
};

// Every `ratio` tokens become one row of `size` numbers. pair_size: of a token's value, and of its gate (2 * size with overlap).
struct CompressorWeights {
    Matrix wkv, wgate;
    const float* ape = nullptr;   // [ratio, pair_size]
    const float* norm = nullptr;  // [size]
    int32_t size = 0, pair_size = 0;
    RowLayout layout;
    // Where the sequence's block of memory has the pairs of the open window, [ratio, 2, pair_size] float32, and (with overlap) the first
    // halves of the last closed one, [ratio, 2, size].
    int64_t tail_at = 0, overlap_at = 0;
};

struct Layer {
    int32_t window = 0, ratio = 0;  // ratio 0: window rows alone
    bool has_index = false, by_hash = false;
    int32_t rotation = 0;  // which of the model's two tables
    RowLayout window_layout;
    int64_t window_at = 0;  // the ring of the last window - 1 rows, row of position t in slot t % (window - 1)
    StreamWeights hc_attn, hc_ffn;
    const float *attn_norm = nullptr, *ffn_norm = nullptr, *q_norm = nullptr, *kv_norm = nullptr, *sink = nullptr;
    Matrix wq_a, wq_b, wkv, wo_a, wo_b;
    CompressorWeights compressor, index_compressor;
    Matrix index_wq_b, index_weights;
    Matrix gate;
    const float* gate_bias = nullptr;
    const int32_t* expert_of_token = nullptr;  // [V, K], of hash routers
    Matrix shared_w1, shared_w2, shared_w3;
    const Matrix *w1 = nullptr, *w2 = nullptr, *w3 = nullptr;  // [E]
};

// The multi-token-prediction block's own parts, beside its Layer.
struct Draft {
    const float *enorm = nullptr, *hnorm = nullptr;
    Matrix e_proj, h_proj;
};

struct ModelShape {
    int32_t num_streams = 0, width = 0, num_heads = 0, head_dim = 0, rope_dim = 0, query_rank = 0, num_groups = 0, output_rank = 0;
    int32_t num_index_heads = 0, index_head_dim = 0, index_topk = 0, num_experts = 0, num_chosen = 0, expert_dim = 0;
    float routed_factor = 1, limit = 0, norm_eps = 0, hc_eps = 0;
    bool has_limit = false;
    int32_t sinkhorn_iterations = 0;
    bool rounds = false;  // the served model's low-precision steps
    bool bf16 = false;    // activations are BF16 values
    const float* frequencies[2] = {};
    Matrix embed, head;
};

// Memory of the compressed rows of one layer: page p of a sequence lies at arena + p * page_bytes.
struct LayerMemory {
    uint8_t* rows;
    int64_t row_page_bytes;
    uint8_t* index_rows;
    int64_t index_page_bytes;
};

// New tokens start .. stop of the batch belong to one sequence, the first one at `position`.
struct SequenceStep {
    int64_t start, stop, position;
    const int32_t* pages;  // page numbers in the arenas; nullptr: 0, 1, 2, ...
    uint8_t* block;        // window ring, tails and overlaps of all layers
    const LayerMemory* memory;  // one per layer
};

struct ForwardJob {
    const ModelShape* shape;
    const Layer* layers;
    int32_t num_layers;
    const int32_t* token_ids;  // [T]
    int64_t num_tokens;
    const SequenceStep* sequences;
    int64_t num_sequences;
    float* streams;  // [T, M, D]: out; with `draft`: in (streams after the last main layer) and out
    const Draft* draft;
};

struct OutputJob {
    const ModelShape* shape;
    const StreamWeights* hc_head;
    const float* norm;
    const float* streams;      // [*, M, D]
    const int32_t* token_rows; // [N]: which of them
    int64_t num_rows;
    float* hidden;  // [N, D] scratch
    float* logits;  // [N, V]
};

struct ForwardKernels {
    // Advances every sequence's memory by its tokens. No barrier behind.
    void (*forward)(const Team& team, const ForwardJob& job, void* scratch);
    int64_t (*forward_scratch)(const ForwardJob& job, int num_threads);  // bytes
    void (*output)(const Team& team, const OutputJob& job, void* scratch);
    int64_t (*output_scratch)(const OutputJob& job);  // bytes
};

}  // namespace pelagos
