// Loops that the compiler writes out before anything else.
#pragma once

#include <utility>

// Of functions and lambdas that shall melt into their callers, so that vectors stay in registers. Plain C++ has none, and compilers
// take minutes to instrument what comes of that, so sanitized builds go without, too.
#if defined(PELAGOS_GENERIC) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PELAGOS_INLINE
#else
#define PELAGOS_INLINE __attribute__((always_inline))
#endif

namespace pelagos {

template <class F, int... I>
inline PELAGOS_INLINE void repeat_each(const F& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

// f(0), ..., f(N - 1), each index a type of its own: arrays of vectors that only such indices touch lie in registers.
template <int N, class F>
inline PELAGOS_INLINE void repeat(const F& f) {
    repeat_each(f, std::make_integer_sequence<int, N>());
}

}  // namespace pelagos
