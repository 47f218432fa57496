// What main.cpp asks of each copy.
#pragma once

#include <vector>

struct Answer {
  const void* forward;         ///< where this copy's function lies
  std::vector<float> numbers;  ///< o, lse, dq, dk, dv; empty if a call failed
};

Answer one();
Answer two();
