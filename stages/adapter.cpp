#include "stages/adapter.hpp"

#include "stages/plain_problem.hpp"

#include <exception>
#include <new>
#include <string>

namespace tilewise::stages {
namespace {

using harness::Call;
using harness::Implementation;
using harness::Outputs;
using harness::Support;

/// The sizes of a problem; no tensors yet.
StageArgs sizes_of(const Problem& problem) {
  StageArgs args{};
  args.batch = problem.batch;
  args.nheads_q = problem.nheads_q;
  args.nheads_k = problem.nheads_k;
  args.seqlen_q = problem.max_seqlen_q();
  args.seqlen_k = problem.max_seqlen_k();
  args.head_dim = problem.head_dim;
  args.head_dim_v = problem.head_dim_v;
  args.softmax_scale = static_cast<float>(problem.scale());
  args.causal = problem.causal;
  return args;
}

bool plain_f32(const TensorView& view, std::int64_t batch, std::int64_t seqlen, std::int64_t nheads,
               std::int64_t width) {
  return plain(view, DType::f32, batch, seqlen, nheads, width);
}

template <class TensorType>
TensorType tensor(const TensorView& view, std::int64_t seqlen, std::int64_t nheads,
                  std::int64_t width) {
  return {static_cast<float*>(view.data), seqlen, nheads, width};
}

class StageImplementation final : public Implementation {
 public:
  explicit StageImplementation(const Step& step) : step_(step) {}

  std::string_view name() const override { return step_.name; }
  std::string_view idea() const override { return step_.idea; }

  Support supports(const Problem& problem) const override {
    if (!step_.unavailable.empty()) return Support::no(std::string(step_.unavailable));
    if (step_.run == nullptr) return Support::no("not written yet: fill in stages/mine/mine.cpp");
    if (problem.dtype != DType::f32)
      return Support::no("the steps of chapters 1 and 2 compute in f32 only");
    const char* why = reason_against(problem, step_.features);
    return why == nullptr ? Support::yes() : Support::no(why);
  }

  Outputs writes(const Problem& problem) const override {
    const bool backward = problem.pass == Pass::backward;
    return {true, step_.features.lse, backward, backward, backward};
  }

  std::optional<double> bytes_moved(const Problem& problem) const override {
    if (step_.bytes_moved == nullptr) return std::nullopt;
    StageArgs args = sizes_of(problem);
    args.backward = problem.pass == Pass::backward;
    return step_.bytes_moved(args);
  }

  Status run(const Call& call) const override {
    const Support support = supports(call.problem);
    if (!support.ok) return failure(Code::unsupported, "%s", support.reason.c_str());

    StageArgs args = sizes_of(call.problem);
    args.softmax_scale = static_cast<float>(call.params.softmax_scale);
    args.threads = call.threads;
    args.backward = call.problem.pass == Pass::backward;
    const AttentionTensors& t = call.tensors;
    const std::int64_t sq = args.seqlen_q, sk = args.seqlen_k, d = args.head_dim,
                       dv = args.head_dim_v;
    const auto as_queries = [&](const TensorView& view, std::int64_t width) {
      return plain_f32(view, args.batch, sq, args.nheads_q, width);
    };
    const auto as_keys = [&](const TensorView& view, std::int64_t width) {
      return plain_f32(view, args.batch, sk, args.nheads_k, width);
    };
    if (!as_queries(t.q, d) || !as_keys(t.k, d) || !as_keys(t.v, dv) || !as_queries(t.o, dv))
      return failure(Code::unsupported,
                     "the steps take contiguous f32 tensors [batch, seqlen, nheads, head_dim]");
    args.q = tensor<Input>(t.q, sq, args.nheads_q, d);
    args.k = tensor<Input>(t.k, sk, args.nheads_k, d);
    args.v = tensor<Input>(t.v, sk, args.nheads_k, dv);
    args.o = tensor<Output>(t.o, sq, args.nheads_q, dv);
    if (step_.features.lse) {
      if (!plain_lse(t.lse, args.batch, args.nheads_q, args.seqlen_q))
        return failure(Code::unsupported,
                       "this step writes lse, contiguous f32 [batch, nheads_q, seqlen_q]");
      args.lse_data = static_cast<float*>(t.lse.data);
    }
    if (args.backward) {
      if (!as_queries(t.dout, dv) || !as_queries(t.dq, d) || !as_keys(t.dk, d) ||
          !as_keys(t.dv, dv))
        return failure(Code::unsupported,
                       "the steps take contiguous f32 gradients [batch, seqlen, nheads, head_dim]");
      args.dout = tensor<Input>(t.dout, sq, args.nheads_q, dv);
      args.dq = tensor<Output>(t.dq, sq, args.nheads_q, d);
      args.dk = tensor<Output>(t.dk, sk, args.nheads_k, d);
      args.dv = tensor<Output>(t.dv, sk, args.nheads_k, dv);
    }
    try {
      step_.run(args);
    } catch (const std::bad_alloc&) {
      return failure(Code::no_memory, "not enough memory for this step's matrices");
    } catch (const std::exception& error) {
      return failure(Code::failed, "%s", error.what());
    }
    return {};
  }

 private:
  Step step_;
};

}  // namespace

std::unique_ptr<Implementation> implementation_of(const Step& step) {
  return std::make_unique<StageImplementation>(step);
}

harness::Table implementations() {
  harness::Table table;
  for (const Step& step : steps()) table.push_back(implementation_of(step));
  return table;
}

}  // namespace tilewise::stages
