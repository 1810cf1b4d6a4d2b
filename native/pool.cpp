#include "pool.h"

#include <climits>

#if defined(__linux__) && !defined(PELAGOS_NO_FUTEX)
#define PELAGOS_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pelagos {

namespace {

constexpr int NUM_SPINS = 4000;  // some 40 microseconds: longer than the gaps between ops, shorter than a scheduler's slice
// From so many spins on others on this core go first at times: it may be the thread that is waited for, moved here because
// something else took its core, and every barrier would then cost a whole round of spins.
constexpr int POLITE_FROM = 400, POLITE_EVERY = 50;

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Default rounding, subnormals kept, for as long as this lives: torch.set_flush_denormal and others change that of one thread.
class FloatMode {
  public:
#if defined(__x86_64__)
    FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatMode() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#elif defined(__aarch64__)
    FloatMode() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
    }
    ~FloatMode() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

  private:
    uint64_t before_;
#else
    FloatMode() {}
#endif
};

// Blocks all signals for as long as this lives; threads started meanwhile keep it so. Signals then reach Python's own threads.
class NoSignals {
  public:
    NoSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

}  // namespace

#if defined(PELAGOS_FUTEX)
void Signal::sleep_while(uint32_t known) {
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, known, nullptr, nullptr, 0);
}

void Signal::wake_all() { syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
void Signal::sleep_while(uint32_t known) {
    std::unique_lock<std::mutex> hold(mutex_);
    changed_.wait(hold, [&] { return value_.load(std::memory_order_seq_cst) != known; });
}

void Signal::wake_all() {
    // A sleeper has looked at the number either before this lock, and waits by now, or behind it, and sees the change.
    { std::lock_guard<std::mutex> hold(mutex_); }
    changed_.notify_all();
}
#endif

void Signal::raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all();
}

void Signal::wait_beyond(uint32_t known) {
    for (int i = 0; i < NUM_SPINS; i++) {
        if (value() != known) return;
        if (i >= POLITE_FROM && i % POLITE_EVERY == 0) sched_yield();
        relax();
    }
    // Counted before the number is looked at again: raise changes the number first and then counts sleepers, so one of the two
    // sees the other.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == known) sleep_while(known);
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

Crew::Crew(int num_threads) : num_threads_(num_threads), barrier_(num_threads) {
    NoSignals while_threads_start;
    try {
        for (int i = 1; i < num_threads; i++) workers_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        dismiss();
        throw;
    }
}

Crew::~Crew() { dismiss(); }

void Crew::dismiss() {
    closing_.store(true, std::memory_order_release);
    started_.raise();
    for (auto& worker : workers_) worker.join();
}

void Crew::run(const Work& work) {
    work_ = &work;
    if (num_threads_ > 1) started_.raise();
    FloatMode mode;
    Team team(0, num_threads_, &barrier_);
    work(team);
    team.wait();
}

void Crew::serve(int index) {
    FloatMode mode;
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

void Pool::run(const Work& work) {
    std::lock_guard<std::mutex> hold(busy_);
    int wanted = size();
    if (wanted != crew_size_) {
        crew_.reset();
        crew_size_ = 0;
        crew_ = std::make_unique<Crew>(wanted);
        crew_size_ = wanted;
    }
    crew_->run(work);
}

namespace {

// Never destroyed: a thread may still be in a region when the process ends, and a forked process cannot join what it has not.
std::atomic<Pool*> the_pool{nullptr};

void renew_after_fork() {
    Pool* fresh = new Pool;
    fresh->resize(the_pool.load()->size());
    the_pool.store(fresh);
}

Pool* first_pool() {
    the_pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, renew_after_fork);
    return the_pool.load();
}

}  // namespace

Pool& pool() {
    static Pool* const first = first_pool();
    (void)first;
    return *the_pool.load();
}

}  // namespace pelagos
