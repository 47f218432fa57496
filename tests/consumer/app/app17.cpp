// In C++17, on the caller's own threads and memory, which the smallest program leaves to us.
#include <tilewise/attention.hpp>

#include <cstdio>
#include <cstdlib>

namespace {

struct Pool {
  int calls = 0;
};

// [snippet threads]
/// Here, all by one worker; a pool spreads the tasks over max_workers of its threads.
void on_my_pool(void* pool, std::int32_t /*max_workers*/, std::int64_t n, tilewise_task fn,
                void* arg) {
  ++static_cast<Pool*>(pool)->calls;
  for (std::int64_t task = 0; task < n; ++task) fn(arg, task, /*worker=*/0);
}
// [end threads]

// [snippet allocator]
void* my_allocate(void* bytes_so_far, std::size_t bytes) {
  *static_cast<std::size_t*>(bytes_so_far) += bytes;
  return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}
void my_free(void*, void* memory) {
  std::free(memory);
}
// [end allocator]

float q[2 * 8 * 64], k[100 * 2 * 64], v[100 * 2 * 64], o[2 * 8 * 64];

}  // namespace

int main() {
  for (float& element : v) element = 3;
  Pool my_pool;
  std::size_t allocated = 0;
  // [snippet options]
  tilewise::ContextOptions options;
  options.threading = TILEWISE_THREADING_CALLER;
  options.threads = 4;  // workers at once, at most
  options.parallel_for = on_my_pool;
  options.pool = &my_pool;
  options.allocate = my_allocate;
  options.free_memory = my_free;
  options.allocator_user = &allocated;
  tilewise::Context context(options);
  // [end options]
  if (!context || allocated == 0) return 1;

  // [snippet workspace]
  tilewise::FlashAttnArgs args;
  args.causal = true;
  const tilewise::Description call = tilewise::describe::flash_attn_func(
      tilewise::tensor(q, {1, 2, 8, 64}), tilewise::tensor(k, {1, 100, 2, 64}),
      tilewise::tensor(v, {1, 100, 2, 64}), tilewise::tensor(o, {1, 2, 8, 64}), {}, args);
  tilewise_error error = TILEWISE_ERROR_INIT;
  std::size_t bytes = 0;
  tilewise_attention_workspace(context.get(), &call.attention, call.pass, &bytes, nullptr, &error);
  void* const workspace = tilewise_allocate(context.get(), bytes);  // or 64-byte aligned of yours
  tilewise_attention_forward(context.get(), &call.attention, workspace, bytes, nullptr, &error);
  // [end workspace]
  tilewise_free(context.get(), workspace);

  // [snippet available]
  const tilewise::Availability here = tilewise::available(context, call);
  if (!here) std::printf("refused: %s\n", here.reason());
  // [end available]
  if (my_pool.calls == 0) return 1;
  std::printf("%s %g\n", error.code == TILEWISE_OK ? "ok" : error.message,
              static_cast<double>(o[0]));
  return 0;
}
