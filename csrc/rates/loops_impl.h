// The loops, written against the registers of the including file; see simd/*_begin.h.

// add: the product of factor by itself to a sum.
template <typename Register, typename Factor, typename Add>
inline float repeat(int64_t repeats, Register zero, Factor factor, const Add& add) {
  Register sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = zero;
  for (int64_t k = 0; k < repeats; ++k) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sums[i] = add(sums[i], factor);
      // Or the compiler would multiply once and for all.
      asm volatile("" : "+v"(sums[i]), "+v"(factor));
    }
  }
  float result = 0;
  for (int i = 0; i < kSums; ++i) {
    float first;
    std::memcpy(&first, &sums[i], sizeof(first));
    result += first;
  }
  return result;
}
