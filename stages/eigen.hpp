// The matrices of a step as Eigen's.
#pragma once
#include "stages/stage.hpp"

#include <Eigen/Core>

namespace tilewise::stages {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>;
using ConstRows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

inline Rows eigen(Matrix m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}
inline ConstRows eigen(ConstMatrix m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}

}  // namespace tilewise::stages
