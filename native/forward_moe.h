// The mixture-of-experts half of a layer: routing, then experts, whole or shared among the team.
#pragma once

#include "forward_attention.h"
#include "moe.h"

#include <atomic>
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
        p.s.slot_weights[slot] = p.s.weights[i];
        p.s.slot_of[i] = slot;
    }
    for (int e = m.num_experts; e > 0; e--) first[e] = first[e - 1];  // back to first slots
    first[0] = 0;
}

inline int32_t num_experts_used(const Pass& p) { return p.s.counts[p.shape.num_experts + 1]; }

// Gate and up products, or down products, of all experts that have tokens. By one thread.
inline int expert_products(const Pass& p, const Layer& layer, bool down) {
    const ModelShape& m = p.shape;
    Input x = rounded_x(p), h = m.rounds ? Input(p.s.expert_rounded, p.s.expert_packed) : Input(p.s.gate);
    int num = 0;
    for (int u = 0; u < num_experts_used(p); u++) {
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

// h = SwiGLU(gate, up) x weight in place of the gate: block `block` of 128 numbers, a group of activation rounding, of one slot.
inline void activate(const Pass& p, int64_t slot, int64_t block) {
    const ModelShape& m = p.shape;
    const int64_t begin = block * 128, count = std::min<int64_t>(128, m.expert_dim - begin), at = slot * m.expert_dim + begin;
    const float weight = slot < p.job.num_tokens * m.num_chosen ? p.s.slot_weights[slot] : 1.0f;
    clamped_swiglu(p.s.gate + at, p.s.up + at, count, m.has_limit, m.limit, weight, p.s.gate + at, m.bf16);
    if (m.rounds)
        round_input(p.s.gate + at, count, p.s.expert_rounded + at, p.s.expert_packed + slot * m.expert_dim + packed_at(begin));
}

// One expert with the slots that it computes.
struct ExpertWork {
    const Matrix *w1, *w2, *w3;
    const int32_t* tokens;  // of its slots; nullptr: all in order
    int64_t slot, count;
};

// Expert number `item` of those used, the shared one first.
inline ExpertWork expert_work(const Pass& p, const Layer& layer, int32_t item) {
    const int64_t routed = p.job.num_tokens * p.shape.num_chosen;
    if (item == 0) return {&layer.shared_w1, &layer.shared_w2, &layer.shared_w3, nullptr, routed, p.job.num_tokens};
    const int e = p.s.experts_used[item - 1];
    const int64_t slot = p.s.counts[e];
    return {layer.w1 + e, layer.w2 + e, layer.w3 + e, p.s.slot_tokens + slot, slot, p.s.counts[e + 1] - slot};
}

inline void finish_expert(const Pass& p, const ExpertWork& expert, const Matrix* next) {
    const ModelShape& m = p.shape;
    const Team alone(0, 1, nullptr);
    const int64_t F = m.expert_dim, slot = expert.slot, count = expert.count;
    const Input x = rounded_x(p), h = m.rounds ? Input(p.s.expert_rounded, p.s.expert_packed) : Input(p.s.gate);
    Product gate = product(*expert.w1, x, count, p.s.gate + slot * F, false), up = product(*expert.w3, x, count, p.s.up + slot * F, false);
    gate.row_ids = up.row_ids = expert.tokens;
    linear_kernels.prefetch(*expert.w3);
    linear_kernels.linear(alone, &gate, 1);
    linear_kernels.prefetch(*expert.w2);
    linear_kernels.linear(alone, &up, 1);
    for (int64_t i = slot; i < slot + count; i++)
        for (int64_t block = 0; block * 128 < F; block++) activate(p, i, block);
    if (next) linear_kernels.prefetch(*next);
    Product down = product(*expert.w2, h.from(slot * F), count, p.s.expert_out + slot * m.width, false);
    linear_kernels.linear(alone, &down, 1);
}

// Experts whole, one after another by whichever thread is free.
inline void finish_experts(const Pass& p, const Layer& layer) {
    const int32_t num_items = num_experts_used(p) + 1;
    auto take = [&] { return p.s.next_expert->fetch_add(1, std::memory_order_relaxed); };
    for (int32_t item = take(), next; item < num_items; item = next) {
        next = take();
        finish_expert(p, expert_work(p, layer, item), next < num_items ? expert_work(p, layer, next).w1 : nullptr);
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

// Scores, chosen experts and weights. Follows read_streams without a barrier; behind it thread 0 sees those of all tokens.
inline void route_all(const Pass& p, const Layer& layer) {
    if (is_by_token(p)) {
        multiply_own(p, layer.gate, p.s.x, p.s.scores);
    } else {
        p.team.wait();
        Product router = product(layer.gate, p.s.x, p.job.num_tokens, p.s.scores, false);
        linear_kernels.linear(p.team, &router, 1);
        p.team.wait();
    }
    if (p.job.num_tokens > 2) {
        route(p, layer);
        p.team.wait();
    } else if (p.team.index == 0) {  // sharing it takes longer than doing it
        const Team alone(0, 1, nullptr);
        route({alone, p.job, p.shape, p.s}, layer);
    }
}

// Whether experts go to threads whole, once slots are sorted: there are many with few tokens each. That needs no barriers, and all threads
// end within one expert.
inline bool are_whole(const Pass& p) { return p.job.num_tokens <= 16 && num_experts_used(p) + 1 >= 8 * p.team.size; }

// Products shared among the team, expert after expert, with barriers between; those of gate and up are there.
inline void share_experts(const Pass& p, const Layer& layer) {
    const Team& team = p.team;
    linear_kernels.linear(team, p.s.products, int(*p.s.num_queries));
    team.wait();
    const int64_t blocks = (p.shape.expert_dim + 127) / 128;
    const Range mine = team.share(p.job.num_tokens * (p.shape.num_chosen + 1) * blocks);
    for (int64_t i = mine.begin; i < mine.end; i++) activate(p, i / blocks, i % blocks);
    if (team.index == 0) *p.s.num_queries = expert_products(p, layer, true);
    team.wait();
    linear_kernels.linear(team, p.s.products, int(*p.s.num_queries));
}

// y = MoE(x), [T, D]: left in expert_out for add_experts. Follows read_streams without a barrier.
inline void moe_block(const Pass& p, const Layer& layer) {
    route_all(p, layer);
    if (p.team.index == 0) {
        sort_slots(p);
        p.s.next_expert->store(0, std::memory_order_relaxed);
        if (!are_whole(p)) *p.s.num_queries = expert_products(p, layer, false);
    }
    p.team.wait();
    if (are_whole(p))
        finish_experts(p, layer);
    else
        share_experts(p, layer);
    p.team.wait();
}

}  // namespace pelagos::PELAGOS_ISA
