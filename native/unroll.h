// Loops that the compiler writes out before anything else.
#pragma once

#include <utility>

namespace pelagos {

template <class F, int... I>
inline __attribute__((always_inline)) void repeat_each(const F& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

// f(0), ..., f(N - 1), each index a type of its own: arrays of vectors that only such indices touch lie in registers.
template <int N, class F>
inline __attribute__((always_inline)) void repeat(const F& f) {
    repeat_each(f, std::make_integer_sequence<int, N>());
}

}  // namespace pelagos
