// Run under the thread sanitizer: many regions and barriers of every size, callers from several threads at once, a pool whose size
// changes in between, and products whose bits must not depend on any of it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#include "kernels.h"

using namespace pelagos;

namespace {

constexpr int MAX_THREADS = 8;
constexpr int NUM_REGIONS = 100;

// Each round every thread writes its place, and after the barrier adds up all places: a missing barrier is a race.
int64_t meet(int num_regions) {
    int64_t places[MAX_THREADS] = {}, wrong = 0;
    for (int region = 0; region < num_regions; region++) {
        std::atomic<int64_t> num_wrong{0};
        pool().run([&](const Team& team) {
            for (int round = 1; round <= 3; round++) {
                places[team.index] = round;
                team.wait();
                int64_t total = 0;
                for (int i = 0; i < team.size; i++) total += places[i];
                num_wrong += total != int64_t(round) * team.size;
                team.wait();
            }
        });
        wrong += num_wrong;
    }
    return wrong;
}

struct Linear {
    static constexpr int64_t ROWS = 67, COLS = 131, NUM = 5;
    std::vector<float> w = std::vector<float>(ROWS * COLS), x = std::vector<float>(NUM * COLS), y = std::vector<float>(NUM * ROWS);

    Linear() {
        for (size_t i = 0; i < w.size(); i++) w[i] = std::sin(0.37f * float(i));
        for (size_t i = 0; i < x.size(); i++) x[i] = std::cos(0.91f * float(i));
    }

    void run() {
        Product job;
        job.w.codes = w.data();
        job.w.rows = ROWS;
        job.w.cols = COLS;
        job.x = x.data();
        job.x_stride = COLS;
        job.num_rows = NUM;
        job.y = y.data();
        job.y_stride = ROWS;
        pool().run([&](const Team& team) { kernels().linear.linear(team, &job, 1); });
    }
};

}  // namespace

int main() {
    int64_t wrong = 0;
    Linear alone;
    alone.run();
    for (const std::string& isa : available_isas()) {
        use_isa(isa);
        for (int size = 1; size <= MAX_THREADS; size++) {
            pool().resize(size);
            wrong += meet(NUM_REGIONS);
            Linear again;
            again.run();
            wrong += std::memcmp(again.y.data(), alone.y.data(), alone.y.size() * sizeof(float)) != 0;
        }
    }
    std::thread others[3];
    for (std::thread& other : others) other = std::thread([] { (void)meet(NUM_REGIONS); });
    for (int i = 0; i < NUM_REGIONS; i++) {
        pool().resize(1 + i % MAX_THREADS);
        wrong += meet(1);
    }
    for (std::thread& other : others) other.join();
    std::printf("%lld wrong\n", static_cast<long long>(wrong));
    return wrong == 0 ? 0 : 1;
}
