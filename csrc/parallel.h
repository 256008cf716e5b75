// Sharing out work to threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

namespace mrcnn_ext {

// Calls body(unit) for every unit, on whichever thread is free: units differ in cost.
template <typename Body>
void share_out(int64_t units, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), units);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t unit = next++; unit < units; unit = next++) body(unit);
  });
}

// How many of `total` equal things to put in a unit, a multiple of `step` up to `largest`: the most with
// which the threads are done about as soon as they can be.
inline int64_t balanced_block(int64_t total, int64_t step, int64_t largest) {
  const int64_t threads = at::get_num_threads();
  const auto busiest = [&](int64_t block) {
    const int64_t blocks = total / block, rest = (total % block + step - 1) / step * step;
    return blocks / threads * block + (blocks % threads > 0 ? block : rest);
  };
  int64_t soonest = std::numeric_limits<int64_t>::max();
  for (int64_t block = step; block <= largest; block += step) soonest = std::min(soonest, busiest(block));
  int64_t best = largest;
  while (20 * busiest(best) > 21 * soonest) best -= step;
  return best;
}

}  // namespace mrcnn_ext
