#include "sampling.h"

#include <algorithm>
#include <cfloat>

#include "moe.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

constexpr int64_t SUM_BLOCK = 256, SUM_LANES = 8;

struct Extremes {
    float largest;
    bool has_nan;
};

Extremes extremes(const float* x, int64_t n) {
    F16 top = set1(-INFINITY), nan = zero();
    each_vector(n, [&](int64_t i, auto part) {
        F16 a = part.get(x + i);
        nan = select(is_nan(a), set1(1.0f), nan);
        if (part.n < LANES) {
            alignas(64) float t[LANES];
            std::fill(t, t + LANES, -INFINITY);
            part.put(t, a);
            a = load(t);
        }
        top = max(a, top);
    });
    return {max(top), max(nan) > 0};
}

int64_t first_of(const float* x, int64_t n, float value) {
    return std::find(x, x + n, value) - x;
}

// e^((x - largest) / temperature), the weight of every token.
void weigh(const float* logits, int64_t n, float largest, double temperature, float* weights) {
    const F16 top = set1(largest), inverse = set1(float(std::min(1.0 / temperature, double(FLT_MAX))));
    each_vector(n, [&](int64_t i, auto part) { part.put(weights + i, exp((part.get(logits + i) - top) * inverse)); });
}

double sum_of_block(const float* x, int64_t n) {
    double lanes[SUM_LANES] = {};
    int64_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (int l = 0; l < SUM_LANES; l++) lanes[l] += x[i + l];
    for (int l = 0; i < n; i++, l++) lanes[l] += x[i];
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

double sum_of(const float* x, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i += SUM_BLOCK) total += sum_of_block(x + i, std::min(SUM_BLOCK, n - i));
    return total;
}

uint32_t rank_of(float logit) { return uint32_t(order_of(logit)) ^ 0x80000000u; }  // unsigned, in the order of logits

// Keeps the largest logits as long as the amounts of those before them are below `limit`, equal ones by smaller id; the weights of all
// others become 0. The last one kept is found digit by digit: amounts are added up by the next digit of the ranks that have its digits so
// far, and the digits walked down to where the limit is reached.
template <class Amount>
void keep_largest(const float* logits, int64_t n, double limit, const Amount& amount, float* weights) {
    constexpr int SHIFTS[] = {21, 10, 0}, BITS[] = {11, 11, 10};
    double before = 0;     // amounts of all ranks above those with these digits
    uint32_t digits = 0, known = 0;
    for (int step = 0; step < 3; step++) {
        double sums[1 << 11] = {};
        const uint32_t last = (1u << BITS[step]) - 1;
        for (int64_t i = 0; i < n; i++) {
            uint32_t rank = rank_of(logits[i]);
            if (weights[i] > 0 && (rank & known) == digits) sums[rank >> SHIFTS[step] & last] += amount(i);
        }
        int64_t digit = last;
        while (digit > 0 && before + sums[digit] < limit) before += sums[digit--];
        digits |= uint32_t(digit) << SHIFTS[step];
        known |= last << SHIFTS[step];
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t rank = rank_of(logits[i]);
        if (rank > digits || weights[i] == 0) continue;
        if (rank < digits || !(before < limit))
            weights[i] = 0;
        else
            before += amount(i);
    }
}

void keep_likely(float* weights, int64_t n, double least) {
    for (int64_t i = 0; i < n; i++)
        if (weights[i] < least) weights[i] = 0;
}

// The first id whose running sum of weights exceeds `uniform` of their total.
int64_t draw(const float* weights, int64_t n, double uniform) {
    const double target = uniform * sum_of(weights, n);
    double before = 0;
    int64_t last = 0;  // where rounding leaves the running sum of a block below the block's sum
    for (int64_t begin = 0; begin < n; begin += SUM_BLOCK) {
        const int64_t end = std::min(n, begin + SUM_BLOCK);
        double block = sum_of_block(weights + begin, end - begin), running = before;
        if (block == 0) continue;
        const bool is_here = before + block > target;
        for (int64_t i = begin; is_here && i < end; i++) {
            running += weights[i];
            if (weights[i] > 0) last = i;
            if (running > target) return i;
        }
        if (is_here) return last;
        before += block;
        last = end - 1;
        while (weights[last] == 0) last--;
    }
    return last;
}

int32_t choose_one(const TokenChoice& row, int64_t n, float* weights, float* masked) {
    const float* logits = row.logits;
    Extremes found = extremes(logits, n);
    if (found.has_nan || !std::isfinite(found.largest)) return NOT_FINITE;
    if (row.allowed) {
        for (int64_t i = 0; i < n; i++) masked[i] = row.allowed[i] ? logits[i] : -INFINITY;
        logits = masked;
        found = extremes(logits, n);
        if (found.largest == -INFINITY) return NONE_ALLOWED;
    }
    if (row.temperature == 0) return int32_t(first_of(logits, n, found.largest));
    weigh(logits, n, found.largest, row.temperature, weights);
    if (row.top_k > 0 && row.top_k < uint64_t(n)) keep_largest(logits, n, double(row.top_k), [](int64_t) { return 1.0; }, weights);
    if (row.top_p < 1) keep_largest(logits, n, row.top_p * sum_of(weights, n), [&](int64_t i) { return double(weights[i]); }, weights);
    if (row.min_p > 0) keep_likely(weights, n, row.min_p);
    return int32_t(draw(weights, n, uniform_number(row.seed, row.choice, row.position)));
}

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

void choose(const Team& team, const TokenChoice* rows, int64_t num, int64_t vocab_size, float* scratch, int32_t* tokens) {
    float* own = scratch + 2 * padded(vocab_size) * team.index;
    for (int64_t i = team.index; i < num; i += team.size) tokens[i] = choose_one(rows[i], vocab_size, own, own + padded(vocab_size));
}

int64_t choose_scratch(int64_t vocab_size, int num_threads) { return 2 * padded(vocab_size) * num_threads; }

}  // namespace

extern const SamplingKernels sampling_kernels;
const SamplingKernels sampling_kernels = {choose, choose_scratch};

}  // namespace pelagos::PELAGOS_ISA
