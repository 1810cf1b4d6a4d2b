// The mixture-of-experts half of a layer, in phases with a barrier behind each.
#pragma once

#include "forward_attention.h"
#include "moe.h"

#include <utility>

namespace pelagos::PELAGOS_ISA {

// Slots are (token, expert) pairs in the order of experts, then tokens; behind them one slot per token for the shared expert.
inline void route(const Pass& p, const Layer& layer) {
    const ModelShape& m = p.shape;
    each_token(p, [&](int64_t t, int64_t, int64_t) {
        float* scores = p.s.scores + t * m.num_experts;
        int32_t* chosen = p.s.chosen + t * m.num_chosen;
        router_scores(scores, m.num_experts, scores);
        if (layer.by_hash)
            std::memcpy(chosen, layer.expert_of_token + int64_t(p.job.token_ids[t]) * m.num_chosen, m.num_chosen * sizeof(int32_t));
        else
            top_experts(scores, layer.gate_bias, m.num_experts, m.num_chosen, chosen);
        routing_weights(scores, chosen, m.num_chosen, m.routed_factor, p.s.weights + t * m.num_chosen);
    });
}

// Counting sort of the slots by expert. By one thread.
inline void sort_slots(const Pass& p) {
    const ModelShape& m = p.shape;
    int32_t* first = p.s.counts;
    int64_t num = p.job.num_tokens * m.num_chosen;
    std::fill(first, first + m.num_experts + 2, 0);
    for (int64_t i = 0; i < num; i++) first[p.s.chosen[i] + 1]++;
    int32_t used = 0;
    for (int e = 0; e < m.num_experts; e++) {
        if (first[e + 1]) p.s.experts_used[used++] = e;
        first[e + 1] += first[e];
    }
    first[m.num_experts + 1] = used;
    for (int64_t i = 0; i < num; i++) {
        int32_t slot = first[p.s.chosen[i]]++;
        p.s.slot_tokens[slot] = int32_t(i / m.num_chosen);
        p.s.slot_of[i] = slot;
    }
    for (int e = m.num_experts; e > 0; e--) first[e] = first[e - 1];  // back to first slots
    first[0] = 0;
}

// Gate and up products, or down products, of all experts that have tokens. By one thread.
inline int expert_products(const Pass& p, const Layer& layer, bool down) {
    const ModelShape& m = p.shape;
    Input x = rounded_x(p), h = m.rounds ? Input(p.s.expert_rounded, p.s.expert_packed) : Input(p.s.gate);
    int num = 0;
    for (int u = 0; u < p.s.counts[m.num_experts + 1]; u++) {
        int e = p.s.experts_used[u];
        int64_t slot = p.s.counts[e], count = p.s.counts[e + 1] - slot, F = m.expert_dim, D = m.width;
        if (down) {
            p.s.products[num++] = product(layer.w2[e], h.from(slot * F), count, p.s.expert_out + slot * D, false);
        } else {
            for (const auto& [w, y] : {std::pair(layer.w1[e], p.s.gate), std::pair(layer.w3[e], p.s.up)}) {
                p.s.products[num] = product(w, x, count, y + slot * F, false);
                p.s.products[num++].row_ids = p.s.slot_tokens + slot;
            }
        }
    }
    int64_t shared = p.job.num_tokens * m.num_chosen, T = p.job.num_tokens, F = m.expert_dim;
    if (down) {
        p.s.products[num++] = product(layer.shared_w2, h.from(shared * F), T, p.s.expert_out + shared * m.width, false);
    } else {
        p.s.products[num++] = product(layer.shared_w1, x, T, p.s.gate + shared * F, false);
        p.s.products[num++] = product(layer.shared_w3, x, T, p.s.up + shared * F, false);
    }
    return num;
}

// h = SwiGLU(gate, up) x weight in place of the gate; items are blocks of 128 numbers, the groups of activation rounding.
inline void activate(const Pass& p) {
    const ModelShape& m = p.shape;
    int64_t F = m.expert_dim, blocks = (F + 127) / 128, T = p.job.num_tokens, routed = T * m.num_chosen;
    Range mine = p.team.share((routed + T) * blocks);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t place = item / blocks, begin = item % blocks * 128, count = std::min<int64_t>(128, F - begin);
        int64_t slot = place < routed ? p.s.slot_of[place] : place;
        float weight = place < routed ? p.s.weights[place] : 1.0f;
        float* gate = p.s.gate + slot * F + begin;
        clamped_swiglu(gate, p.s.up + slot * F + begin, count, m.has_limit, m.limit, weight, gate, m.bf16);
        if (m.rounds) round_input(gate, count, p.s.expert_rounded + slot * F + begin, p.s.expert_packed + slot * F + packed_at(begin));
    }
}

// y = sum over chosen experts in their order, then the shared one; channels begin .. end of token t.
inline void add_experts(const Pass& p, int64_t t, int64_t begin, int64_t end) {
    const ModelShape& m = p.shape;
    int64_t D = m.width, shared = p.job.num_tokens * m.num_chosen + t;
    for (int64_t c = begin; c < end; c += LANES) {
        int n = int(std::min<int64_t>(LANES, end - c));
        F16 total = zero();
        for (int k = 0; k < m.num_chosen; k++)
            total = total + load_n(p.s.expert_out + p.s.slot_of[t * m.num_chosen + k] * D + c, n);
        total = total + load_n(p.s.expert_out + shared * D + c, n);
        store_n(p.s.y + t * D + c, m.bf16 ? round_bf16(total) : total, n);
    }
}

// y = MoE(x), [T, D]: left in expert_out for add_experts. Follows read_streams without a barrier.
inline void moe_block(const Pass& p, const Layer& layer) {
    const Team& team = p.team;
    const bool is_short = p.job.num_tokens <= 2 && !is_by_token(p);  // sharing the routing takes longer than doing it
    if (is_by_token(p)) {
        multiply_own(p, layer.gate, p.s.x, p.s.scores);
    } else {
        team.wait();
        Product router = product(layer.gate, p.s.x, p.job.num_tokens, p.s.scores, false);
        linear_kernels.linear(team, &router, 1);
        team.wait();
    }
    if (!is_short) {
        route(p, layer);
        team.wait();
    }
    if (team.index == 0) {
        const Team alone(0, 1, nullptr);
        if (is_short) route({alone, p.job, p.shape, p.s}, layer);
        sort_slots(p);
        *p.s.num_queries = expert_products(p, layer, false);
    }
    team.wait();
    linear_kernels.linear(team, p.s.products, int(*p.s.num_queries));
    team.wait();
    activate(p);
    if (team.index == 0) *p.s.num_queries = expert_products(p, layer, true);
    team.wait();
    linear_kernels.linear(team, p.s.products, int(*p.s.num_queries));
    team.wait();
}

}  // namespace pelagos::PELAGOS_ISA
