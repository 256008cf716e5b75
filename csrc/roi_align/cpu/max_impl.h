// The kernels of the max modes, part of kernels_impl.h. A maximum does not separate into two 1-D passes that
// also know where it lies, so every bin looks at all its samples, for as many channels at once as there are
// registers for. The forward pass tells which sample won, so that the backward pass only adds one value, or
// four, per bin. Samples of a bin are numbered row by row.

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
  typename Maxima<V, kVectors>::Codes code{};
  for (int32_t i = 0; i < rows; ++i) {
    const T* cell = data + i * feature.row_stride;
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
  typename Maxima<V, kVectors>::Codes code{};
  for (int32_t i = 0; i < row_bin.count; ++i) {
    const SamplePoint<acc>& row = rows.points[row_bin.offset + i];
    const T* low_row = data + (row.low - rows.first) * feature.row_stride;
    const T* high_row = data + (row.high - rows.first) * feature.row_stride;
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

template <int kVectors, typename V>
inline void store_codes(const Maxima<V, kVectors>& best, int lanes, int64_t samples_of_code, uint8_t* codes) {
  using Code = typename Maxima<V, kVectors>::Code;
  Code samples[kVectors * V::kLanes];
  std::memcpy(samples, best.codes, sizeof(samples));
  static_assert(uint8_t(-1) == kNoWinner);
  if (samples_of_code == 1) {
    for (int c = 0; c < lanes; ++c) codes[c] = uint8_t(samples[c]);
  } else {
    for (int c = 0; c < lanes; ++c) {
      codes[c] = samples[c] < 0 ? kNoWinner : uint8_t(samples[c] / Code(samples_of_code));
    }
  }
}

// All bins of `lanes` channels, kVectors registers of them.
template <bool kCoded, int kVectors, bool kPartial, typename T>
inline void pool_max_channels(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                              const SampleAxis<acc_t<T>>& columns, const Image<T>& output,
                              const Image<uint8_t>& codes, int64_t channel, int lanes) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
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
        store_codes(best, kPartial ? lanes : kVectors * V::kLanes,
                    samples_of_code(int64_t(row_bin.count) * column_bin.count),
                    codes.data + y * codes.row_stride + x * codes.column_stride + channel);
      }
    }
  }
}

// kCoded: `codes` is written as well.
template <bool kCoded, typename T>
void pool_max(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
              const SampleAxis<acc_t<T>>& columns, const Image<T>& output, const Image<uint8_t>& codes) {
  using V = typename VectorOf<acc_t<T>>::type;
  constexpr int kVectors = 4;
  int64_t channel = 0;
  for (; channel + kVectors * V::kLanes <= feature.channels; channel += kVectors * V::kLanes) {
    pool_max_channels<kCoded, kVectors, false>(feature, rows, columns, output, codes, channel,
                                               kVectors * V::kLanes);
  }
  for (; channel < feature.channels; channel += V::kLanes) {
    const int lanes = int(std::min<int64_t>(V::kLanes, feature.channels - channel));
    pool_max_channels<kCoded, 1, true>(feature, rows, columns, output, codes, channel, lanes);
  }
}

// One bin in the backward pass: its samples, and `sums`, the cells that its gradients are added to, as
// pixels.
template <typename T>
struct MaxBin {
  using acc = acc_t<T>;
  const Image<const T>& feature;
  const SampleAxis<acc>& rows;
  const SampleBin& row_bin;
  const SampleAxis<acc>& columns;
  const SampleBin& column_bin;
  const Image<acc>& sums;

  int64_t samples() const { return int64_t(row_bin.count) * column_bin.count; }
  const SamplePoint<acc>& row(int64_t i) const { return rows.points[row_bin.offset + i]; }
  const SamplePoint<acc>& column(int64_t j) const { return columns.points[column_bin.offset + j]; }

  // Where in sums a cell that is a sample lies.
  int64_t cell(int64_t i, int64_t j) const {
    return row(i).low * sums.row_stride + column(j).low * sums.column_stride;
  }

  // visit(offset in sums, weight of the row, weight of the column) for the four cells of a sample.
  template <typename Visit>
  void for_each_corner(int64_t i, int64_t j, const Visit& visit) const {
    const SamplePoint<acc>& y = row(i);
    const SamplePoint<acc>& x = column(j);
    const int64_t low_row = y.low * sums.row_stride, high_row = y.high * sums.row_stride;
    const int64_t low = x.low * sums.column_stride, high = x.high * sums.column_stride;
    visit(low_row + low, y.low_weight, x.low_weight);
    visit(low_row + high, y.low_weight, x.high_weight);
    visit(high_row + low, y.high_weight, x.low_weight);
    visit(high_row + high, y.high_weight, x.high_weight);
  }
};

// Adds the gradients of kVectors registers of channels sample by sample, those that it won.
template <bool kCells, int kVectors, typename G, typename T>
inline void add_by_samples(const G* grad, const uint8_t* codes, const MaxBin<T>& bin, acc_t<T>* sums) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  using Codes = typename Maxima<V, kVectors>::Codes;
  typename V::Register values[kVectors];
  Codes winners[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    values[v] = V::load(grad + v * V::kLanes);
    winners[v] = Codes(widen_bytes(V(), codes + v * V::kLanes));
  }
  Codes code{};
  const auto won = [&](int v) { return winners[v] == code ? values[v] : V::zero(); };
  if constexpr (kCells) {
    acc* row = sums + bin.cell(0, 0);
    for (int32_t i = 0; i < bin.row_bin.count; ++i, row += bin.sums.row_stride) {
      acc* to = row;
      for (int32_t j = 0; j < bin.column_bin.count; ++j, to += bin.sums.column_stride, code += 1) {
        for (int v = 0; v < kVectors; ++v) {
          V::store(to + v * V::kLanes, V::load(to + v * V::kLanes) + won(v));
        }
      }
    }
  } else {
    for (int32_t i = 0; i < bin.row_bin.count; ++i) {
      for (int32_t j = 0; j < bin.column_bin.count; ++j, code += 1) {
        bin.for_each_corner(i, j, [&](int64_t cell, acc row_weight, acc column_weight) {
          acc* to = sums + cell;
          for (int v = 0; v < kVectors; ++v, to += V::kLanes) {
            V::store(to, V::load(to) + won(v) * row_weight * column_weight);
          }
        });
      }
    }
  }
}

// Where the cells of a bin of "pool" lie from its first on, by their codes. The bins of a RoI are mostly of
// two widths, one apart.
class CellOffsets {
 public:
  template <typename T>
  const int64_t* of(const MaxBin<T>& bin) {
    Table& table = tables_[bin.column_bin.count % 2];
    if (table.columns != bin.column_bin.count) {
      table.columns = bin.column_bin.count;
      int64_t row = 0, column = 0;
      for (int64_t& offset : table.offsets) {
        offset = row * bin.sums.row_stride + column * bin.sums.column_stride;
        if (++column == table.columns) column = 0, ++row;
      }
    }
    return table.offsets;
  }

 private:
  struct Table {
    int32_t columns = 0;
    int64_t offsets[kNoWinner];
  };
  Table tables_[2];
};

// The first of the largest of the samples [begin, end) of a bin in one channel, computed as in the forward
// pass.
template <bool kCells, typename T>
inline int64_t first_maximum(const MaxBin<T>& bin, int64_t begin, int64_t end, int64_t channel) {
  using acc = acc_t<T>;
  const T* plane = bin.feature.data + channel * bin.feature.channel_stride;
  const auto at = [&](int64_t row, int64_t column) {
    return acc(plane[row * bin.feature.row_stride + column * bin.feature.column_stride]);
  };
  acc best = -std::numeric_limits<float>::max();
  int64_t winner = begin;
  for (int64_t sample = begin; sample < end; ++sample) {
    const SamplePoint<acc>& y = bin.row(sample / bin.column_bin.count);
    const SamplePoint<acc>& x = bin.column(sample % bin.column_bin.count);
    acc value = at(y.low, x.low);
    if constexpr (!kCells) {
      const acc above = x.low_weight * value + x.high_weight * at(y.low, x.high);
      const acc below = x.low_weight * at(y.high, x.low) + x.high_weight * at(y.high, x.high);
      value = y.low_weight * above + y.high_weight * below;
    }
    if (value > best) {
      best = value;
      winner = sample;
    }
  }
  return winner;
}

// Adds the gradients of the channels [begin, end) one by one.
template <bool kCells, typename G, typename T>
inline void add_by_channels(const G* grad, const uint8_t* codes, int64_t begin, int64_t end,
                            const MaxBin<T>& bin, CellOffsets& offsets) {
  using acc = acc_t<T>;
  const int64_t samples = bin.samples(), together = samples_of_code(samples);
  if (kCells && together == 1) {
    const int64_t* const offset = offsets.of(bin);
    acc* const first = bin.sums.data + bin.cell(0, 0);
    for (int64_t c = begin; c < end; ++c) {
      if (codes[c] != kNoWinner) first[offset[codes[c]] + c] += acc(grad[c]);
    }
    return;
  }
  const int64_t columns = bin.column_bin.count;
  for (int64_t c = begin; c < end; ++c) {
    if (codes[c] == kNoWinner) continue;
    int64_t i, j;
    if (together == 1) {
      i = codes[c] * bin.column_bin.reciprocal >> 16;
      j = codes[c] - i * columns;
    } else {
      const int64_t from = codes[c] * together;
      const int64_t sample = first_maximum<kCells>(bin, from, std::min(from + together, samples), c);
      i = sample / columns;
      j = sample % columns;
    }
    acc* const sums = bin.sums.data + c;
    const acc value = acc(grad[c]);
    if constexpr (kCells) {
      sums[bin.cell(i, j)] += value;
    } else {
      bin.for_each_corner(i, j, [&](int64_t cell, acc row_weight, acc column_weight) {
        sums[cell] += value * row_weight * column_weight;
      });
    }
  }
}

// All channels of a bin. To look at each of few samples in whole registers takes less time than one channel
// after the other.
template <bool kCells, typename G, typename T>
inline void add_bin(const G* grad, const uint8_t* codes, int64_t channels, const MaxBin<T>& bin,
                    CellOffsets& offsets) {
  constexpr int kLanes = VectorOf<acc_t<T>>::type::kLanes;
  int64_t channel = 0;
  if (bin.samples() <= kLanes) {
    for (; channel + 4 * kLanes <= channels; channel += 4 * kLanes) {
      add_by_samples<kCells, 4>(grad + channel, codes + channel, bin, bin.sums.data + channel);
    }
    for (; channel + kLanes <= channels; channel += kLanes) {
      add_by_samples<kCells, 1>(grad + channel, codes + channel, bin, bin.sums.data + channel);
    }
  }
  if (channel < channels) add_by_channels<kCells>(grad, codes, channel, channels, bin, offsets);
}

template <bool kCells, typename T>
void scatter_max_pixels(const Image<const T>& grad, const Image<const uint8_t>& codes,
                        const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                        const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& sums) {
  CellOffsets offsets;
  for (int32_t y = 0; y < rows.outputs; ++y) {
    for (int32_t x = 0; x < columns.outputs; ++x) {
      const MaxBin<T> bin{feature, rows, rows.bins[y], columns, columns.bins[x], sums};
      if (bin.samples() == 0) continue;
      add_bin<kCells>(grad.data + y * grad.row_stride + x * grad.column_stride,
                      codes.data + y * codes.row_stride + x * codes.column_stride, grad.channels, bin,
                      offsets);
    }
  }
}

// a0 b0 a1 b1 ... of the lower halves of two registers, and of the upper ones.
template <typename V, int... kLane>
inline void interleave(typename V::Register a, typename V::Register b, typename V::Register& low,
                       typename V::Register& high, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = V::kLanes;
#if defined(__clang__) || __GNUC__ >= 12
  low = __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * kLanes)...);
  high = __builtin_shufflevector(a, b, ((kLanes + kLane) / 2 + kLane % 2 * kLanes)...);
#else
  using Places = decltype(a > b);
  low = __builtin_shuffle(a, b, Places{(kLane / 2 + kLane % 2 * kLanes)...});
  high = __builtin_shuffle(a, b, Places{((kLanes + kLane) / 2 + kLane % 2 * kLanes)...});
#endif
}

// Row i becomes column i. Each of kRounds steps, as many as halve the lanes to one, interleaves rows that are
// half of them apart. Recursive, because only then all compilers keep the rows in registers.
template <typename V, int kRounds>
inline void transpose(const typename V::Register (&rows)[V::kLanes],
                      typename V::Register (&columns)[V::kLanes]) {
  constexpr int kHalf = V::kLanes / 2;
  typename V::Register turned[V::kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kHalf; ++i) {
    interleave<V>(rows[i], rows[i + kHalf], turned[2 * i], turned[2 * i + 1],
                  std::make_integer_sequence<int, V::kLanes>());
  }
  if constexpr (kRounds > 1) {
    transpose<V, kRounds - 1>(turned, columns);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) columns[i] = turned[i];
  }
}

constexpr int log2_of(int number) { return number == 1 ? 0 : 1 + log2_of(number / 2); }

// to[j * pitch + i] = from[i * stride + j] for i < rows and j < columns, both at most the lanes of a
// register.
template <typename V, bool kWhole, typename T, typename Out>
inline void transpose_block(const T* from, int64_t stride, int rows, int columns, Out* to, int64_t pitch) {
  typename V::Register block[V::kLanes], turned[V::kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < V::kLanes; ++i) {
    if constexpr (kWhole) {
      block[i] = V::load(from + i * stride);
    } else {
      block[i] = i < rows ? V::load_partial(from + i * stride, columns) : V::zero();
    }
  }
  transpose<V, log2_of(V::kLanes)>(block, turned);
#pragma GCC unroll 16
  for (int j = 0; j < V::kLanes; ++j) {
    if constexpr (kWhole) {
      V::store(to + j * pitch, turned[j]);
    } else if (j < columns) {
      V::store_partial(to + j * pitch, turned[j], rows);
    }
  }
}

// The same for any numbers of them.
template <typename T, typename Out>
void transpose_all(const T* from, int64_t stride, int64_t rows, int64_t columns, Out* to, int64_t pitch) {
  using V = typename VectorOf<acc_t<T>>::type;
  constexpr int64_t kLanes = V::kLanes;
  for (int64_t j = 0; j < columns; j += kLanes) {
    for (int64_t i = 0; i < rows; i += kLanes) {
      const int height = int(std::min(kLanes, rows - i)), width = int(std::min(kLanes, columns - j));
      const T* block = from + i * stride + j;
      Out* target = to + j * pitch + i;
      if (height == kLanes && width == kLanes) {
        transpose_block<V, true>(block, stride, height, width, target, pitch);
      } else if (width > 2) {
        transpose_block<V, false>(block, stride, height, width, target, pitch);
      } else {
        for (int y = 0; y < height; ++y) {
          for (int x = 0; x < width; ++x) target[x * pitch + y] = Out(acc_t<T>(block[y * stride + x]));
        }
      }
    }
  }
}

// The gradients of some bins at a time as pixels, then as above.
template <bool kCells, typename T>
void scatter_max_turned(const Image<const T>& grad, const Image<const uint8_t>& codes,
                        const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                        const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& sums, int64_t ahead) {
  constexpr int64_t kBins = 16;
  constexpr int64_t kCacheLine = 64;
  alignas(64) acc_t<T> pixels[kBins * kPlaneBlock];
  CellOffsets offsets;
  const int64_t bins = int64_t(rows.outputs) * columns.outputs;
  int32_t y = 0, x = 0;
  for (int64_t begin = 0; begin < bins; begin += kBins) {
    const int64_t count = std::min(kBins, bins - begin);
    const T* planes = grad.data + begin;
    const uint8_t* winners = codes.data + begin * codes.column_stride;
    // The next RoI begins somewhere else, where the processor does not expect it.
    for (int64_t c = 0; ahead != 0 && c < grad.channels; ++c) {
      for (int64_t i = 0; i < count; i += kCacheLine / int64_t(sizeof(T))) {
        __builtin_prefetch(planes + ahead + c * grad.channel_stride + i, 0, 2);
      }
    }
    for (int64_t i = 0; ahead != 0 && i < count; ++i) {
      __builtin_prefetch(winners + ahead + i * codes.column_stride, 0, 2);
    }
    transpose_all(planes, grad.channel_stride, grad.channels, count, pixels, grad.channels);
    for (int64_t i = 0; i < count; ++i) {
      const MaxBin<T> bin{feature, rows, rows.bins[y], columns, columns.bins[x], sums};
      if (++x == columns.outputs) x = 0, ++y;
      if (bin.samples() == 0) continue;
      add_bin<kCells>(pixels + i * grad.channels, winners + i * codes.column_stride, grad.channels, bin,
                      offsets);
    }
  }
}

// From planes to planes, one value after the other.
template <bool kCells, typename T>
void scatter_planes(const Image<const T>& grad, const Image<const uint8_t>& codes,
                    const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                    const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& sums) {
  CellOffsets offsets;
  for (int64_t c = 0; c < grad.channels; ++c) {
    const T* values = grad.data + c * grad.channel_stride;
    const uint8_t* winners = codes.data + c * codes.channel_stride;
    Image<const T> map = feature;
    Image<acc_t<T>> plane = sums;
    map.data += c * feature.channel_stride;
    plane.data += c * sums.channel_stride;
    for (int64_t i = 0, y = 0; y < rows.outputs; ++y) {
      for (int64_t x = 0; x < columns.outputs; ++x, ++i) {
        const MaxBin<T> bin{map, rows, rows.bins[y], columns, columns.bins[x], plane};
        if (bin.samples() > 0) add_by_channels<kCells>(values + i, winners + i, 0, 1, bin, offsets);
      }
    }
  }
}

template <typename T>
void scatter_max_planes(const Image<const T>& grad, const Image<const uint8_t>& codes,
                        const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                        const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& sums, int64_t) {
  const auto scatter = rows.cells ? scatter_planes<true, T> : scatter_planes<false, T>;
  scatter(grad, codes, feature, rows, columns, sums);
}

template <bool kNhwc, typename T>
void scatter_max(const Image<const T>& grad, const Image<const uint8_t>& codes, const Image<const T>& feature,
                 const SampleAxis<acc_t<T>>& rows, const SampleAxis<acc_t<T>>& columns,
                 const Image<acc_t<T>>& sums, int64_t ahead) {
  if constexpr (kNhwc) {
    const auto scatter = rows.cells ? scatter_max_pixels<true, T> : scatter_max_pixels<false, T>;
    scatter(grad, codes, feature, rows, columns, sums);
  } else {
    const auto scatter = rows.cells ? scatter_max_turned<true, T> : scatter_max_turned<false, T>;
    scatter(grad, codes, feature, rows, columns, sums, ahead);
  }
}
