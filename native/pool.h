// The one pool of threads of the process. A region runs one function on all threads at once; inside, threads share work by
// fixed ranges and meet at barriers. Waiting threads spin for a moment and then sleep.
//
// A region must not throw, start another region, or leave a barrier out on one of its threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pelagos {

struct Range {
    int64_t begin, end;
};

// A number that threads wait on until it changes.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void raise();                      // changes the number and wakes all waiters
    void wait_beyond(uint32_t known);  // returns once the number is not `known`

  private:
    void sleep_while(uint32_t known);
    void wake_all();

    std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
    std::mutex mutex_;  // these two where there is no futex
    std::condition_variable changed_;
};

class Barrier {
  public:
    explicit Barrier(int num_threads) : num_threads_(num_threads) {}
    void wait();

  private:
    const int num_threads_;
    std::atomic<int> arrived_{0};
    Signal passed_;
};

// One thread's view of a region.
class Team {
  public:
    Team(int index, int size, Barrier* barrier) : index(index), size(size), barrier_(barrier) {}
    const int index, size;

    // All threads have come here, and see what the others wrote before.
    void wait() const {
        if (size > 1) barrier_->wait();
    }

    // This thread's part of 0 .. n, in whole multiples of `grain` but for the last.
    Range share(int64_t n, int64_t grain = 1) const {
        int64_t units = (n + grain - 1) / grain;
        return {std::min(n, units * index / size * grain), std::min(n, units * (index + 1) / size * grain)};
    }

  private:
    Barrier* barrier_;
};

using Work = std::function<void(const Team&)>;

// Threads of a fixed number: the caller of run and num_threads - 1 of its own.
class Crew {
  public:
    explicit Crew(int num_threads);  // throws std::system_error where the system refuses threads
    ~Crew();
    void run(const Work& work);

  private:
    void serve(int index);
    void dismiss();

    const int num_threads_;
    Barrier barrier_;
    Signal started_;
    std::atomic<bool> closing_{false};
    const Work* work_ = nullptr;
    std::vector<std::thread> workers_;
};

class Pool {
  public:
    int size() const { return num_threads_.load(); }

    // Takes effect with the next region. Not between a caller's look at size(), to take scratch memory, and its region.
    void resize(int num_threads) { num_threads_.store(num_threads); }

    // Runs `work` on all threads, the calling one with index 0, and returns when all are done. One region at a time: further
    // callers wait. The threads start with the first region, and all compute with the default rounding and with subnormals,
    // whatever the caller has set: results depend on neither.
    void run(const Work& work);

  private:
    std::atomic<int> num_threads_{1};
    std::mutex busy_;
    int crew_size_ = 0;
    std::unique_ptr<Crew> crew_;
};

// The process's pool. A process made by fork has one of the same size, with threads of its own.
Pool& pool();

}  // namespace pelagos
