// The loops, written against the registers of the including file; see simd/*_begin.h.

// add: the product of factor by itself to a sum.
template <typename Register, typename Factor, typename Add>
inline float repeat(int64_t repeats, Register zero, Factor factor, const Add& add) {
  // By name: gcc keeps an array in memory here.
  Register a = zero, b = zero, c = zero, d = zero, e = zero, f = zero;
  Register g = zero, h = zero, i = zero, j = zero, k = zero, l = zero;
  static_assert(kSums == 12);
  const auto step = [&](Register& sum) __attribute__((always_inline)) {
    sum = add(sum, factor);
    // Or the compiler would multiply once and for all.
    asm volatile("" : "+v"(sum), "+v"(factor));
  };
  for (int64_t n = 0; n < repeats; ++n) {
    step(a), step(b), step(c), step(d), step(e), step(f);
    step(g), step(h), step(i), step(j), step(k), step(l);
  }
  float result = 0;
  for (const Register& sum : {a, b, c, d, e, f, g, h, i, j, k, l}) {
    float first;
    std::memcpy(&first, &sum, sizeof(first));
    result += first;
  }
  return result;
}
