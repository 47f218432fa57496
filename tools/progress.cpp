// See progress.hpp.
#include "tools/progress.hpp"

#include "tools/common.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace tilewise::tools {

namespace {
std::size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}
}  // namespace

Progress::Progress(int steps)
    : steps_(std::max(steps, 1)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (terminal_) fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

void Progress::begin(const std::string& what) {
  what_ = what;
  drawn_ = {};
  within(0);
}

void Progress::within(double fraction) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || now - drawn_ < std::chrono::milliseconds(50)) return;
  drawn_ = now;
  draw(std::clamp(fraction, 0.0, 1.0));
}

void Progress::done(const std::string& outcome) {
  ++step_;
  if (terminal_) return;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  fmt::print(stderr, "[{:>{}}/{}] {:5.1f} s  {}: {}\n", step_, fmt::formatted_size("{}", steps_),
             steps_, seconds, what_, outcome);
  std::fflush(stderr);
}

void Progress::draw(double fraction) {
  constexpr int width = 24;
  const double part = (step_ + fraction) / steps_;
  const int full = static_cast<int>(part * width);
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < full ? "\u2588" : "\u2591";
  std::string text = fmt::format("{:3.0f} %  {}", part * 100, what_);
  const std::size_t room = terminal_columns() - width - 3;
  if (text.size() > room) text.resize(room);
  fmt::print(stderr, "\r{} {}\033[K", bar, text);
  std::fflush(stderr);
}

}  // namespace tilewise::tools
