// Core attention over window rows and compressed rows: one softmax with a sink per head.
//
// Order, a function of the query alone. Its rows are its window, then its compressed rows (or the chosen ones, by their place in the
// list). Blocks of 64 start at positions (window), row numbers or list places that are multiples of 64. The window is the first
// span, each 256 rows behind it one more; within a span blocks follow one another in one online softmax, and the softmaxes
// of spans are added in ascending order, then the sink.
//
// Work is counted in rows times units of 8 heads. Each thread gets a range of it, queries first, spans second, units last. It finishes
// queries that lie in its range whole, consecutive ones of a sequence together, so that they share decoded rows. Of a query that lies in
// several ranges, spans are kept; after a barrier they are added up.
#include "attention.h"

#include "attention_block.h"
#include "rounding.h"
#include "simd.h"

namespace pelagos::PELAGOS_ISA {

namespace {

constexpr int SPAN = 256;
constexpr int MAX_TILE = 16;
constexpr int64_t TILE_FLOATS = 1 << 16;  // sums of a tile of queries: a quarter of a second-level cache of 1 MiB

struct Point {  // a place in the work
    int64_t query, span;
    int unit;
    bool inside() const { return span > 0 || unit > 0; }
};

int64_t num_spans(const AttendQuery& query) { return 1 + (query.num_compressed() + SPAN - 1) / SPAN; }
int64_t num_rows(const AttendQuery& query) { return query.num_window + query.num_compressed(); }
int num_units(int num_heads) { return (num_heads + HEAD_BLOCK - 1) / HEAD_BLOCK; }

// Walks over the queries to ascending amounts of work.
class Walk {
  public:
    Walk(const AttendQuery* queries, int64_t num_queries, int units) : queries_(queries), num_queries_(num_queries), units_(units) {}

    int64_t all_work() const {
        int64_t rows = 0;
        for (int64_t i = 0; i < num_queries_; i++) rows += num_rows(queries_[i]);
        return rows * units_;
    }
    Point to(int64_t work) {  // the nearest place
        while (query_ < num_queries_ && before_ + num_rows(queries_[query_]) * units_ <= work)
            before_ += num_rows(queries_[query_++]) * units_;
        if (query_ == num_queries_) return {query_, 0, 0};
        const AttendQuery& query = queries_[query_];
        int64_t left = work - before_, span = 0, rows = query.num_window, compressed = query.num_compressed();
        while (left >= rows * units_) {
            left -= rows * units_;
            rows = std::min<int64_t>(SPAN, compressed - SPAN * span++);
        }
        const int unit = int((left + rows / 2) / rows);
        if (unit < units_) return {query_, span, unit};
        return span + 1 < num_spans(query) ? Point{query_, span + 1, 0} : Point{query_ + 1, 0, 0};
    }

  private:
    const AttendQuery* queries_;
    const int64_t num_queries_;
    const int units_;
    int64_t query_ = 0, before_ = 0;
};

int tile_size(const HeadShape& shape) { return int(std::clamp<int64_t>(TILE_FLOATS / (shape.num_heads * shape.padded), 1, MAX_TILE)); }

// One thread's part of a call.
class Worker {
  public:
    Worker(const AttendQuery* queries, int64_t num_queries, const HeadShape& shape, const float* sink, float* own_scratch, float* kept,
           int64_t max_spans)
        : queries_(queries), num_queries_(num_queries), shape_(shape), sink_(sink), block_(own_scratch, shape),
          states_(own_scratch + shape.block_size()), kept_(kept), max_spans_(max_spans) {}

    static int64_t scratch_size(const HeadShape& shape) { return shape.block_size() + 2 * tile_size(shape) * shape.state_size(); }

    void finish_queries(int64_t first, int64_t last) const {
        while (first < last) {
            int64_t next = first + 1;
            while (next < last && next - first < tile_size(shape_) && belong_together(queries_[first], queries_[next])) next++;
            finish_tile({first, next, 0, shape_.num_heads});
            first = next;
        }
    }

    // Spans of one query, kept in a slot: from one point in it to another.
    void keep_spans(int64_t query, Point from, Point to, int64_t slot) const {
        for (int64_t span = from.span; span <= to.span; span++) {
            int begin = span == from.span ? from.unit * HEAD_BLOCK : 0;
            int end = span == to.span ? to.unit * HEAD_BLOCK : shape_.num_heads;
            if (begin >= end) continue;
            Tile tile{query, query + 1, begin, std::min(end, shape_.num_heads)};
            add_span(tile, span, kept(slot, span));
        }
    }

    void finish_kept(int64_t query, int64_t slot, int first_head, int last_head) const {
        State total(kept(slot, 0), shape_);
        for (int64_t span = 1; span < num_spans(queries_[query]); span++)
            add_state(total, State(kept(slot, span), shape_), shape_, first_head, last_head);
        finish(total, shape_, sink_, first_head, last_head, queries_[query]);
    }

  private:
    struct Tile {  // queries first .. last of one sequence
        int64_t first, last;
        int first_head, last_head;
    };

    float* kept(int64_t slot, int64_t span) const { return kept_ + (slot * max_spans_ + span) * shape_.state_size(); }
    State state(float* states, int64_t number) const { return State(states + number * shape_.state_size(), shape_); }

    // Where the window row of position 0 would lie: one address for queries whose windows are parts of one array.
    uintptr_t window_origin(const AttendQuery& query) const {
        return reinterpret_cast<uintptr_t>(query.window) - uintptr_t(query.window_position) * shape_.size * sizeof(float);
    }
    bool belong_together(const AttendQuery& a, const AttendQuery& b) const {
        return !a.ring && !b.ring && window_origin(a) == window_origin(b) && a.rows == b.rows && !a.chosen == !b.chosen;
    }

    // One row of the ring of a query that comes next: nothing else fetches what another sequence keeps.
    void prefetch_ring(const AttendQuery& query, int64_t at) const {
        for (int64_t i = 0; query.ring && i < query.ring_layout->bytes; i += 64) __builtin_prefetch(query.ring + at + i, 0, 2);
    }
    void copy_row(const void* from, float* to) const { std::memcpy(to, from, shape_.size * sizeof(float)); }

    void finish_tile(const Tile& tile) const {
        float *totals = states_, *spans = states_ + tile_size(shape_) * shape_.state_size();
        int64_t most = 0;
        for (int64_t i = tile.first; i < tile.last; i++) most = std::max(most, num_spans(queries_[i]));
        add_span(tile, 0, totals);
        for (int64_t span = 1; span < most; span++) {
            add_span(tile, span, spans);
            for (int64_t i = tile.first; i < tile.last; i++)
                if (span < num_spans(queries_[i]))
                    add_state(state(totals, i - tile.first), state(spans, i - tile.first), shape_, 0, shape_.num_heads);
        }
        for (int64_t i = tile.first; i < tile.last; i++)
            finish(state(totals, i - tile.first), shape_, sink_, 0, shape_.num_heads, queries_[i]);
    }

    // The softmax of one span, for each query of a tile.
    void add_span(const Tile& tile, int64_t span, float* states) const {
        for (int64_t i = tile.first; i < tile.last; i++) state(states, i - tile.first).clear(shape_, tile.first_head, tile.last_head);
        const AttendQuery& first = queries_[tile.first];
        const int64_t begin = (span - 1) * SPAN;
        if (span == 0) {
            auto seen = [](const AttendQuery& query) { return Range{query.window_position, query.window_position + query.num_window}; };
            const int64_t own = first.window_position + first.num_window - 1;
            if (first.ring)
                add_rows(tile, states, seen, [&](int64_t position, float* to) {
                    if (position == own) return copy_row(first.window, to);
                    const int64_t at = position % first.num_slots * first.ring_layout->bytes;
                    if (tile.last < num_queries_) prefetch_ring(queries_[tile.last], at);
                    load_row(*first.ring_layout, first.ring + at, to);
                });
            else
                add_rows(tile, states, seen, [&](int64_t position, float* to) {
                    copy_row(reinterpret_cast<const void*>(window_origin(first) + uintptr_t(position) * shape_.size * sizeof(float)), to);
                });
        } else if (first.chosen) {
            for (int64_t i = tile.first; i < tile.last; i++) {
                const AttendQuery& query = queries_[i];
                auto seen = [&](const AttendQuery&) { return Range{begin, std::min<int64_t>(begin + SPAN, query.num_chosen)}; };
                add_rows({i, i + 1, tile.first_head, tile.last_head}, states + (i - tile.first) * shape_.state_size(), seen,
                         [&](int64_t place, float* to) { load_row(query.rows->layout, query.rows->row(query.chosen[place]), to); });
            }
        } else {
            auto seen = [&](const AttendQuery& query) { return Range{begin, std::min(begin + SPAN, query.num_visible)}; };
            add_rows(tile, states, seen, [&](int64_t row, float* to) { load_row(first.rows->layout, first.rows->row(row), to); });
        }
    }

    // Rows that the queries of a tile see, seen(query) of each, block by block.
    template <class Seen, class Load>
    void add_rows(const Tile& tile, float* states, const Seen& seen, const Load& load) const {
        Range all = seen(queries_[tile.first]);
        for (int64_t i = tile.first + 1; i < tile.last; i++) {
            Range more = seen(queries_[i]);
            if (more.begin >= more.end) continue;
            all = all.begin < all.end ? Range{std::min(all.begin, more.begin), std::max(all.end, more.end)} : more;
        }
        for (int64_t start = all.begin / BLOCK * BLOCK; start < all.end; start += BLOCK) {
            int first = int(std::max(all.begin, start) - start), last = int(std::min(all.end, start + BLOCK) - start);
            for (int place = first; place < last;) {  // what is still in the nearest cache becomes columns
                const int begin = place, end = std::min(last, place / LANES * LANES + LANES);
                for (; place < end; place++) load(start + place, block_.row(place));
                block_.fill_columns(begin, end);
            }
            for (int64_t i = tile.first; i < tile.last; i++) {
                Range rows = seen(queries_[i]);
                int begin = int(std::max(rows.begin, start) - start), end = int(std::min(rows.end, start + BLOCK) - start);
                if (begin < end)
                    add_block(state(states, i - tile.first), shape_, queries_[i].q, tile.first_head, tile.last_head, block_, begin, end);
            }
        }
    }

    const AttendQuery* queries_;
    const int64_t num_queries_;
    const HeadShape shape_;
    const float* sink_;
    const Block block_;
    float *const states_, *const kept_;
    const int64_t max_spans_;
};

int64_t rounded(int64_t floats) { return (floats + LANES - 1) / LANES * LANES; }

void attend(const Team& team, const AttendQuery* queries, int64_t num_queries, int num_heads, int head_dim, const float* sink,
            float* scratch) {
    const HeadShape shape(num_heads, head_dim);
    const int units = num_units(num_heads);
    const int64_t own_size = rounded(Worker::scratch_size(shape)), work = Walk(queries, num_queries, units).all_work();
    int64_t max_spans = 0;
    for (int64_t i = 0; i < num_queries; i++) max_spans = std::max(max_spans, num_spans(queries[i]));
    const Worker worker(queries, num_queries, shape, sink, scratch + team.index * own_size, scratch + team.size * own_size, max_spans);

    // Slots are numbered in the order of the queries that lie in several threads' ranges.
    int64_t slot = -1, last_query = -1;
    Point begin{0, 0, 0}, end{num_queries, 0, 0};
    int64_t begin_slot = -1, end_slot = -1;
    Walk walk(queries, num_queries, units);
    for (int i = 1; i < team.size; i++) {
        Point point = walk.to(work * i / team.size);
        if (point.inside() && point.query != last_query) {
            slot++;
            last_query = point.query;
        }
        if (i == team.index) begin = point, begin_slot = slot;
        if (i == team.index + 1) end = point, end_slot = slot;
    }
    if (begin.inside()) {
        bool ends_here = end.query == begin.query;
        worker.keep_spans(begin.query, begin, ends_here ? end : Point{begin.query, num_spans(queries[begin.query]), 0}, begin_slot);
        if (!ends_here) worker.finish_queries(begin.query + 1, end.query);
        if (!ends_here && end.inside()) worker.keep_spans(end.query, {end.query, 0, 0}, end, end_slot);
    } else {
        worker.finish_queries(begin.query, end.query);
        if (end.inside()) worker.keep_spans(end.query, {end.query, 0, 0}, end, end_slot);
    }
    if (slot < 0) return;
    team.wait();
    const int64_t num_slots = slot + 1;
    Walk again(queries, num_queries, units);
    Range mine = team.share(num_slots * num_heads);
    slot = last_query = -1;
    for (int i = 1; i < team.size; i++) {
        Point point = again.to(work * i / team.size);
        if (!point.inside() || point.query == last_query) continue;
        slot++;
        last_query = point.query;
        int64_t first = std::max(mine.begin, slot * num_heads) - slot * num_heads;
        int64_t last = std::min(mine.end, (slot + 1) * num_heads) - slot * num_heads;
        if (first < last) worker.finish_kept(point.query, slot, int(first), int(last));
    }
}

int64_t attend_scratch(int64_t num_queries, int64_t max_visible, int num_heads, int head_dim, int num_threads) {
    const HeadShape shape(num_heads, head_dim);
    const int64_t num_slots = std::min<int64_t>(num_threads - 1, num_queries), max_spans = 1 + (max_visible + SPAN - 1) / SPAN;
    return num_threads * rounded(Worker::scratch_size(shape)) + num_slots * max_spans * shape.state_size();
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {attend, attend_scratch};

}  // namespace pelagos::PELAGOS_ISA
