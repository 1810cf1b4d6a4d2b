#include <memory>
#include <mutex>

#include "bindings.h"

namespace pelagos {

namespace {

// Scratch that grows with the largest batch seen, in pages of its own.
class Block {
  public:
    void* at_least(int64_t bytes) {
        if (bytes > size_) {
            memory_.reset(new (std::align_val_t(64)) uint8_t[bytes]);
            size_ = bytes;
        }
        return memory_.get();
    }
    int64_t size() const { return size_; }

  private:
    struct Delete {
        void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<uint8_t[], Delete> memory_;
    int64_t size_ = 0;
};

struct Experts {
    std::vector<Matrix> w1, w2, w3;
};

// A model bound to its weights, which the Python object that owns this keeps alive.
struct Forward {
    ModelShape shape;
    std::vector<Layer> layers, draft_layers;
    std::vector<std::unique_ptr<Experts>> experts;
    Draft draft;
    StreamWeights hc_head, draft_hc_head;
    const float *norm = nullptr, *draft_norm = nullptr;
    Block scratch, hidden;
    std::mutex busy;  // one call at a time has the scratch memory; further callers wait
};

void set_experts(Forward& model, Layer& layer, std::vector<Matrix> w1, std::vector<Matrix> w2, std::vector<Matrix> w3) {
    model.experts.push_back(std::make_unique<Experts>(Experts{std::move(w1), std::move(w2), std::move(w3)}));
    const Experts& kept = *model.experts.back();
    layer.w1 = kept.w1.data();
    layer.w2 = kept.w2.data();
    layer.w3 = kept.w3.data();
}

// sequences: [S, 6] int64 rows of SequenceStep. streams: [T, M, D] float32.
void forward(Forward& model, bool is_draft, Address token_ids, int64_t num_tokens, Address sequences, int64_t num_sequences, Address streams) {
    std::lock_guard<std::mutex> hold(model.busy);
    const auto& layers = is_draft ? model.draft_layers : model.layers;
    ForwardJob job{&model.shape, layers.data(), int32_t(layers.size()), at<const int32_t>(token_ids), num_tokens,
                   at<const SequenceStep>(sequences), num_sequences, at<float>(streams), is_draft ? &model.draft : nullptr};
    const ForwardKernels& chosen = kernels().forward;
    void* scratch = model.scratch.at_least(chosen.forward_scratch(job, pool().size()));
    pool().run([&](const Team& team) { chosen.forward(team, job, scratch); });
}

void output(Forward& model, bool is_draft, Address streams, Address token_rows, int64_t num_rows, Address logits) {
    std::lock_guard<std::mutex> hold(model.busy);
    float* hidden = static_cast<float*>(model.hidden.at_least(num_rows * model.shape.width * int64_t(sizeof(float))));
    OutputJob job{&model.shape, is_draft ? &model.draft_hc_head : &model.hc_head, is_draft ? model.draft_norm : model.norm,
                  at<const float>(streams), at<const int32_t>(token_rows), num_rows, hidden, at<float>(logits)};
    const ForwardKernels& chosen = kernels().forward;
    void* scratch = model.scratch.at_least(chosen.output_scratch(job));
    pool().run([&](const Team& team) { chosen.output(team, job, scratch); });
}

template <class Class, class T>
auto pointer(nb::class_<Class>& c, const char* name, const T* Class::*field) {
    c.def_prop_rw(
        name, [field](const Class& self) { return Address(self.*field); }, [field](Class& self, Address a) { self.*field = at<const T>(a); });
}

void bind_layer(nb::module_& m) {
    nb::class_<StreamWeights> stream_weights(m, "StreamWeights");
    stream_weights.def(nb::init<>()).def_rw("fn", &StreamWeights::fn);
    pointer(stream_weights, "base", &StreamWeights::base);
    pointer(stream_weights, "scale", &StreamWeights::scale);
    nb::class_<CompressorWeights> compressor(m, "CompressorWeights");
    compressor.def(nb::init<>())
        .def_rw("wkv", &CompressorWeights::wkv)
        .def_rw("wgate", &CompressorWeights::wgate)
        .def_rw("size", &CompressorWeights::size)
        .def_rw("pair_size", &CompressorWeights::pair_size)
        .def_rw("layout", &CompressorWeights::layout)
        .def_rw("tail_at", &CompressorWeights::tail_at)
        .def_rw("overlap_at", &CompressorWeights::overlap_at);
    pointer(compressor, "ape", &CompressorWeights::ape);
    pointer(compressor, "norm", &CompressorWeights::norm);
    nb::class_<Layer> layer(m, "Layer");
    layer.def(nb::init<>());
#define FIELD(name) layer.def_rw(#name, &Layer::name);
    FIELD(window) FIELD(ratio) FIELD(has_index) FIELD(by_hash) FIELD(rotation) FIELD(window_layout) FIELD(window_at) FIELD(hc_attn)
    FIELD(hc_ffn) FIELD(wq_a) FIELD(wq_b) FIELD(wkv) FIELD(wo_a) FIELD(wo_b) FIELD(compressor) FIELD(index_compressor) FIELD(index_wq_b)
    FIELD(index_weights) FIELD(gate) FIELD(shared_w1) FIELD(shared_w2) FIELD(shared_w3)
#undef FIELD
    pointer(layer, "attn_norm", &Layer::attn_norm);
    pointer(layer, "ffn_norm", &Layer::ffn_norm);
    pointer(layer, "q_norm", &Layer::q_norm);
    pointer(layer, "kv_norm", &Layer::kv_norm);
    pointer(layer, "sink", &Layer::sink);
    pointer(layer, "gate_bias", &Layer::gate_bias);
    pointer(layer, "expert_of_token", &Layer::expert_of_token);
}

void bind_shape(nb::module_& m) {
    nb::class_<ModelShape> shape(m, "ModelShape");
#define FIELD(name) shape.def_rw(#name, &ModelShape::name);
    FIELD(num_streams) FIELD(width) FIELD(num_heads) FIELD(head_dim) FIELD(rope_dim) FIELD(query_rank) FIELD(num_groups) FIELD(output_rank)
    FIELD(num_index_heads) FIELD(index_head_dim) FIELD(index_topk) FIELD(num_experts) FIELD(num_chosen) FIELD(expert_dim)
    FIELD(routed_factor) FIELD(limit) FIELD(norm_eps) FIELD(hc_eps) FIELD(has_limit) FIELD(sinkhorn_iterations) FIELD(rounds) FIELD(bf16)
    FIELD(embed) FIELD(head)
#undef FIELD
    shape.def("set_frequencies", [](ModelShape& self, int i, Address a) { self.frequencies[i & 1] = at<const float>(a); });
    nb::class_<Draft> draft(m, "Draft");
    draft.def_rw("e_proj", &Draft::e_proj).def_rw("h_proj", &Draft::h_proj);
    pointer(draft, "enorm", &Draft::enorm);
    pointer(draft, "hnorm", &Draft::hnorm);
}

}  // namespace

void bind_forward(nb::module_& m) {
    bind_layer(m);
    bind_shape(m);
    nb::class_<Forward> model(m, "Forward");
    model.def(nb::init<>())
        .def_prop_ro("shape", [](Forward& self) -> ModelShape& { return self.shape; }, nb::rv_policy::reference_internal)
        .def_prop_ro("draft", [](Forward& self) -> Draft& { return self.draft; }, nb::rv_policy::reference_internal)
        .def_rw("hc_head", &Forward::hc_head)
        .def_rw("draft_hc_head", &Forward::draft_hc_head)
        .def("add_layer",
             [](Forward& self, Layer layer, std::vector<Matrix> w1, std::vector<Matrix> w2, std::vector<Matrix> w3, bool is_draft) {
                 set_experts(self, layer, std::move(w1), std::move(w2), std::move(w3));
                 (is_draft ? self.draft_layers : self.layers).push_back(layer);
             })
        .def("forward", &forward, nb::call_guard<nb::gil_scoped_release>())
        .def("output", &output, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("scratch_bytes", [](const Forward& self) { return self.scratch.size() + self.hidden.size(); });
    pointer(model, "norm", &Forward::norm);
    pointer(model, "draft_norm", &Forward::draft_norm);
}

}  // namespace pelagos
