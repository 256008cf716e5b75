// The kernels of the max modes, part of kernels_impl.h. A maximum does not separate into two 1-D passes that
// also know where it lies, so every bin looks at all its samples, for as many channels at once as there are
// registers for. The forward pass tells which sample won, so that the backward pass only adds one value, or
// four, per bin.

// The values and codes of kVectors registers of channels.
template <typename V, int kVectors>
struct Maxima {
  // What a comparison of registers gives: integers as wide as the values.
  using Codes = decltype(typename V::Register{} > typename V::Register{});
  using Code = std::decay_t<decltype(Codes{}[0])>;

  explicit Maxima(typename V::Register lowest) {
    for (int v = 0; v < kVectors; ++v) {
      values[v] = lowest;
      codes[v] = Codes{} - 1;
    }
  }

  // Strictly greater: the first of equals stays, and NaN is passed over.
  template <bool kCoded>
  void take(int v, typename V::Register value, Codes code) {
    const Codes greater = value > values[v];
    values[v] = greater ? value : values[v];
    if constexpr (kCoded) codes[v] = greater ? code : codes[v];
  }

  void take_zero() {
    for (int v = 0; v < kVectors; ++v) {
      const Codes below = values[v] < V::zero();
      values[v] = below ? V::zero() : values[v];
      codes[v] = below ? Codes{} - 1 : codes[v];
    }
  }

  typename V::Register values[kVectors];
  Codes codes[kVectors];
};

// kPartial: only the first `lanes` channels of one register.
template <bool kPartial, typename V, typename T>
inline typename V::Register load_channels(const T* from, int lanes) {
  if constexpr (kPartial) {
    return V::load_partial(from, lanes);
  } else {
    return V::load(from);
  }
}

// One bin over whole cells.
template <bool kCoded, int kVectors, bool kPartial, typename V, typename T>
inline void take_cells(const T* data, const Image<const T>& feature, int32_t rows, const SampleBin& columns,
                       int lanes, Maxima<V, kVectors>& best) {
  using M = Maxima<V, kVectors>;
  for (int32_t i = 0; i < rows; ++i) {
    const T* cell = data + i * feature.row_stride;
    auto code = typename M::Codes{} + typename M::Code(i * columns.step);
    for (int32_t j = 0; j < columns.count; ++j, cell += feature.column_stride) {
      for (int v = 0; v < kVectors; ++v) {
        best.template take<kCoded>(v, load_channels<kPartial, V>(cell + v * V::kLanes, lanes), code);
      }
      if constexpr (kCoded) code += 1;
    }
  }
}

// One bin over bilinear samples.
template <bool kCoded, int kVectors, bool kPartial, typename V, typename T>
inline void take_samples(const T* data, const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                         const SampleBin& row_bin, const SampleAxis<acc_t<T>>& columns,
                         const SampleBin& column_bin, int lanes, Maxima<V, kVectors>& best) {
  using acc = acc_t<T>;
  using M = Maxima<V, kVectors>;
  for (int32_t i = 0; i < row_bin.count; ++i) {
    const SamplePoint<acc>& row = rows.points[row_bin.offset + i];
    const T* low_row = data + (row.low - rows.first) * feature.row_stride;
    const T* high_row = data + (row.high - rows.first) * feature.row_stride;
    auto code = typename M::Codes{} + typename M::Code(i * column_bin.step);
    for (int32_t j = 0; j < column_bin.count; ++j) {
      const SamplePoint<acc>& column = columns.points[column_bin.offset + j];
      const int64_t low = (column.low - columns.first) * feature.column_stride;
      const int64_t high = (column.high - columns.first) * feature.column_stride;
      for (int v = 0; v < kVectors; ++v) {
        const auto at = [&](const T* from) {
          return load_channels<kPartial, V>(from + v * V::kLanes, lanes);
        };
        const auto above = column.low_weight * at(low_row + low) + column.high_weight * at(low_row + high);
        const auto below = column.low_weight * at(high_row + low) + column.high_weight * at(high_row + high);
        best.template take<kCoded>(v, row.low_weight * above + row.high_weight * below, code);
      }
      if constexpr (kCoded) code += 1;
    }
  }
}

template <bool kPartial, int kVectors, typename V, typename T>
inline void store_maxima(const Maxima<V, kVectors>& best, int lanes, T* output) {
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kPartial) {
      V::store_partial(output, best.values[v], lanes);
    } else {
      V::store(output + v * V::kLanes, best.values[v]);
    }
  }
}

template <int kVectors, typename V, typename Code>
inline void store_codes(const Maxima<V, kVectors>& best, int lanes, Code* codes) {
  typename Maxima<V, kVectors>::Code wide[kVectors * V::kLanes];
  std::memcpy(wide, best.codes, sizeof(wide));
  for (int c = 0; c < lanes; ++c) codes[c] = Code(wide[c]);
}

// All bins of `lanes` channels, kVectors registers of them.
template <int kVectors, bool kPartial, typename T, typename Code>
inline void pool_max_channels(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                              const SampleAxis<acc_t<T>>& columns, const Image<T>& output,
                              const Image<Code>& codes, int64_t channel, int lanes) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  constexpr bool kCoded = !std::is_void_v<Code>;
  const T* data = feature.data + channel;
  for (int32_t y = 0; y < rows.outputs; ++y) {
    const SampleBin& row_bin = rows.bins[y];
    for (int32_t x = 0; x < columns.outputs; ++x) {
      const SampleBin& column_bin = columns.bins[x];
      const bool none =
          (row_bin.count == 0 && !row_bin.outside) || (column_bin.count == 0 && !column_bin.outside);
      Maxima<V, kVectors> best(none ? V::zero() : V::broadcast(-std::numeric_limits<float>::max()));
      if (row_bin.count > 0 && column_bin.count > 0) {
        if (rows.cells) {
          const T* first = data + (rows.points[row_bin.offset].low - rows.first) * feature.row_stride +
                           (columns.points[column_bin.offset].low - columns.first) * feature.column_stride;
          take_cells<kCoded, kVectors, kPartial>(first, feature, row_bin.count, column_bin, lanes, best);
        } else {
          take_samples<kCoded, kVectors, kPartial>(data, feature, rows, row_bin, columns, column_bin, lanes,
                                                   best);
        }
      }
      if (row_bin.outside || column_bin.outside) best.take_zero();
      store_maxima<kPartial>(best, lanes,
                             output.data + y * output.row_stride + x * output.column_stride + channel);
      if constexpr (kCoded) {
        store_codes(best, lanes, codes.data + y * codes.row_stride + x * codes.column_stride + channel);
      }
    }
  }
}

// Code: of the winning samples; void where nobody asks for them.
template <typename T, typename Code>
void pool_max(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
              const SampleAxis<acc_t<T>>& columns, const Image<T>& output, const Image<Code>& codes) {
  using V = typename VectorOf<acc_t<T>>::type;
  constexpr int kVectors = 4;
  int64_t channel = 0;
  for (; channel + kVectors * V::kLanes <= feature.channels; channel += kVectors * V::kLanes) {
    pool_max_channels<kVectors, false>(feature, rows, columns, output, codes, channel, kVectors * V::kLanes);
  }
  for (; channel < feature.channels; channel += V::kLanes) {
    const int lanes = int(std::min<int64_t>(V::kLanes, feature.channels - channel));
    pool_max_channels<1, true>(feature, rows, columns, output, codes, channel, lanes);
  }
}

// Adds the gradient of one channel of one bin to what its winning sample was made of.
template <bool kNhwc, bool kCells, typename acc>
inline void add_gradient(acc value, int64_t code, const SampleAxis<acc>& rows, const SampleBin& row_bin,
                         const SampleAxis<acc>& columns, const SampleBin& column_bin, int shift,
                         int64_t first, const Image<acc>& target, int64_t channel) {
  acc* plane = target.data + channel;
  const int64_t step = kNhwc ? target.column_stride : 1;
  if constexpr (kCells) {
    plane[first + code * step] += value;
  } else {
    const SamplePoint<acc>& row = rows.points[row_bin.offset + (code >> shift)];
    const SamplePoint<acc>& column = columns.points[column_bin.offset + (code & (column_bin.step - 1))];
    acc* low_row = plane + row.low * target.row_stride;
    acc* high_row = plane + row.high * target.row_stride;
    low_row[column.low * step] += value * row.low_weight * column.low_weight;
    low_row[column.high * step] += value * row.low_weight * column.high_weight;
    high_row[column.low * step] += value * row.high_weight * column.low_weight;
    high_row[column.high * step] += value * row.high_weight * column.high_weight;
  }
}

// Calls visit(y, x, bin, first cell of the bin in grad_feature, shift between the row and column of a code)
// for every bin with samples.
template <typename acc, typename Visit>
inline void for_each_bin(const SampleAxis<acc>& rows, const SampleAxis<acc>& columns,
                         const Image<acc>& grad_feature, const Visit& visit) {
  for (int32_t y = 0; y < rows.outputs; ++y) {
    const SampleBin& row_bin = rows.bins[y];
    for (int32_t x = 0; row_bin.count > 0 && x < columns.outputs; ++x) {
      const SampleBin& column_bin = columns.bins[x];
      if (column_bin.count == 0) continue;
      const int64_t first = rows.points[row_bin.offset].low * grad_feature.row_stride +
                            columns.points[column_bin.offset].low * grad_feature.column_stride;
      int shift = 0;
      while ((int64_t(1) << shift) < column_bin.step) ++shift;
      visit(y, x, first, shift);
    }
  }
}

template <bool kCells, typename T, typename Code>
void scatter_max_nhwc(const Image<const T>& grad, const Image<const Code>& codes,
                      const SampleAxis<acc_t<T>>& rows, const SampleAxis<acc_t<T>>& columns,
                      const Image<acc_t<T>>& grad_feature) {
  using acc = acc_t<T>;
  for_each_bin(rows, columns, grad_feature, [&](int32_t y, int32_t x, int64_t first, int shift) {
    const T* values = grad.data + y * grad.row_stride + x * grad.column_stride;
    const Code* winners = codes.data + y * codes.row_stride + x * codes.column_stride;
    for (int64_t c = 0; c < grad.channels; ++c) {
      if (winners[c] < 0) continue;
      add_gradient<true, kCells>(acc(values[c]), winners[c], rows, rows.bins[y], columns, columns.bins[x],
                                 shift, first, grad_feature, c);
    }
  });
}

template <bool kCells, typename T, typename Code>
void scatter_max_nchw(const Image<const T>& grad, const Image<const Code>& codes,
                      const SampleAxis<acc_t<T>>& rows, const SampleAxis<acc_t<T>>& columns,
                      const Image<acc_t<T>>& grad_feature, int64_t ahead) {
  using acc = acc_t<T>;
  struct Bin {
    int64_t first;
    int64_t grad;  // where its values of a channel are
    int64_t code;
    int32_t y, x;
    int shift;
  };
  thread_local std::vector<Bin> bins;
  thread_local std::vector<int64_t> firsts;  // of `bins` too
  bins.clear();
  firsts.clear();
  for_each_bin(rows, columns, grad_feature, [&](int32_t y, int32_t x, int64_t first, int shift) {
    const int64_t index = int64_t(y) * columns.outputs + x;
    bins.push_back({first, index, index * codes.column_stride, y, x, shift});
    firsts.push_back(first);
  });
  constexpr int64_t kCacheLine = 64;
  const int64_t length = int64_t(rows.outputs) * columns.outputs;
  for (int64_t c = 0; c < grad.channels; ++c) {
    const T* values = grad.data + c * grad.channel_stride;
    const Code* winners = codes.data + c * codes.channel_stride;
    // The next RoI begins somewhere else, where the processor does not expect it.
    for (int64_t i = 0; ahead != 0 && i < length; i += kCacheLine / int64_t(sizeof(T))) {
      __builtin_prefetch(values + ahead + i);
    }
    for (int64_t i = 0; ahead != 0 && i < length; i += kCacheLine / int64_t(sizeof(Code))) {
      __builtin_prefetch(winners + ahead + i);
    }
    const int64_t plane = c * grad_feature.channel_stride;
    if (kCells && int64_t(firsts.size()) == length && codes.column_stride == 1) {
      acc* const cells = grad_feature.data + plane;
      const int64_t* const first = firsts.data();
      for (int64_t i = 0; i < length; ++i) {
        const int64_t code = winners[i];
        if (code >= 0) cells[first[i] + code] += acc(values[i]);
      }
      continue;
    }
    for (const Bin& bin : bins) {
      const int64_t code = winners[bin.code];
      if (code < 0) continue;
      add_gradient<false, kCells>(acc(values[bin.grad]), code, rows, rows.bins[bin.y], columns,
                                  columns.bins[bin.x], bin.shift, bin.first, grad_feature, plane);
    }
  }
}

// ahead: in NCHW, how far behind the gradients and codes of this RoI those of the next one lie; 0 for none.
template <bool kNhwc, typename T, typename Code>
void scatter_max(const Image<const T>& grad, const Image<const Code>& codes, const SampleAxis<acc_t<T>>& rows,
                 const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& grad_feature, int64_t ahead) {
  if constexpr (kNhwc) {
    const auto scatter = rows.cells ? scatter_max_nhwc<true, T, Code> : scatter_max_nhwc<false, T, Code>;
    scatter(grad, codes, rows, columns, grad_feature);
  } else {
    const auto scatter = rows.cells ? scatter_max_nchw<true, T, Code> : scatter_max_nchw<false, T, Code>;
    scatter(grad, codes, rows, columns, grad_feature, ahead);
  }
}
