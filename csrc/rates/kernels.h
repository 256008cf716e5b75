// How fast the processor multiplies and adds, from registers alone: what no kernel can be faster than.
#pragma once

#include <cstdint>

namespace mrcnn_ext {
namespace rates {

// Sums that do not wait for each other: more than an instruction takes cycles, times those begun in one.
constexpr int kSums = 12;

// A loop of multiply-adds; what it returns is of no interest, but has to be computed.
struct Loop {
  float (*run)(int64_t repeats);
  int64_t products;  // of each repeat
};

// Of a dtype that there is no instruction for: run is nullptr.
struct Loops {
  Loop float32, bf16, int16, int8;
};

#if defined(__x86_64__)
Loops avx512_loops();
Loop avx512_bf16_loop();
Loops avx512_vnni_loops();
Loops avx2_loops();
#endif

}  // namespace rates
}  // namespace mrcnn_ext
