#include "stages/gpu/gpu_adapter.hpp"

#include "cuda/device/memory.hpp"
#include "stages/cuda_problem.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace tilewise::stages {
namespace {

using device::Event;
using device::status_of;
using device::Stream;
using harness::Call;
using harness::Support;

/// A tensor's bytes on the device, between two guards, for as long as a call takes.
class Travelling {
 public:
  static constexpr std::size_t guard = 256;  // keeps the alignment that cudaMalloc gives

  Status there(const void* host, std::size_t bytes, const char* name) {
    name_ = name;
    if (host == nullptr) return {};
    const auto* const first = static_cast<const unsigned char*>(host);
    std::vector<unsigned char> all(guard, pattern);
    all.insert(all.end(), first, first + bytes);
    all.insert(all.end(), guard, pattern);
    Status status = memory_.allocate(all.size(), name);
    return status.ok() ? memory_.upload(all.data()) : status;
  }

  /// Null: nothing of an input comes back; that it is as it was is looked at.
  Status back(void* host, const void* as_it_was) const {
    if (memory_.data() == nullptr) return {};
    std::vector<unsigned char> all(memory_.size());
    if (Status status = memory_.download(all.data()); !status.ok()) return status;
    const auto begin = all.begin() + guard, end = all.end() - guard;
    const auto untouched = [](unsigned char byte) { return byte == pattern; };
    if (!std::all_of(all.begin(), begin, untouched) || !std::all_of(end, all.end(), untouched))
      return failure(Code::failed, "wrote outside of %s, on the device", name_);
    if (host != nullptr)
      std::copy(begin, end, static_cast<unsigned char*>(host));
    else if (!std::equal(begin, end, static_cast<const unsigned char*>(as_it_was)))
      return failure(Code::failed, "wrote to %s, an input, on the device", name_);
    return {};
  }

  void* data() const { return memory_.data() == nullptr ? nullptr : memory_.data() + guard; }

 private:
  static constexpr unsigned char pattern = 0xa5;
  const char* name_ = "";
  device::Memory<unsigned char> memory_;
};

class GpuStep final : public harness::Implementation {
 public:
  explicit GpuStep(const CudaStep& step) : step_(step), name_("stage." + std::string(step.name)) {}

  std::string_view name() const override { return name_; }
  std::string_view idea() const override { return step_.idea; }

  Support supports(const Problem& problem) const override {
    std::string why;
    if (gpu_name(why).empty()) return Support::no(why);
    why = reason_against(problem, step_.features);
    return why.empty() ? Support::yes() : Support::no(why);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return step_.workspace_bytes == nullptr ? 0 : step_.workspace_bytes(sizes_of(problem));
  }
  std::optional<double> bytes_moved(const Problem& problem) const override {
    if (step_.bytes_moved == nullptr) return std::nullopt;
    return step_.bytes_moved(sizes_of(problem));
  }

  bool on_device() const override { return true; }

  Status run(const Call& call) const override {
    CudaArgs args = sizes_of(call.problem);
    args.softmax_scale = static_cast<float>(call.params.softmax_scale);
    const AttentionTensors& t = call.tensors;
    if (!all_plain(args, t))
      return failure(Code::unsupported,
                     "the steps take contiguous tensors [batch, seqlen, nheads, head_dim]");
    struct Bound {
      const char* name;
      const TensorView& view;
      bool input;
      Travelling device;
    };
    std::vector<Bound> all;
    const auto bind = [&](const char* name, const TensorView& view, bool input) {
      all.push_back({name, view, input, {}});
    };
    bind("q", t.q, true);
    bind("k", t.k, true);
    bind("v", t.v, true);
    bind("o", t.o, false);
    bind("lse", t.lse, false);
    if (args.backward) {
      bind("dout", t.dout, true);
      bind("dq", t.dq, false);
      bind("dk", t.dk, false);
      bind("dv", t.dv, false);
    }
    for (Bound& one : all) {
      const std::size_t bytes =
          static_cast<std::size_t>(one.view.elements()) * size_of(one.view.dtype);
      if (Status status = one.device.there(one.view.data, bytes, one.name); !status.ok())
        return status;
    }
    Travelling workspace;
    if (Status status = workspace.there(call.workspace, call.workspace_bytes, "workspace");
        !status.ok())
      return status;
    args.q = all[0].device.data();
    args.k = all[1].device.data();
    args.v = all[2].device.data();
    args.o = all[3].device.data();
    args.lse = static_cast<float*>(all[4].device.data());
    if (args.backward) {
      args.dout = all[5].device.data();
      args.dq = all[6].device.data();
      args.dk = all[7].device.data();
      args.dv = all[8].device.data();
    }
    args.workspace = workspace.data();
    Status status = call.device_seconds != nullptr ? time(args, *call.device_seconds) : once(args);
    if (!status.ok()) return status;
    for (const Bound& one : all)
      if (status = one.device.back(one.input ? nullptr : one.view.data, one.view.data);
          !status.ok())
        return status;
    return workspace.back(call.workspace, nullptr);
  }

 private:
  /// The next of three ways.
  Status once(CudaArgs args) const {
    Stream stream;
    Status status = stream.create();
    const int way = calls_++ % 3;
    if (status.ok() && way == 0) {
      args.stream = stream.handle();
      status = step_.run(args);
    } else if (status.ok() && way == 1) {
      args.stream = stream.handle();
      status = captured(args, stream.handle());
    } else if (status.ok()) {
      args.stream = nullptr;
      status = step_.run(args);
    }
    if (status.ok()) status = status_of(cudaDeviceSynchronize(), step_.name.data());
    return status;
  }

  Status captured(const CudaArgs& args, cudaStream_t stream) const {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    Status status = status_of(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                              "beginning a graph");
    if (!status.ok()) return status;
    status = step_.run(args);
    const Status ended = status_of(cudaStreamEndCapture(stream, &graph), "a graph");
    if (status.ok()) status = ended;
    if (status.ok()) status = status_of(cudaGraphInstantiate(&ready, graph, 0), "a graph");
    if (status.ok()) status = status_of(cudaGraphLaunch(ready, stream), "a graph's launch");
    if (status.ok()) status = status_of(cudaStreamSynchronize(stream), step_.name.data());
    if (ready != nullptr) (void)cudaGraphExecDestroy(ready);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    return status;
  }

  Status time(CudaArgs args, double& seconds) const {
    Stream stream;
    Event begin, end;
    Status status = stream.create();
    if (status.ok()) status = begin.create();
    if (status.ok()) status = end.create();
    if (!status.ok()) return status;
    args.stream = stream.handle();
    // A first call loads the module.
    status = step_.run(args);
    if (status.ok()) status = stream.wait();
    if (status.ok()) status = begin.record(stream.handle());
    if (status.ok()) status = step_.run(args);
    if (status.ok()) status = end.record(stream.handle());
    if (status.ok()) status = end.wait();
    float milliseconds = 0;
    if (status.ok()) status = end.since(begin, milliseconds);
    seconds = static_cast<double>(milliseconds) / 1000;
    return status;
  }

  CudaStep step_;
  std::string name_;
  mutable int calls_ = 0;
};

}  // namespace

std::string gpu_name(std::string& why) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    why = error != cudaSuccess ? std::string("no GPU: ") + cudaGetErrorString(error) : "no GPU";
    return {};
  }
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    why = "the GPU does not say what it is";
    return {};
  }
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) +
         "." + std::to_string(properties.minor);
}

harness::Table gpu_implementations() {
  harness::Table table;
  for (const CudaStep& step : gpu_steps()) table.push_back(std::make_unique<GpuStep>(step));
  return table;
}

}  // namespace tilewise::stages
