// A forward pass: embedding, layers, and (apart) the output head. All threads run this code side by side.
#include "forward.h"

#include "forward_attention.h"
#include "forward_moe.h"
#include "mhc.h"

namespace pelagos::PELAGOS_ISA {

namespace {

void rotations(const Pass& p) {
    int half = p.shape.rope_dim / 2;
    each_token(p, [&](int64_t t, int64_t, int64_t position) {
        for (int i = 0; i < 2; i++)
            if (p.shape.frequencies[i]) rotation(position, p.shape.frequencies[i], half, p.s.cos[i] + t * half, p.s.sin[i] + t * half);
    });
}

void embedding(const Pass& p, int64_t t, float* to) {
    const Matrix& w = p.shape.embed;
    int64_t D = w.cols, id = p.job.token_ids[t];
    if (w.format == Format::bfloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(w.codes) + id * D;
        int64_t i = 0;
        for (; i + LANES <= D; i += LANES) store(to + i, load_bf16(from + i));
        for (; i < D; i++) {
            uint32_t value = uint32_t(from[i]) << 16;
            std::memcpy(to + i, &value, 4);
        }
    } else {
        std::memcpy(to, static_cast<const float*>(w.codes) + id * D, D * sizeof(float));
        if (p.shape.bf16) round_all(to, D);
    }
}

void embed(const Pass& p) {
    int64_t D = p.shape.width, M = p.shape.num_streams;
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        float* streams = p.job.streams + t * M * D;
        embedding(p, t, streams);
        for (int64_t j = 1; j < M; j++) std::memcpy(streams + j * D, streams, D * sizeof(float));
    });
}

// Streams of the draft block: h_proj(hnorm(stream)) + e_proj(enorm(embedding of the next token)).
void join_draft(const Pass& p) {
    const ModelShape& m = p.shape;
    const Draft& draft = *p.job.draft;
    int64_t D = m.width, M = m.num_streams, T = p.job.num_tokens;
    Input x = rounded_x(p);
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        for (int64_t j = 0; j < M; j++) {
            float* normed = p.s.x + (t * M + j) * D;
            rms_norm(p.job.streams + (t * M + j) * D, draft.hnorm, D, m.norm_eps, normed, m.bf16);
            if (m.rounds) round_input(normed, D, p.s.x_rounded + (t * M + j) * D, p.s.x_packed + (t * M + j) * D);
        }
    });
    p.team.wait();
    Product streams = product(draft.h_proj, x, T * M, p.job.streams, m.bf16);
    linear_kernels.linear(p.team, &streams, 1);
    p.team.wait();
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        float* embedded = p.s.x + t * D;
        embedding(p, t, embedded);
        rms_norm(embedded, draft.enorm, D, m.norm_eps, embedded, m.bf16);
        if (m.rounds) round_input(embedded, D, p.s.x_rounded + t * D, p.s.x_packed + t * D);
    });
    p.team.wait();
    Product next = product(draft.e_proj, x, T, p.s.y, m.bf16);
    linear_kernels.linear(p.team, &next, 1);
    p.team.wait();
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        for (int64_t j = 0; j < M; j++) {
            float* stream = p.job.streams + (t * M + j) * D;
            for (int64_t i = 0; i < D; i++) stream[i] = p.s.y[t * D + i] + stream[i];
            if (m.bf16) round_all(stream, D);
        }
    });
    p.team.wait();
}

// The normed input x of a sub-block, and the weights of its output. No barrier behind.
void read_streams(const Pass& p, const StreamWeights& w, const float* norm) {
    const ModelShape& m = p.shape;
    int64_t D = m.width, M = m.num_streams, T = p.job.num_tokens;
    if (is_by_token(p)) {
        multiply_own(p, w.fn, p.job.streams, p.s.z);
    } else {
        Product z = product(w.fn, p.job.streams, T, p.s.z, false);
        linear_kernels.linear(p.team, &z, 1);
        p.team.wait();
    }
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        const float* streams = p.job.streams + t * M * D;
        float *pre = p.s.pre + t * M, *x = p.s.x + t * D;
        mhc_weights(p.s.z + t * w.fn.rows, mean_square(streams, M * D), w.base, w.scale, int(M), m.norm_eps, m.hc_eps, m.sinkhorn_iterations,
                    pre, p.s.post + t * M, p.s.mix + t * M * M);
        mhc_collapse(streams, pre, int(M), D, 0, D, x, m.bf16);
        rms_norm(x, norm, D, m.norm_eps, x, m.bf16);
        if (m.rounds) round_input(x, D, p.s.x_rounded + t * D, p.s.x_packed + t * D);
    });
}

// Streams after a sub-block; items are (token, 64 channels).
template <class Before>
void write_streams(const Pass& p, const Before& before) {
    int64_t D = p.shape.width, M = p.shape.num_streams, parts = (D + 63) / 64;
    const bool is_apart = is_by_token(p);
    Range mine = p.team.share(p.job.num_tokens * parts, is_apart ? parts : 1);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t t = item / parts, begin = item % parts * 64, end = std::min(D, begin + 64);
        before(t, begin, end);
        mhc_expand(p.job.streams + t * M * D, p.s.y + t * D, p.s.post + t * M, p.s.mix + t * M * M, int(M), D, begin, end, p.shape.bf16);
    }
    if (!is_apart) p.team.wait();
}

void forward(const Team& team, const ForwardJob& job, void* scratch) {
    Cutter cutter(scratch);
    Scratch s = cut(job, team.size, attention_kernels, indexer_kernels, cutter);
    Pass p{team, job, *job.shape, s};
    rotations(p);
    if (job.draft)
        join_draft(p);
    else
        embed(p);
    team.wait();
    for (int l = 0; l < job.num_layers; l++) {
        const Layer& layer = job.layers[l];
        read_streams(p, layer.hc_attn, layer.attn_norm);
        team.wait();
        attention_block(p, layer, l);
        write_streams(p, [](int64_t, int64_t, int64_t) {});
        read_streams(p, layer.hc_ffn, layer.ffn_norm);
        moe_block(p, layer);
        write_streams(p, [&](int64_t t, int64_t begin, int64_t end) { add_experts(p, t, begin, end); });
    }
}

int64_t forward_scratch(const ForwardJob& job, int num_threads) {
    Cutter cutter(nullptr);
    cut(job, num_threads, attention_kernels, indexer_kernels, cutter);
    return cutter.used();
}

void output(const Team& team, const OutputJob& job, void* scratch) {
    const ModelShape& m = *job.shape;
    int64_t D = m.width, M = m.num_streams;
    float* z = static_cast<float*>(scratch);
    Product head_weights{job.hc_head->fn, job.streams, M * D, job.token_rows, job.num_rows, z, M, false};
    linear_kernels.linear(team, &head_weights, 1);
    team.wait();
    Range mine = team.share(job.num_rows);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        const float* streams = job.streams + job.token_rows[i] * M * D;
        float *pre = z + i * M, *hidden = job.hidden + i * D;
        mhc_head_weights(pre, mean_square(streams, M * D), job.hc_head->base, job.hc_head->scale, int(M), m.norm_eps, m.hc_eps, pre);
        mhc_collapse(streams, pre, int(M), D, 0, D, hidden, m.bf16);
        rms_norm(hidden, job.norm, D, m.norm_eps, hidden, m.bf16);
    }
    team.wait();
    Product head = product(m.head, job.hidden, job.num_rows, job.logits, false);
    linear_kernels.linear(team, &head, 1);
    team.wait();
}

int64_t output_scratch(const OutputJob& job) { return job.num_rows * job.shape->num_streams * int64_t(sizeof(float)); }

}  // namespace

extern const ForwardKernels forward_kernels;
const ForwardKernels forward_kernels = {forward, forward_scratch, output, output_scratch};

}  // namespace pelagos::PELAGOS_ISA
