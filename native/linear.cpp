// Matrix products with stored weights.
#include "linear.h"

#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

void linear(const Team& team, const Product* products, int num_products) {
    for (int p = 0; p < num_products; p++) {
        const Product& job = products[p];
        const float* w = static_cast<const float*>(job.w.codes);
        Range mine = team.share(job.w.rows, 16);
        for (int64_t n = mine.begin; n < mine.end; n++) {
            for (int64_t r = 0; r < job.num_rows; r++) {
                const float* x = job.x + (job.row_ids ? job.row_ids[r] : r) * job.x_stride;
                F16 total = zero();
                for (int64_t k = 0; k < job.w.cols; k += LANES) {
                    int width = int(std::min<int64_t>(LANES, job.w.cols - k));
                    total = fma(load_n(x + k, width), load_n(w + n * job.w.cols + k, width), total);
                }
                job.y[r * job.y_stride + n] = sum(total);
            }
        }
    }
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {linear};

}  // namespace pelagos::PELAGOS_ISA
