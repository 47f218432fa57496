#include "stages/cuda_adapter.hpp"

#include "stages/cuda_problem.hpp"

#include <string>
#include <utility>

namespace tilewise::stages {
namespace {

using harness::Call;
using harness::Support;

/// Tensors as memory that kernels may touch, by their names, while it lives.
class NamedMemory {
 public:
  NamedMemory() = default;
  NamedMemory(const NamedMemory&) = delete;
  NamedMemory& operator=(const NamedMemory&) = delete;
  ~NamedMemory() {
    for (const void* const memory : all_) emulator::forget_memory(memory);
  }

  void add(const char* name, const void* memory, std::size_t bytes, std::size_t element,
           bool written) {
    if (memory == nullptr || bytes == 0) return;
    emulator::register_memory(memory, bytes, name, element, written);
    all_.push_back(memory);
  }
  void add(const char* name, const TensorView& view, bool written) {
    const std::size_t element = size_of(view.dtype);
    add(name, view.data, static_cast<std::size_t>(view.elements()) * element, element, written);
  }

 private:
  std::vector<const void*> all_;
};

class EmulatedStep final : public EmulatedImplementation {
 public:
  EmulatedStep(const CudaStep& step, const emulator::Options& options)
      : step_(step), options_(options), name_("emulated." + std::string(step.name)) {}

  std::string_view name() const override { return name_; }
  std::string_view idea() const override { return step_.idea; }
  const emulator::Report& report() const override { return report_; }

  Support supports(const Problem& problem) const override {
    if (step_.features.compute_capability > options_.device.compute_capability)
      return Support::no(std::string("not for ") + options_.device.name);
    const std::string why = reason_against(problem, step_.features);
    return why.empty() ? Support::yes() : Support::no(why);
  }

  std::size_t workspace_bytes(const Problem& problem) const override {
    return step_.workspace_bytes == nullptr ? 0 : step_.workspace_bytes(sizes_of(problem));
  }

  std::optional<double> bytes_moved(const Problem& problem) const override {
    if (step_.bytes_moved == nullptr) return std::nullopt;
    return step_.bytes_moved(sizes_of(problem));
  }

  Status run(const Call& call) const override {
    report_ = {};
    const Support support = supports(call.problem);
    if (!support.ok) return failure(Code::unsupported, "%s", support.reason.c_str());
    CudaArgs args = sizes_of(call.problem);
    args.softmax_scale = static_cast<float>(call.params.softmax_scale);
    const AttentionTensors& t = call.tensors;
    if (!all_plain(args, t))
      return failure(Code::unsupported,
                     "the steps take contiguous tensors [batch, seqlen, nheads, head_dim]");

    NamedMemory memory;
    memory.add("q", t.q, true);
    memory.add("k", t.k, true);
    memory.add("v", t.v, true);
    memory.add("o", t.o, false);
    memory.add("lse", t.lse, false);
    memory.add("workspace", call.workspace, workspace_bytes(call.problem), sizeof(float), false);
    args.q = t.q.data;
    args.k = t.k.data;
    args.v = t.v.data;
    args.o = t.o.data;
    args.lse = static_cast<float*>(t.lse.data);
    args.workspace = call.workspace;
    if (args.backward) {
      memory.add("dout", t.dout, true);
      memory.add("dq", t.dq, false);
      memory.add("dk", t.dk, false);
      memory.add("dv", t.dv, false);
      args.dout = t.dout.data;
      args.dq = t.dq.data;
      args.dk = t.dk.data;
      args.dv = t.dv.data;
    }

    emulator::Options options = options_;
    if (call.threads > 0) options.threads = call.threads;
    emulator::Session session(options);
    const Status status = step_.run(args);
    report_ = std::move(session.report());
    if (!report_.clean()) return failure(Code::failed, "%s", report_.text().c_str());
    return status;
  }

 private:
  CudaStep step_;
  emulator::Options options_;
  std::string name_;
  mutable emulator::Report report_;
};

}  // namespace

std::unique_ptr<EmulatedImplementation> emulated_implementation_of(
    const CudaStep& step, const emulator::Options& options) {
  return std::make_unique<EmulatedStep>(step, options);
}

harness::Table emulated_implementations(const emulator::Options& options) {
  harness::Table table;
  for (const CudaStep& step : emulated_steps())
    table.push_back(emulated_implementation_of(step, options));
  return table;
}

}  // namespace tilewise::stages
