// Sums over tiles of products of int16, written against a type Sums like I32 of simd/*_begin.h. Included
// wherever one is, so that it is compiled for the same instructions.
namespace int16_products {

// As of gradient_impl.h.
template <typename Sums>
struct Products {
  using Value = int16_t;
  using Register = typename Sums::Register;
  static constexpr int kLanes = Sums::kLanes;
  static Register zero() { return Sums::zero(); }
  static Register load(const Value* from) { return Sums::load(from); }
  static Register broadcast(const Value* from) { return Sums::broadcast_pair(from); }
  static Register add(Register sum, Register a, Register b) { return Sums::add_products(sum, a, b); }
  static F32::Register scaled(Register sum, float row_scale, const float* scales) {
    const auto scale = F32::multiply(F32::broadcast(row_scale), F32::load(scales));
    return F32::multiply(scale, Sums::to_float(sum));
  }
};

#include "gradient_products_impl.h"

}  // namespace int16_products
