// Sharing out work of uneven cost.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

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

}  // namespace mrcnn_ext
