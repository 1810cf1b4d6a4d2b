// Pooling of a token window into one compressed row.
#pragma once

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

// Softmax over the slots, for each channel begin .. end alone: row[c] = Σ_j exp(g_j - max g) v_j / Σ_j exp(g_j - max g), both
// sums in order of the slots. A slot that does not exist is nullptr, in both lists; at least one gate of a channel is finite.
inline void pool_window(const float* const* values, const float* const* gates, int num_slots, int64_t begin, int64_t end,
                        float* row) {
    each_vector(end - begin, [&](int64_t i, auto part) {
        int64_t c = begin + i;
        F16 top = set1(-INFINITY);
        for (int j = 0; j < num_slots; j++)
            if (gates[j]) top = max(top, part.get(gates[j] + c));
        F16 total = zero(), pooled = zero();
        for (int j = 0; j < num_slots; j++) {
            if (!gates[j]) continue;
            F16 share = exp(part.get(gates[j] + c) - top);
            total = total + share;
            pooled = fma(share, part.get(values[j] + c), pooled);
        }
        part.put(row + c, pooled / total);
    });
}

}  // namespace pelagos::PELAGOS_ISA
