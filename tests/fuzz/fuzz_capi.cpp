// The C interface: whatever the structs say, a call answers a status, and touches no memory but
// what its tensors describe (a sanitizer watches the borders: every block has exactly the size that
// its tensor spans). Checked here besides:
//
//   a refused call has written nothing; a served one nothing but its outputs
//   a query and the workspace's question agree, and nothing is served that they refuse
//   each refusal has a sentence
#include "tests/fuzz/capi_bytes.hpp"
#include "tests/fuzz/capi_memory.hpp"
#include "tests/fuzz/capi_problem.hpp"
#include "tests/fuzz/targets.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace tilewise::fuzz {
namespace {

// ------------------------------------------------------------------------------------- contexts

/// Tasks in descending order, by workers in turn: no result may depend on either.
void backwards(void*, std::int32_t max_workers, std::int64_t n, tilewise_task fn, void* arg) {
  for (std::int64_t task = n - 1; task >= 0; --task)
    fn(arg, task, static_cast<std::int32_t>(task % max_workers));
}

/// Made once: what a context does by itself is fuzzed apart.
tilewise_context* context_of(bool injected) {
  static const std::array<tilewise_context*, 2> contexts = [] {
    std::array<tilewise_context*, 2> made{};
    for (const bool callers : {false, true}) {
      tilewise_context_options options;
      tilewise_context_options_init(&options);
      options.threading = callers ? TILEWISE_THREADING_CALLER : TILEWISE_THREADING_SERIAL;
      options.threads = callers ? 3 : 0;
      options.parallel_for = callers ? backwards : nullptr;
      require(tilewise_context_create(&options, &made[callers ? 1 : 0], nullptr) == TILEWISE_OK,
              "a context can be made");
    }
    return made;
  }();
  return contexts[injected ? 1 : 0];
}

/// An error struct of some size, and what must be true of it after a call.
class Error {
 public:
  explicit Error(Bytes& bytes) : wanted_(!bytes.one_in(16)), struct_(start(), size(bytes), 0) {}

  tilewise_error* get() const { return wanted_ ? struct_.get() : nullptr; }
  tilewise_status after(tilewise_status status) const {
    require(status >= TILEWISE_OK && status <= TILEWISE_FAILED && status != 4,
            "a status is one of the codes");
    constexpr std::size_t header = offsetof(tilewise_error, message);
    if (!wanted_ || struct_.get()->struct_size > struct_.size() || struct_.size() < header)
      return status;
    require(struct_.get()->code == status, "the error has the status");
    const std::size_t room = std::min(struct_.size(), sizeof(tilewise_error)) - header;
    if (room == 0) return status;
    const char* const message = struct_.get()->message;
    const void* const end = std::memchr(message, '\0', room);
    require(end != nullptr, "a message ends");
    if (room > 1) require((message != end) == (status != TILEWISE_OK), "a refusal has a sentence");
    return status;
  }

 private:
  static tilewise_error start() {
    tilewise_error error = TILEWISE_ERROR_INIT;
    std::memset(error.message, '?', sizeof error.message);
    return error;
  }
  static std::uint32_t size(Bytes& bytes) { return odd_struct_size<tilewise_error>(bytes); }

  bool wanted_;
  Sized<tilewise_error> struct_;
};

// ----------------------------------------------------------------------------------------- calls

/// A pass over `attention`, asked about and then run.
void call(Bytes& bytes, const tilewise_attention& attention, std::int32_t pass, Memory& memory) {
  tilewise_context* const context = bytes.one_in(64) ? nullptr : context_of(bytes.one_in(2));
  const Sized<tilewise_attention> given(attention, odd_struct_size<tilewise_attention>(bytes),
                                        bytes.byte() >= 192 ? 1 : 0);
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  const Sized<tilewise_answer> asked(answer, odd_struct_size<tilewise_answer>(bytes), 0);
  memory.remember();

  const Error query_error(bytes), workspace_error(bytes), error(bytes);
  const tilewise_status query_status =
      query_error.after(tilewise_query(context, given.get(), pass, asked.get(), query_error.get()));
  std::size_t needed = 0, fast = 0;
  const tilewise_status workspace_status = workspace_error.after(tilewise_attention_workspace(
      context, given.get(), pass, &needed, &fast, workspace_error.get()));
  require(fast >= needed, "what is useful is no less than what is needed");
  if (query_status == TILEWISE_OK) {
    answer = *asked.get();
    require(answer.code == workspace_status, "a query and the workspace's question agree");
    require((answer.implementation[0] != '\0') == (answer.code == TILEWISE_OK),
            "an implementation serves what is not refused");
    require(std::memchr(answer.reason, '\0', sizeof answer.reason) != nullptr, "a reason ends");
  }
  memory.require_untouched(false);
  if (work_of(attention) > most_work) return;

  // Mostly what is needed; else a byte less, at an odd address, or none.
  constexpr std::size_t most_workspace = 1 << 20;
  const std::uint8_t kind = bytes.byte();
  const std::size_t least = std::min(needed, most_workspace);
  const std::size_t size = kind < 236 || least == 0 ? least : least - 1;
  const std::size_t shift = kind >= 246 ? 8 : 0;
  const Workspace memory_to_work_in(size + shift);
  std::uint8_t* const workspace = kind >= 251 ? nullptr : memory_to_work_in.data() + shift;
  int stream_of_nobody = 0;
  void* const stream = bytes.one_in(64) ? &stream_of_nobody : nullptr;
  const auto run =
      pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
  const tilewise_status status =
      error.after(run(context, given.get(), workspace, size, stream, error.get()));

  memory.require_untouched(status == TILEWISE_OK);
  if (status != TILEWISE_OK) return;
  require(workspace_status == TILEWISE_OK && size >= needed,
          "what is served was not refused before");
  require(context != nullptr && stream == nullptr, "a call without a context is refused");
  require(tilewise_validate(context, workspace, nullptr, nullptr) == TILEWISE_OK,
          "what has run is in order");
}

void fuzz_attention(Bytes& bytes) {
  Memory memory(bytes);
  const CapiProblem problem = choose_problem(bytes, memory);
  call(bytes, problem.attention, problem.pass, memory);
}

void fuzz_merge(Bytes& bytes) {
  Memory memory(bytes);
  const std::int64_t n = 1 + bytes.below(4);
  const std::int64_t batch = bytes.below(4), seqlen = bytes.below(7), nheads = bytes.below(4),
                     width = bytes.below(70);
  const bool packed = bytes.one_in(2);
  constexpr std::int32_t dtypes[] = {TILEWISE_F32, TILEWISE_F64, TILEWISE_F16, TILEWISE_BF16};
  const auto part = [&](bool lse) {
    const std::int32_t dtype = lse ? TILEWISE_F32 : bytes.of(dtypes);
    tilewise_tensor tensor =
        lse ? (packed ? tensor_of(bytes, dtype, {nheads, seqlen})
                      : tensor_of(bytes, dtype, {batch, nheads, seqlen}))
            : (packed ? tensor_of(bytes, dtype, {seqlen, nheads, width})
                      : tensor_of(bytes, dtype, {batch, seqlen, nheads, width}));
    if (bytes.byte() >= 240) edit(bytes, tensor);
    return tensor;
  };
  // Arrays of exactly n tensors: the library has to stop there.
  std::vector<tilewise_tensor> o_parts, lse_parts;
  for (std::int64_t i = 0; i < n; ++i) {
    memory.place(o_parts.emplace_back(part(false)), false);
    memory.place(lse_parts.emplace_back(part(true)), false);
  }
  o_parts.shrink_to_fit();
  lse_parts.shrink_to_fit();
  tilewise_tensor o = part(false), lse = part(true);
  if (bytes.one_in(4))
    o = o_parts[0];  // in place
  else
    memory.place(o, true);
  if (bytes.one_in(4))
    lse = {};
  else
    memory.place(lse, true);
  const bool in_place = o.data == o_parts[0].data && o.data != nullptr;
  double elements = 0;
  for (const auto* parts : {&o_parts, &lse_parts})
    for (const tilewise_tensor& tensor : *parts)
      elements = std::max(elements, extent_of(tensor).elements);
  if (elements > most_work) return;

  const std::int64_t said = bytes.one_in(16) ? std::min(odd_integer(bytes), n) : n;
  const std::int32_t base =
      bytes.one_in(8) ? odd_choice(bytes) : static_cast<std::int32_t>(bytes.below(2));
  const std::int32_t empty =
      bytes.one_in(8) ? odd_choice(bytes) : static_cast<std::int32_t>(bytes.below(3));
  const bool no_o = bytes.one_in(64), no_parts = bytes.one_in(64);
  const Error error(bytes);
  memory.remember();
  const tilewise_status status = error.after(tilewise_merge_states(
      context_of(bytes.one_in(2)), said, no_parts ? nullptr : o_parts.data(), lse_parts.data(),
      no_o ? nullptr : &o, bytes.one_in(4) ? nullptr : &lse, base, empty, nullptr, error.get()));
  if (status != TILEWISE_OK || !in_place) memory.require_untouched(status == TILEWISE_OK);
  if (status == TILEWISE_OK) require(said >= 1 && !no_o && !no_parts, "nothing is not merged");
}

/// An allocator that refuses after a number of blocks, and knows that it got all of them back. An
/// older header's struct may end before the pointer to it: then it has nothing to remember.
struct Allocator {
  int left = 0, held = 0;

  static void* allocate(void* user, std::size_t bytes) {
    if (auto* const self = static_cast<Allocator*>(user)) {
      if (self->left-- <= 0) return nullptr;
      ++self->held;
    }
    return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  static void release(void* user, void* memory) {
    if (auto* const self = static_cast<Allocator*>(user)) --self->held;
    std::free(memory);
  }
};

void fuzz_context(Bytes& bytes) {
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  Allocator allocator;
  allocator.left = static_cast<int>(bytes.below(4));
  const std::uint8_t choices = bytes.byte();
  const auto chosen = [&](int bit) { return (choices >> bit & 1) != 0; };
  if (chosen(0)) options.threading = odd_choice(bytes);
  if (chosen(1)) options.threads = odd_choice(bytes);
  if (chosen(2)) options.isa = odd_choice(bytes);
  if (chosen(3)) options.parallel_for = backwards;
  if (chosen(4)) options.allocate = Allocator::allocate;
  if (chosen(4) != chosen(5)) options.free_memory = Allocator::release;
  if (chosen(6)) options.device_type = odd_choice(bytes);
  if (chosen(7)) options.device_id = odd_choice(bytes);
  options.allocator_user = &allocator;
  // Threads of its own are made few: they cost more than all the rest.
  if (options.threads == 0 || (options.threads > 3 && options.threads <= 1024)) options.threads = 2;

  const Sized<tilewise_context_options> given(
      options, odd_struct_size<tilewise_context_options>(bytes), bytes.byte() >= 192 ? 1 : 0);
  const bool hooked = given.get()->struct_size >= sizeof options && options.allocate != nullptr;
  const Error error(bytes);
  tilewise_context* context = nullptr;
  const tilewise_status status =
      error.after(tilewise_context_create(given.get(), &context, error.get()));
  require((context != nullptr) == (status == TILEWISE_OK), "a context exists where it was made");
  if (context != nullptr) {
    void* const memory = tilewise_allocate(context, bytes.byte());
    require((reinterpret_cast<std::uintptr_t>(memory) % 64) == 0, "memory is aligned to 64 bytes");
    tilewise_free(context, memory);
  }
  tilewise_context_destroy(context);
  if (hooked) require(allocator.held == 0, "an allocator gets back what it gave");
}

void fuzz_inits(Bytes& bytes) {
  const auto size = odd_struct_size<tilewise_attention>(bytes);
  const Sized<tilewise_attention> attention({}, size, 0xff);
  const Sized<tilewise_context_options> options(
      {}, odd_struct_size<tilewise_context_options>(bytes), 0xff);
  const std::uint32_t options_size = options.get()->struct_size;
  static_cast<void>(tilewise_status_name(bytes.raw<std::int32_t>()));
  const Error error(bytes), options_error(bytes);
  static_cast<void>(options_error.after(tilewise_context_options_init_sized(
      bytes.one_in(32) ? nullptr : options.get(), options_size, options_error.get())));
  std::vector<char> preset;
  while (!bytes.empty()) preset.push_back(static_cast<char>(bytes.byte()));
  preset.push_back('\0');
  static_cast<void>(error.after(
      tilewise_attention_init_sized(attention.get(), size, preset.data(), error.get())));
}

}  // namespace

void fuzz_capi(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::uint8_t kind = bytes.byte();
  if (kind < 192) return fuzz_attention(bytes);
  if (kind < 224) return fuzz_merge(bytes);
  if (kind < 240) return fuzz_context(bytes);
  return fuzz_inits(bytes);
}

}  // namespace tilewise::fuzz
