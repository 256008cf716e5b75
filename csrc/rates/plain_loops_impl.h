// The loops of what every processor served multiplies, written against F32 and I32 of the including file.
// With
// [&], as gcc compiles the function pointer that a lambda without would convert to for any processor.

float float32(int64_t repeats) {
  using Register = F32::Register;
  return repeat(repeats, F32::zero(), F32::broadcast(0.5f),
                [&](Register sum, Register factor) { return F32::fma(sum, factor, factor); });
}

float int16(int64_t repeats) {
  using Register = I32::Register;
  constexpr int16_t kPair[] = {3, 3};
  return repeat(repeats, I32::zero(), I32::broadcast_pair(kPair),
                [&](Register sum, Register factor) { return I32::add_products(sum, factor, factor); });
}
