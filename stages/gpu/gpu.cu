#include "stages/gpu/gpu.hpp"

#include "cuda/device/memory.hpp"

namespace tilewise::stages {
namespace {

using device::Event;
using device::status_of;
using device::Stream;

Gpu first_gpu() {
  Gpu gpu;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    gpu.why_not = "no GPU";
    if (error != cudaSuccess) gpu.why_not += std::string(": ") + cudaGetErrorString(error);
    return gpu;
  }
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    gpu.why_not = "the GPU does not say what it is";
    return gpu;
  }
  gpu.compute_capability = 10 * properties.major + properties.minor;
  gpu.multiprocessors = properties.multiProcessorCount;
  gpu.shared_bytes_a_block = properties.sharedMemPerBlockOptin;
  gpu.name = std::string(properties.name) + ", compute capability " +
             std::to_string(properties.major) + "." + std::to_string(properties.minor);
  return gpu;
}

Status captured(const Launch& launch, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  Status status = status_of(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                            "beginning a graph");
  if (!status.ok()) return status;
  status = launch(stream);
  const Status ended = status_of(cudaStreamEndCapture(stream, &graph), "a graph");
  if (status.ok()) status = ended;
  if (status.ok()) status = status_of(cudaGraphInstantiate(&ready, graph, 0), "a graph");
  if (status.ok()) status = status_of(cudaGraphLaunch(ready, stream), "a graph's launch");
  if (status.ok()) status = status_of(cudaStreamSynchronize(stream), "a graph's kernels");
  if (ready != nullptr) (void)cudaGraphExecDestroy(ready);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  return status;
}

}  // namespace

const Gpu& this_gpu() {
  static const Gpu it = first_gpu();
  return it;
}

Status launch_in_turn(int turn, const Launch& launch) {
  Stream stream;
  Status status = stream.create();
  const int way = turn % 3;
  if (status.ok() && way == 1)
    status = captured(launch, stream.handle());
  else if (status.ok())
    status = launch(way == 0 ? stream.handle() : nullptr);
  if (status.ok()) status = status_of(cudaDeviceSynchronize(), "the kernels");
  return status;
}

Status time_launch(const Launch& launch, double& seconds) {
  Stream stream;
  Event begin, end;
  Status status = stream.create();
  if (status.ok()) status = begin.create();
  if (status.ok()) status = end.create();
  if (status.ok()) status = launch(stream.handle());
  if (status.ok()) status = stream.wait();
  if (status.ok()) status = begin.record(stream.handle());
  if (status.ok()) status = launch(stream.handle());
  if (status.ok()) status = end.record(stream.handle());
  if (status.ok()) status = end.wait();
  float milliseconds = 0;
  if (status.ok()) status = end.since(begin, milliseconds);
  seconds = static_cast<double>(milliseconds) / 1000;
  return status;
}

}  // namespace tilewise::stages
