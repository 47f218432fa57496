// The library's C interface as an implementation: what an app calls is what is judged, on the CPU
// and on other devices.
#pragma once

#include "include/tilewise/tilewise.h"
#include "oracle/harness/implementation.hpp"

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace tilewise::tools {

/// A problem's parameters and tensors as the C struct of one call. The tensors may have no memory
/// behind them: their shapes are enough for tilewise_query and tilewise_attention_workspace.
tilewise_attention c_attention(const AttentionParams& params, const AttentionTensors& tensors);

/// The same with what else a problem says: num_splits, and how long packed sequences are at most.
tilewise_attention c_attention(const Problem& problem, const AttentionTensors& tensors);

/// One of the library's implementations, called through tilewise_attention_forward and _backward.
class LibraryImplementation : public harness::Implementation {
 public:
  /// Which one it is, and the options of a context that has it.
  struct Row {
    const char* name;
    const char* idea;
    const char* served_by;  ///< what tilewise_query calls it
    std::int32_t isa = TILEWISE_ISA_AUTO;
    std::int32_t device_type = TILEWISE_CPU, device_id = 0;
    const tilewise_backend* backend = nullptr;
  };
  explicit LibraryImplementation(const Row& row) : row_(row) {}

  std::string_view name() const override { return row_.name; }
  std::string_view idea() const override { return row_.idea; }
  harness::Support supports(const Problem& problem) const override;
  std::size_t workspace_bytes(const Problem& problem) const override;

  /// On the tensors as they are: of other devices' somebody else has to see to their memory.
  Status run(const harness::Call& call) const override;

 protected:
  /// The passes of a call on these tensors, in memory of the context's device.
  Status compute(const harness::Call& call, const AttentionTensors& tensors, void* workspace,
                 void* stream) const;
  /// What a device has to say of the lengths and tables of the last call; waits for it.
  Status validate(const harness::Call& call, const void* workspace, void* stream) const;

 private:
  tilewise_attention attention_of(const Problem& problem, AttentionTensors tensors) const;
  std::pair<Status, tilewise_context*> context_for(int threads) const;

  using Context = std::unique_ptr<tilewise_context, decltype(&tilewise_context_destroy)>;
  Row row_;
  mutable std::mutex mutex_;
  mutable std::map<int, Context> contexts_;
};

/// cpu.portable.
std::unique_ptr<harness::Implementation> portable_implementation();

/// That, and the tile kernels of each instruction set of this architecture, slowest first; whether
/// the processor has it, supports() says.
harness::Table library_implementations();

/// What the kernels for a GPU are called, with their idea; without a backend, none that can run.
LibraryImplementation::Row cuda_row(const char* name);
LibraryImplementation::Row cuda_row_sm90(const char* name);

}  // namespace tilewise::tools
