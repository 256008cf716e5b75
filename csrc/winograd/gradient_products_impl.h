// Sums over tiles of products, written against a type Products of what is multiplied. Included wherever one
// is, so that it is compiled for the same instructions.

// kVectors registers of channels.
template <typename Products, int kVectors>
inline void add_products_of(const RowsOfSums<typename Products::Value>& task) {
  using Value = typename Products::Value;
  constexpr int kPerPanel = kPanel / Products::kLanes;  // registers
  typename Products::Register sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) sums[row][i] = Products::zero();
  const Value* rows[kRows];
  for (int row = 0; row < kRows; ++row) rows[row] = task.rows[row];
  const Value* panels = task.panels;
  for (int64_t step = 0; step < task.steps; ++step, panels += kStep<Value>) {
    typename Products::Register values[kVectors];
    for (int i = 0; i < kVectors; ++i)
      values[i] = Products::load(panels + i / kPerPanel * task.panel_stride +
                                 i % kPerPanel * (kStep<Value> / kPerPanel));
    for (int row = 0; row < kRows; ++row) {
      const auto value = Products::broadcast(rows[row] + step * kStep<Value>);
      for (int i = 0; i < kVectors; ++i) sums[row][i] = Products::add(sums[row][i], value, values[i]);
    }
  }
  // Without branches: rows that are not there go nowhere, and what is not there yet is zero.
  static const float zeros[kVectors * F32::kLanes] = {};
  float nowhere[kVectors * F32::kLanes];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
    float* to = row < task.count ? task.sums + row * task.sum_stride : nowhere;
    const float* from = task.first || row >= task.count ? zeros : to;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const auto sum =
          Products::scaled(sums[row][i], task.row_scales[row], task.panel_scales + i * F32::kLanes);
      F32::store(to + i * F32::kLanes, F32::add(F32::load(from + i * F32::kLanes), sum));
    }
  }
}

template <typename Products>
void add_products(const RowsOfSums<typename Products::Value>& task, int64_t panels) {
  constexpr int kPerPanel = kPanel / Products::kLanes;
  if constexpr (kPerPanel == 1) {
    if (panels == 4) return add_products_of<Products, 4>(task);
    if (panels == 3) return add_products_of<Products, 3>(task);
    if (panels == 2) return add_products_of<Products, 2>(task);
    return add_products_of<Products, 1>(task);
  } else {
    // One panel at a time, in 12 of 16 registers.
    RowsOfSums<typename Products::Value> one = task;
    for (int64_t panel = 0; panel < panels; ++panel) {
      add_products_of<Products, kPerPanel>(one);
      one.panels += one.panel_stride;
      if (one.panel_scales != nullptr) one.panel_scales += kPanel;
      one.sums += kPanel;
    }
  }
}
