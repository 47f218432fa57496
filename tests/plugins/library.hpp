// The library's own attention in the clothes of a plug-in: every semantic, to test the adapter
// with.
#pragma once

#include "include/tilewise/plugin.h"

#include <cstdio>
#include <memory>

namespace plugins {

inline tilewise_context* context() {
  static const auto made = [] {
    tilewise_context_options options;
    tilewise_context_options_init(&options);
    options.threading = TILEWISE_THREADING_SERIAL;
    tilewise_context* context = nullptr;
    (void)tilewise_context_create(&options, &context, nullptr);
    return std::unique_ptr<tilewise_context, decltype(&tilewise_context_destroy)>(
        context, &tilewise_context_destroy);
  }();
  return made.get();
}

inline tilewise_status supports(void*, const tilewise_attention* attention, std::int32_t pass,
                                char* reason, std::size_t reason_bytes) {
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  tilewise_error error = TILEWISE_ERROR_INIT;
  const tilewise_status status = tilewise_query(context(), attention, pass, &answer, &error);
  std::snprintf(reason, reason_bytes, "%s", status == TILEWISE_OK ? answer.reason : error.message);
  return status == TILEWISE_OK ? answer.code : status;
}

inline std::size_t workspace_bytes(void*, const tilewise_attention* attention, std::int32_t pass) {
  std::size_t bytes = 0;
  (void)tilewise_attention_workspace(context(), attention, pass, &bytes, nullptr, nullptr);
  return bytes;
}

inline tilewise_status run(const tilewise_attention* attention, std::int32_t pass, void* workspace,
                           std::size_t bytes, char* reason, std::size_t reason_bytes) {
  tilewise_error error = TILEWISE_ERROR_INIT;
  const auto compute =
      pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
  const tilewise_status status = compute(context(), attention, workspace, bytes, nullptr, &error);
  std::snprintf(reason, reason_bytes, "%s", error.message);
  return status;
}

template <std::int32_t pass>
tilewise_status run_pass(void*, const tilewise_attention* attention,
                         const tilewise_plugin_call* call, char* reason, std::size_t reason_bytes) {
  return run(attention, pass, call->workspace, call->workspace_bytes, reason, reason_bytes);
}

}  // namespace plugins
