"""The three number formats of DeepSeek-V4 and what their bytes mean.

E4M3 (`e4m3`): one byte: sign, 4 exponent bits (bias 7), 3 mantissa bits. Steps of 1/8 of a power of two from 2^-6 to
    448, steps of 2^-9 below. No infinity; NaN is S.1111.111. Dense weights, attention rows, inputs of matrix products.
E2M1 (`e2m1`): half a byte: sign, 2 exponent bits, 1 mantissa bit, that is 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their
    negatives. No infinity, no NaN. Routed experts and index rows. The even column is the low half of a byte.
UE8M0 (`ue8m0`): one byte: an exponent alone, 2^(byte - 127); byte 255 is NaN. The scale of a block of codes.

Neither small format has the range of a weight matrix, so numbers are kept in blocks: value = code * scale, where the
scale of a block is the smallest power of two that brings its largest magnitude into the range of the code,

    scale = 2^ceil(log2(max(amax, floor) / MAX)),    code = round(value / scale).

A power of two changes no mantissa bit: dividing by the scale and multiplying by it are exact, and all error comes from
one rounding, to 4 (E4M3) or 2 (E2M1) significant bits. Decoded values are therefore exact in bfloat16 and float32.

    groups     numbers in groups along the last dimension: activations and cached rows
    blocks     the two-dimensional blocks of weight matrices, also where the sizes do not divide
    matrix     a weight matrix as codes and scales, as it lies in a checkpoint; FP4 to FP8 without loss
    simulate   value -> low precision -> value, the roundings the official model applies while it runs
    rows       the bytes of cached rows
    measures   error and bias of an approximation
"""
