// A progress bar on stderr where that is a terminal; elsewhere one line a finished step.
#pragma once

#include <chrono>
#include <string>

namespace tilewise::tools {

class Progress {
 public:
  explicit Progress(int steps);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// What is being done now.
  void begin(const std::string& what);
  /// How far the present step has come, 0 to 1.
  void within(double fraction);
  /// The present step is done; `outcome` is a word or two.
  void done(const std::string& outcome);

 private:
  void draw(double fraction);

  int steps_, step_ = 0;
  bool terminal_;
  std::string what_;
  std::chrono::steady_clock::time_point start_, drawn_;
};

}  // namespace tilewise::tools
