#include "oracle/harness/scaling.hpp"

#include "oracle/harness/session.hpp"

#include <algorithm>
#include <cmath>

namespace tilewise::harness {

std::string_view name_of(Vary vary) {
  switch (vary) {
    case Vary::q: return "q";
    case Vary::k: return "k";
    case Vary::both: return "both";
  }
  return {};
}

double log_slope(std::span<const MemoryPoint> points, Vary vary) {
  double count = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0;
  for (const MemoryPoint& point : points) {
    if (point.vary != vary) continue;
    const double x = std::log(static_cast<double>(point.n));
    const double y = std::log(static_cast<double>(std::max<std::int64_t>(point.bytes, 64)));
    count += 1;
    sum_x += x;
    sum_y += y;
    sum_xx += x * x;
    sum_xy += x * y;
  }
  const double variance = count * sum_xx - sum_x * sum_x;
  return variance > 0 ? (count * sum_xy - sum_x * sum_y) / variance : 0;
}

MemoryCurve measure_scaling(const Implementation& implementation, const Problem& base,
                            std::span<const std::int64_t> lengths,
                            const std::string& data_directory) {
  MemoryCurve curve;
  for (const Vary vary : {Vary::q, Vary::k, Vary::both})
    for (const std::int64_t n : lengths) {
      Problem problem = base;
      if (vary != Vary::k) problem.seqlens_q = {n};
      if (vary != Vary::q) problem.seqlens_k = {n};
      // Where no length differs from an earlier problem's, the curves meet: measured once.
      const auto known =
          std::find_if(curve.points.begin(), curve.points.end(), [&](const MemoryPoint& point) {
            return point.n == n && problem.seqlens_q == base.seqlens_q &&
                   problem.seqlens_k == base.seqlens_k;
          });
      if (known != curve.points.end()) {
        curve.points.push_back({n, vary, known->bytes});
        continue;
      }
      Session session(implementation, problem, 1);
      Status status = session.allocate();
      if (status.ok()) status = session.fill(data_directory);
      const MemoryReport report = status.ok() ? session.measure_memory() : MemoryReport{};
      if (!report.measured) {
        curve.points.clear();
        curve.why = status.ok() ? report.why : status.reason;
        return curve;
      }
      curve.points.push_back({n, vary, report.total()});
    }
  curve.slope_q = log_slope(curve.points, Vary::q);
  curve.slope_k = log_slope(curve.points, Vary::k);
  curve.slope_both = log_slope(curve.points, Vary::both);
  return curve;
}

}  // namespace tilewise::harness
