// Statuses, and contexts: where to compute and with which threads.
#include "cpu/context.hpp"

#include "cpu/api/device.hpp"
#include "cpu/api/sized.hpp"
#include "cpu/flash/detect.hpp"
#include "cpu/validate.hpp"

#include <algorithm>
#include <new>
#include <type_traits>

namespace tilewise::cpu {

static_assert(static_cast<int>(Code::ok) == TILEWISE_OK);
static_assert(static_cast<int>(Code::bad_argument) == TILEWISE_BAD_ARGUMENT);
static_assert(static_cast<int>(Code::unsupported) == TILEWISE_UNSUPPORTED);
static_assert(static_cast<int>(Code::no_memory) == TILEWISE_NO_MEMORY);
static_assert(static_cast<int>(Code::failed) == TILEWISE_FAILED);
static_assert(std::is_same_v<std::int32_t, int>, "the kernels call the caller's parallel_for");

Status check_room(const char* name, std::uint32_t size, std::size_t expected,
                  const char* initialiser) {
  if (size >= expected && size <= largest_struct) return {};
  return failure(Code::bad_argument, "%s has struct_size %u, expected %zu: %s sets it", name, size,
                 expected, initialiser);
}

tilewise_status report(tilewise_error* error, const Status& status) {
  const auto code = static_cast<std::int32_t>(status.code);
  constexpr std::size_t header = offsetof(tilewise_error, message);
  if (error == nullptr || error->struct_size < header || error->struct_size > largest_struct)
    return code;
  error->code = code;
  const std::size_t room = std::min<std::size_t>(error->struct_size, sizeof *error) - header;
  if (room == 0) return code;
  const std::size_t length = std::min(std::strlen(status.reason), room - 1);
  std::memcpy(error->message, status.reason, length);
  error->message[length] = '\0';
  return code;
}

namespace {

constexpr std::int32_t most_threads = 1024;
constexpr std::size_t alignment = 64;

tilewise_context_options default_options() {
  tilewise_context_options options{};
  options.struct_size = sizeof options;
  options.isa = TILEWISE_ISA_AUTO;
  options.threading = TILEWISE_THREADING_THREADS;
  options.device_type = TILEWISE_CPU;
  return options;
}

void* allocate_by_default(void*, std::size_t bytes) {
  return ::operator new (bytes, std::align_val_t{alignment}, std::nothrow);
}
void free_by_default(void*, void* memory) {
  ::operator delete (memory, std::align_val_t{alignment}, std::nothrow);
}

Status check_options(const tilewise_context_options& options) {
  if (Status status = check_choice("isa", options.isa, TILEWISE_ISA_SSE2 + 1); !status.ok())
    return status;
  if (options.isa > TILEWISE_ISA_PORTABLE && flash::kernels_of(options.isa) == nullptr)
    return failure(Code::unsupported,
                   "isa is %d, which this processor, or this build, does not have; auto (0) takes "
                   "the best there is, and portable (1) runs everywhere",
                   static_cast<int>(options.isa));
  if (options.isa == TILEWISE_ISA_AUTO && flash::refused_isa() != nullptr)
    return failure(Code::unsupported,
                   "the environment's TILEWISE_ISA is \"%.20s\", which this processor, or this "
                   "build, does not have; expected portable, sse2, avx2, avx512 or neon",
                   flash::refused_isa());
  if (Status status = check_choice("threading", options.threading, TILEWISE_THREADING_CALLER + 1);
      !status.ok())
    return status;
  if (options.threading == TILEWISE_THREADING_OPENMP && !openmp_compiled_in())
    return failure(Code::unsupported, "threading is OpenMP, and this library was built without it");
  if (options.threads < 0 || options.threads > most_threads)
    return failure(Code::bad_argument, "threads is %d; expected 1 to %d, or 0 for the machine's",
                   static_cast<int>(options.threads), static_cast<int>(most_threads));
  const bool injected = options.threading == TILEWISE_THREADING_CALLER;
  if (injected && options.parallel_for == nullptr)
    return failure(Code::bad_argument,
                   "threading is the caller's, and parallel_for is null; expected a function");
  if (injected && options.threads == 0)
    return failure(Code::bad_argument,
                   "threads is 0; beside parallel_for expected the number of its workers");
  if (!injected && (options.parallel_for != nullptr || options.pool != nullptr))
    return failure(Code::bad_argument, "%s is set, and threading is %d; expected 3, the caller's",
                   options.parallel_for != nullptr ? "parallel_for" : "pool",
                   static_cast<int>(options.threading));
  if ((options.allocate == nullptr) != (options.free_memory == nullptr))
    return failure(Code::bad_argument,
                   "of allocate and free_memory one is given; expected both or none");
  if (options.device_type != TILEWISE_CPU && options.device_type != TILEWISE_CUDA &&
      options.device_type != TILEWISE_BEST_DEVICE)
    return failure(Code::bad_argument,
                   "device_type is %d; expected 1, the CPU, 2, CUDA, or 0, the better of them",
                   static_cast<int>(options.device_type));
  return {};
}

Status create(const tilewise_context_options* given, tilewise_context** result) {
  if (result == nullptr) return failure(Code::bad_argument, "context is null");
  *result = nullptr;
  tilewise_context_options options = default_options();
  if (given != nullptr)
    if (Status status = read_sized("context_options", given,
                                   offsetof(tilewise_context_options, parallel_for), options);
        !status.ok())
      return status;
  if (Status status = check_options(options); !status.ok()) return status;
  Placed placed;
  if (Status status = place(options, placed); !status.ok()) return status;
  if (options.allocate == nullptr) {
    options.allocate = allocate_by_default;
    options.free_memory = free_by_default;
  }

  // Another device has threads of its own.
  const bool on_cpu = placed.backend == nullptr;
  int threads =
      options.threads == 0 ? std::min<int>(hardware_threads(), most_threads) : options.threads;
  Workers workers{serial_for, nullptr, 1};
  if (on_cpu && options.threading == TILEWISE_THREADING_CALLER)
    workers = {options.parallel_for, options.pool, threads};
  else if (on_cpu && options.threading == TILEWISE_THREADING_OPENMP)
    workers = {openmp_for, nullptr, threads};
  const bool pool = on_cpu && options.threading == TILEWISE_THREADING_THREADS && threads > 1;

  void* const memory = options.allocate(options.allocator_user, sizeof(tilewise_context));
  if (memory == nullptr)
    return failure(Code::no_memory, "a context needs %zu bytes, and the allocator has none",
                   sizeof(tilewise_context));
  const flash::TileKernels* const kernels =
      options.isa == TILEWISE_ISA_AUTO ? flash::best_kernels() : flash::kernels_of(options.isa);
  auto* const context = new (memory) tilewise_context{kernels,
                                                      workers,
                                                      nullptr,
                                                      nullptr,
                                                      options.allocate,
                                                      options.free_memory,
                                                      options.allocator_user,
                                                      placed.device,
                                                      placed.backend,
                                                      placed.limits,
                                                      placed.choice};
  if (!pool) {
    *result = context;
    return {};
  }
  const std::size_t bytes = thread_pool_bytes(threads - 1);
  context->pool_memory = options.allocate(options.allocator_user, bytes);
  if (context->pool_memory != nullptr)
    context->pool = start_thread_pool(context->pool_memory, threads - 1);
  if (context->pool != nullptr) {
    context->workers = {thread_pool_for, context->pool, threads};
    *result = context;
    return {};
  }
  const bool refused = context->pool_memory != nullptr;
  tilewise_context_destroy(context);
  return refused ? failure(Code::no_memory, "the system does not start %d threads", threads - 1)
                 : failure(Code::no_memory,
                           "a pool of threads needs %zu bytes, and the allocator "
                           "has none",
                           bytes);
}

}  // namespace
}  // namespace tilewise::cpu

using namespace tilewise::cpu;  // NOLINT(google-build-using-namespace): the C functions are global
using tilewise::Code;
using tilewise::failure;

const char* tilewise_status_name(tilewise_status code) {
  switch (code) {
    case TILEWISE_OK:
    case TILEWISE_BAD_ARGUMENT:
    case TILEWISE_UNSUPPORTED:
    case TILEWISE_NO_MEMORY:
    case TILEWISE_FAILED: return tilewise::name_of(static_cast<Code>(code));
    default: return "unknown";
  }
}

std::int32_t tilewise_abi_version(void) {
  return TILEWISE_ABI_VERSION;
}

tilewise_status tilewise_context_options_init_sized(tilewise_context_options* options,
                                                    std::uint32_t struct_size,
                                                    tilewise_error* error) {
  if (options == nullptr) return report(error, failure(Code::bad_argument, "options is null"));
  if (struct_size < offsetof(tilewise_context_options, parallel_for) ||
      struct_size > largest_struct)
    return report(error, failure(Code::bad_argument,
                                 "struct_size is %u; expected sizeof(tilewise_context_options)",
                                 struct_size));
  write_sized(options, struct_size, default_options());
  return report(error, {});
}

tilewise_status tilewise_context_create(const tilewise_context_options* options,
                                        tilewise_context** context, tilewise_error* error) {
  return report(error, create(options, context));
}

void tilewise_context_destroy(tilewise_context* context) {
  if (context == nullptr) return;
  if (context->pool != nullptr) stop_thread_pool(context->pool);
  const tilewise_free_function free_memory = context->free_memory;
  void* const user = context->allocator_user;
  if (context->pool_memory != nullptr) free_memory(user, context->pool_memory);
  free_memory(user, context);
}

void* tilewise_allocate(tilewise_context* context, std::size_t bytes) {
  if (context == nullptr) return nullptr;
  const std::size_t some = bytes == 0 ? 1 : bytes;
  if (context->backend != nullptr) return context->backend->allocate(context->device.id, some);
  return context->allocate(context->allocator_user, some);
}

void tilewise_free(tilewise_context* context, void* memory) {
  if (context == nullptr || memory == nullptr) return;
  if (context->backend != nullptr)
    context->backend->release(context->device.id, memory);
  else
    context->free_memory(context->allocator_user, memory);
}
