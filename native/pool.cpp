#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pelagos {

namespace {

constexpr int NUM_SPINS = 4000;  // some 40 microseconds: longer than the gaps between ops, shorter than a scheduler's slice

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void sleep_while(std::atomic<uint32_t>& value, uint32_t known) {
#if defined(__linux__)
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
    syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, known, nullptr, nullptr, 0);
#else
    if (value.load(std::memory_order_seq_cst) == known) std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

void wake_all(std::atomic<uint32_t>& value) {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
    (void)value;
#endif
}

}  // namespace

void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(value_);
}

void Signal::wait_beyond(uint32_t known) {
    for (int i = 0; i < NUM_SPINS; i++) {
        if (value() != known) return;
        relax();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == known) sleep_while(value_, known);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

void Barrier::wait() {
    uint32_t known = passed_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.raise();
    } else {
        passed_.wait_beyond(known);
    }
}

Pool::Pool(int num_threads) : num_threads_(num_threads), barrier_(num_threads) {
    for (int i = 1; i < num_threads; i++) workers_.emplace_back([this, i] { serve(i); });
}

Pool::~Pool() {
    closing_.store(true, std::memory_order_release);
    started_.raise();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(const std::function<void(const Team&)>& work) {
    std::lock_guard<std::mutex> hold(busy_);
    work_ = &work;
    if (!workers_.empty()) started_.raise();
    Team team(0, size(), &barrier_);
    work(team);
    team.wait();
}

void Pool::serve(int index) {
    uint32_t known = 0;
    while (true) {
        started_.wait_beyond(known);
        known++;
        if (closing_.load(std::memory_order_acquire)) return;
        Team team(index, num_threads_, &barrier_);
        (*work_)(team);
        team.wait();
    }
}

namespace {
std::unique_ptr<Pool> the_pool;
}

Pool& pool() {
    if (!the_pool) the_pool = std::make_unique<Pool>(1);
    return *the_pool;
}

void set_num_threads(int num_threads) {
    if (!the_pool || the_pool->size() != num_threads) the_pool = std::make_unique<Pool>(num_threads);
}

}  // namespace pelagos
