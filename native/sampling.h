// From logits to tokens: ops/reference/sampling.py in one pass per row.
#pragma once

#include <cstdint>

#include "pool.h"

namespace pelagos {

// How one row's token is chosen.
struct TokenChoice {
    const float* logits;     // [V]
    const uint8_t* allowed;  // [V], 0 for what may not be chosen; nullptr: all may
    double temperature;      // 0: the largest logit, the first of equals; what follows is then not looked at
    double top_p, min_p;
    uint64_t top_k;  // 0: all
    uint64_t seed, choice, position;
};

// In place of a token: the largest logit is not a number, or infinite; no token may be chosen.
constexpr int32_t NOT_FINITE = -1, NONE_ALLOWED = -2;

struct SamplingKernels {
    // tokens: [num]. Rows are shared among the team; a row's token depends on that row alone. No barrier behind.
    // Weights are float32, exp of the logits below the largest over the temperature; their sums are float64, in blocks of 256 ids.
    void (*choose)(const Team& team, const TokenChoice* rows, int64_t num, int64_t vocab_size, float* scratch, int32_t* tokens);
    int64_t (*choose_scratch)(int64_t vocab_size, int num_threads);  // floats
};

// In [0, 1): the upper 53 bits of the first word of Philox-4x64-10 (Salmon et al. 2011) with the key (seed, choice) and the counter
// position + 1: NumPy counts up before its first block.
inline double uniform_number(uint64_t seed, uint64_t choice, uint64_t position) {
    __extension__ typedef unsigned __int128 Wide;
    uint64_t block[4] = {position + 1, position == UINT64_MAX ? 1u : 0u, 0, 0};
    for (int round = 0; round < 10; round++) {
        Wide low = Wide(0xd2e7470ee14c6c93) * block[0], high = Wide(0xca5a826395121157) * block[2];
        uint64_t next[4] = {uint64_t(high >> 64) ^ block[1] ^ seed, uint64_t(high), uint64_t(low >> 64) ^ block[3] ^ choice, uint64_t(low)};
        for (int i = 0; i < 4; i++) block[i] = next[i];
        seed += 0x9e3779b97f4a7c15;
        choice += 0xbb67ae8584caa73b;
    }
    return double(block[0] >> 11) * 0x1p-53;
}

}  // namespace pelagos
