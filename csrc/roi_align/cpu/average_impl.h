// The kernels of the average modes, part of kernels_impl.h.

template <typename acc>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = F32;
};
template <>
struct VectorOf<double> {
  using type = F64;
};

// Terms of a weighted sum: weights[k] * input[k * stride].
template <typename T>
struct Terms {
  const T* input;
  int64_t stride;
  const acc_t<T>* weights;
  int32_t count;
};

// sum[v] += weight * input, for kVectors registers side by side. kPaired: two registers hold
// their values in the order in which V::load_pair unpacks half types fastest, and only V::store_pair restores
// it.
template <int kVectors, typename V, bool kPaired, typename T>
inline void multiply_add(typename V::Register weight, const T* input, typename V::Register* sum) {
  if constexpr (kPaired) {
    for (int v = 0; v < kVectors; v += 2) {
      typename V::Register first, second;
      V::load_pair(input + v * V::kLanes, first, second);
      sum[v] = V::fma(weight, first, sum[v]);
      sum[v + 1] = V::fma(weight, second, sum[v + 1]);
    }
  } else {
    for (int v = 0; v < kVectors; ++v) sum[v] = V::fma(weight, V::load(input + v * V::kLanes), sum[v]);
  }
}

// sum[v] += the terms at offset + v * lanes.
template <int kVectors, typename V, bool kPaired, typename T>
inline void add_terms(const Terms<T>& terms, int64_t offset, typename V::Register* sum) {
  const T* input = terms.input + offset;
  for (int32_t k = 0; k < terms.count; ++k, input += terms.stride) {
    multiply_add<kVectors, V, kPaired>(V::broadcast(terms.weights[k]), input, sum);
  }
}

template <typename V, typename T>
inline void add_terms_partial(const Terms<T>& terms, int64_t offset, int lanes, typename V::Register& sum) {
  const T* input = terms.input + offset;
  for (int32_t k = 0; k < terms.count; ++k, input += terms.stride) {
    sum = V::fma(V::broadcast(terms.weights[k]), V::load_partial(input, lanes), sum);
  }
}

template <int kVectors, typename V, bool kAccumulate, bool kPaired, typename Out, typename... Runs>
inline void combine_vectors(Out* output, int64_t offset, const Runs&... runs) {
  typename V::Register sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = kAccumulate ? V::load(output + offset + v * V::kLanes) : V::zero();
  }
  (add_terms<kVectors, V, kPaired>(runs, offset, sum), ...);
  if constexpr (kPaired) {
    for (int v = 0; v < kVectors; v += 2) V::store_pair(output + offset + v * V::kLanes, sum[v], sum[v + 1]);
  } else {
    for (int v = 0; v < kVectors; ++v) V::store(output + offset + v * V::kLanes, sum[v]);
  }
}

// output[0, length) (+)= the sum of all terms of all runs
template <typename V, bool kAccumulate, bool kPaired = false, typename Out, typename... Runs>
inline void combine(Out* output, int64_t length, const Runs&... runs) {
  constexpr int kWide = 8;
  int64_t i = 0;
  for (; i + kWide * V::kLanes <= length; i += kWide * V::kLanes) {
    combine_vectors<kWide, V, kAccumulate, kPaired>(output, i, runs...);
  }
  for (; i + 2 * V::kLanes <= length; i += 2 * V::kLanes) {
    combine_vectors<2, V, kAccumulate, kPaired>(output, i, runs...);
  }
  if (i + V::kLanes <= length) {
    combine_vectors<1, V, kAccumulate, false>(output, i, runs...);
    i += V::kLanes;
  }
  if (i < length) {
    const int lanes = int(length - i);
    auto sum = kAccumulate ? V::load_partial(output + i, lanes) : V::zero();
    (add_terms_partial<V>(runs, i, lanes, sum), ...);
    V::store_partial(output + i, sum, lanes);
  }
}

constexpr int kCacheLine = 64;  // bytes

// Rows of which only the last `size` are kept.
template <typename acc>
struct Ring {
  acc* data;
  int64_t stride;
  int32_t size;

  acc* row(int32_t index) const { return data + index % size * stride; }
};

// One bin of the rows [begin, end), `terms` being those of row 0. With the number of terms known to the
// compiler their weights stay in registers, and no branch depends on it. Rows lie pages apart, where no
// hardware prefetcher looks: the next one is asked for here.
template <int kTerms, typename V, bool kPaired, typename T>
inline void reduce_rows_by(const Terms<T>& terms, int64_t row_stride, int32_t begin, int32_t end,
                           const Ring<acc_t<T>>& ring, int64_t length) {
  constexpr int kVectors = 4;
  typename V::Register weights[kTerms];
  for (int k = 0; k < kTerms; ++k) weights[k] = V::broadcast(terms.weights[k]);
  for (int32_t row = begin; row < end; ++row) {
    const T* input = terms.input + row * row_stride;
    acc_t<T>* output = ring.row(row);
    int64_t i = 0;
    for (; i + kVectors * V::kLanes <= length; i += kVectors * V::kLanes) {
      typename V::Register sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
      for (int k = 0; k < kTerms; ++k) {
        const T* from = input + i + k * terms.stride;
        for (int byte = 0; byte < int(kVectors * V::kLanes * sizeof(T)); byte += kCacheLine) {
          __builtin_prefetch(reinterpret_cast<const char*>(from + row_stride) + byte);
        }
        multiply_add<kVectors, V, kPaired>(weights[k], from, sum);
      }
      for (int v = 0; v < kVectors; ++v) V::store(output + i + v * V::kLanes, sum[v]);
    }
    if (i < length) {
      combine<V, false, kPaired>(output + i, length - i,
                                 Terms<T>{input + i, terms.stride, terms.weights, kTerms});
    }
  }
}

template <typename V, bool kPaired, typename T>
inline void reduce_rows(const Terms<T>& terms, int64_t row_stride, int32_t begin, int32_t end,
                        const Ring<acc_t<T>>& ring, int64_t length) {
  switch (terms.count) {
    case 1:
      return reduce_rows_by<1, V, kPaired>(terms, row_stride, begin, end, ring, length);
    case 2:
      return reduce_rows_by<2, V, kPaired>(terms, row_stride, begin, end, ring, length);
    case 3:
      return reduce_rows_by<3, V, kPaired>(terms, row_stride, begin, end, ring, length);
    case 4:
      return reduce_rows_by<4, V, kPaired>(terms, row_stride, begin, end, ring, length);
    case 5:
      return reduce_rows_by<5, V, kPaired>(terms, row_stride, begin, end, ring, length);
    case 6:
      return reduce_rows_by<6, V, kPaired>(terms, row_stride, begin, end, ring, length);
    default:
      for (int32_t row = begin; row < end; ++row) {
        Terms<T> row_terms = terms;
        row_terms.input += row * row_stride;
        combine<V, false, kPaired>(ring.row(row), length, row_terms);
      }
  }
}

// NHWC: vectors run over channels. Each input row is reduced along x once, into a ring of as many rows as an
// output row needs; the rows of the ring are then combined along y. Channels are tiled to keep the ring in
// the L1 cache.
template <bool kAccumulate, typename T, typename Out>
void banded_product_nhwc(const Image<const T>& input, const Band<acc_t<T>>& rows,
                         const Band<acc_t<T>>& columns, const Image<Out>& output,
                         const Scratch<acc_t<T>>& memory) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  // The ring is read by the step that stores, so it may hold pairs unless that step adds to what is there.
  constexpr bool kPaired = !kAccumulate;
  const int32_t ring_size = std::max(rows.widest, 1);
  acc* scratch = memory.values;
  for (int64_t channel = 0; channel < input.channels; channel += kChannelTile) {
    const int64_t tile = std::min(kChannelTile, input.channels - channel);
    const int64_t ring_stride = tile * columns.outputs;
    int32_t reduced_begin = 0;  // rows [reduced_begin, reduced_end) are in the ring
    int32_t reduced_end = 0;
    for (int32_t y = 0; y < rows.outputs; ++y) {
      const Tap& row_tap = rows.taps[y];
      const int32_t row_end = row_tap.first + row_tap.count;
      // Rows come in ascending order but for inverted boxes, which start over with every bin.
      const bool in_ring = row_tap.first >= reduced_begin && row_tap.first <= reduced_end;
      const int32_t row_begin = in_ring ? reduced_end : row_tap.first;
      for (int32_t x = 0; row_begin < row_end && x < columns.outputs; ++x) {
        const Tap& tap = columns.taps[x];
        const T* in_column = input.data + tap.first * input.column_stride + channel;
        reduce_rows<V, kPaired>(
            Terms<T>{in_column, input.column_stride, columns.weights + tap.offset, tap.count},
            input.row_stride, row_begin, row_end, Ring<acc>{scratch + x * tile, ring_stride, ring_size},
            tile);
      }
      reduced_begin = row_tap.first;
      reduced_end = in_ring ? std::max(reduced_end, row_end) : row_end;

      const int32_t slot = row_tap.first % ring_size;
      const int32_t until_wrap = std::min(row_tap.count, ring_size - slot);
      const acc* weights = rows.weights + row_tap.offset;
      Out* out_row = output.data + (rows.output_begin + y) * output.row_stride +
                     columns.output_begin * output.column_stride + channel;
      for (int32_t x = 0; x < columns.outputs; ++x) {
        combine<V, kAccumulate, kPaired>(
            out_row + x * output.column_stride, tile,
            Terms<acc>{scratch + slot * ring_stride + x * tile, ring_stride, weights, until_wrap},
            Terms<acc>{scratch + x * tile, ring_stride, weights + until_wrap, row_tap.count - until_wrap});
      }
    }
  }
}

// NCHW: reduction along x, where a result sits in one lane and its terms in neighbouring cells. For term k of
// every lane, a table holds the cell to look up in a window of V::kWindow contiguous values, and its weight.
// Where lanes and the window allow, several rows go through at once, their cells `pitch` apart.
template <typename V, typename acc>
class ColumnLookup {
 public:
  // Beyond this many terms a lane, sums over contiguous cells are cheaper.
  static constexpr int32_t kMostTerms = 10;

  ColumnLookup(const Band<acc>& columns, int32_t pitch, const Scratch<acc>& scratch)
      : columns_(columns), pitch_(pitch), scratch_(scratch) {
    const int32_t length = columns.end - columns.begin;
    rows_ = 2 * columns.outputs <= V::kLanes && pitch + length <= V::kWindow ? 2 : 1;
    for (int32_t bin = 0; bin < columns.outputs;) bin += add_group(bin);
  }

  int32_t rows() const { return rows_; }  // at once
  int32_t groups() const { return groups_; }
  const ColumnGroup& group(int32_t index) const { return scratch_.groups[index]; }

  // Results of a group from its window; lane (row * group.count + bin).
  typename V::Register reduce(const ColumnGroup& group, const typename V::Window& values) const {
    const acc* weights = scratch_.weights + int64_t(group.table) * V::kLanes;
    const int32_t* cells = scratch_.indices + int64_t(group.table) * V::kLanes;
    auto sum = V::zero();
    for (int32_t k = 0; k < group.terms; ++k) {
      sum = V::fma(V::load(weights + k * V::kLanes), values.look_up(cells + k * V::kLanes), sum);
    }
    // A bin without terms is 0, whatever was looked up for it.
    return group.has_empty ? V::keep_where(scratch_.indices + (group.table + group.terms) * V::kLanes, sum)
                           : sum;
  }

 private:
  // Takes as many bins from `first` on as lanes and window allow; returns how many.
  int32_t add_group(int32_t first) {
    ColumnGroup group{first, 0, columns_.end, columns_.begin, 0, table_, false};
    while (first + group.count < columns_.outputs && group.count < V::kLanes) {
      const Tap& tap = columns_.taps[first + group.count];
      if (tap.count > 0) {
        const int32_t begin = std::min(group.begin, tap.first);
        const int32_t end = std::max(group.end, tap.first + tap.count);
        if (end - begin > V::kWindow) break;
        group.begin = begin;
        group.end = end;
        group.terms = std::max(group.terms, tap.count);
      }
      group.has_empty |= tap.count == 0;
      ++group.count;
    }
    if (group.end < group.begin) group.begin = group.end = columns_.begin;
    fill_table(group);
    table_ += group.terms + 1;
    scratch_.groups[groups_++] = group;
    return group.count;
  }

  void fill_table(const ColumnGroup& group) {
    acc* weights = scratch_.weights + int64_t(table_) * V::kLanes;
    int32_t* cells = scratch_.indices + int64_t(table_) * V::kLanes;
    for (int32_t lane = 0; lane < V::kLanes; ++lane) {
      const int32_t row = lane / group.count;
      const Tap tap = row < rows_ ? columns_.taps[group.first + lane % group.count] : Tap{0, 0, 0};
      for (int32_t k = 0; k < group.terms; ++k) {
        // Past its terms a lane repeats the last one with weight 0.
        const int32_t term = std::min(k, tap.count - 1);
        weights[k * V::kLanes + lane] = k < tap.count ? columns_.weights[tap.offset + k] : acc(0);
        cells[k * V::kLanes + lane] = tap.count > 0 ? row * pitch_ + tap.first - group.begin + term : 0;
      }
      cells[group.terms * V::kLanes + lane] = tap.count > 0 ? -1 : 0;
    }
  }

  Band<acc> columns_;
  int32_t pitch_;
  Scratch<acc> scratch_;
  int32_t rows_ = 1;
  int32_t groups_ = 0;
  int32_t table_ = 0;
};

// NCHW forward for wide bins: each is a sum over the contiguous cells of the combined row.
template <typename V, typename T>
inline void pool_wide_bin(const Terms<T>& rows, const acc_t<T>* weights, int32_t count, T* output) {
  auto sum = V::zero();
  for (int32_t x = 0; x < count; x += V::kLanes) {
    const int lanes = std::min(V::kLanes, count - x);
    auto row = V::zero();
    add_terms_partial<V>(rows, x, lanes, row);
    sum = V::fma(V::load_partial(weights + x, lanes), row, sum);
  }
  acc_t<T> lane[V::kLanes];
  V::store(lane, sum);
  acc_t<T> total = 0;
  for (int i = 0; i < V::kLanes; ++i) total += lane[i];
  *output = T(total);
}

template <typename T>
Terms<T> row_terms(const Image<const T>& feature, int64_t channel, const Band<acc_t<T>>& rows, int32_t y) {
  const Tap& tap = rows.taps[y];
  return {feature.data + channel * feature.channel_stride + tap.first * feature.row_stride,
          feature.row_stride, rows.weights + tap.offset, tap.count};
}

// The window that a group's look-ups go to: one combined row, or two, V::kWindow / 2 apart.
template <typename V, typename TermsOf, typename acc>
inline typename V::Window combine_window(const ColumnGroup& group, int32_t rows, const TermsOf& terms_of,
                                         acc* memory) {
  const int32_t length = group.end - group.begin;
  if constexpr (V::kRegisterWindow) {
    // Kept out of memory: these loads would have to wait for the narrower stores before them.
    auto low = V::zero();
    auto high = V::zero();
    add_terms_partial<V>(terms_of(0), 0, std::min(length, V::kLanes), low);
    if (rows > 1) {
      add_terms_partial<V>(terms_of(1), 0, length, high);
    } else if (length > V::kLanes) {
      add_terms_partial<V>(terms_of(0), V::kLanes, length - V::kLanes, high);
    }
    return typename V::Window(low, high);
  } else {
    for (int32_t row = 0; row < rows; ++row) {
      combine<V, false>(memory + row * (V::kWindow / 2), length, terms_of(row));
    }
    return typename V::Window(memory);
  }
}

// NCHW forward: rows are combined first, as contiguous vectors over the x the RoI needs, then reduced along
// x.
template <typename T>
void pool_nchw(const Image<const T>& feature, const Band<acc_t<T>>& rows, const Band<acc_t<T>>& columns,
               const Image<T>& output, const Scratch<acc_t<T>>& scratch) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  if (columns.widest > ColumnLookup<V, acc>::kMostTerms) {
    for (int64_t channel = 0; channel < feature.channels; ++channel) {
      T* out_plane = output.data + channel * output.channel_stride;
      for (int32_t y = 0; y < rows.outputs; ++y) {
        Terms<T> terms = row_terms(feature, channel, rows, y);
        const T* row = terms.input;
        for (int32_t x = 0; x < columns.outputs; ++x) {
          const Tap& tap = columns.taps[x];
          terms.input = row + tap.first;
          pool_wide_bin<V>(terms, columns.weights + tap.offset, tap.count,
                           out_plane + y * output.row_stride + x);
        }
      }
    }
    return;
  }
  const ColumnLookup<V, acc> lookup(columns, V::kWindow / 2, scratch);
  for (int64_t channel = 0; channel < feature.channels; ++channel) {
    T* out_plane = output.data + channel * output.channel_stride;
    for (int32_t y = 0; y < rows.outputs; y += lookup.rows()) {
      const int32_t valid = std::min(lookup.rows(), rows.outputs - y);
      for (int32_t g = 0; g < lookup.groups(); ++g) {
        const ColumnGroup& group = lookup.group(g);
        const auto terms_of = [&](int32_t row) {
          Terms<T> terms = row_terms(feature, channel, rows, y + row);
          terms.input += group.begin;
          return terms;
        };
        const auto reduced = lookup.reduce(group, combine_window<V>(group, valid, terms_of, scratch.values));
        V::store_partial(out_plane + y * output.row_stride + group.first, reduced, valid * group.count);
      }
    }
  }
}

// NCHW backward: the few gradients of a bin row are spread along x, then added to rows as contiguous vectors.
// Spread rows are a whole number of vectors, so that every load meets one store.
template <typename T>
void scatter_nchw(const Image<const T>& grad, const Band<acc_t<T>>& rows, const Band<acc_t<T>>& columns,
                  const Image<acc_t<T>>& grad_feature, const Scratch<acc_t<T>>& scratch) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  const int32_t length = columns.outputs;
  if (length == 0 || rows.outputs == 0) return;
  const int64_t pitch = spread_pitch(columns);
  acc* spread = scratch.values;
  acc* bins = spread + rows.end * pitch;
  const bool by_lookup = columns.widest <= ColumnLookup<V, acc>::kMostTerms;
  const ColumnLookup<V, acc> lookup(by_lookup ? columns : Band<acc>{}, V::kWindow, scratch);
  const acc one = 1;
  for (int64_t channel = 0; channel < grad.channels; ++channel) {
    combine<V, false>(bins, rows.end * grad.row_stride,
                      Terms<T>{grad.data + channel * grad.channel_stride, 0, &one, 1});
    for (int32_t y = rows.begin; y < rows.end; ++y) {
      const acc* bin_row = bins + y * grad.row_stride;
      for (int32_t g = 0; g < lookup.groups(); ++g) {
        const ColumnGroup& group = lookup.group(g);
        V::store(spread + y * pitch + group.first,
                 lookup.reduce(group, typename V::Window(bin_row + group.begin)));
      }
      for (int32_t x = 0; !by_lookup && x < length; ++x) {
        const Tap& tap = columns.taps[x];
        pool_wide_bin<V>(Terms<acc>{bin_row + tap.first, 0, &one, 1}, columns.weights + tap.offset, tap.count,
                         spread + y * pitch + x);
      }
    }
    acc* out_plane = grad_feature.data + channel * grad_feature.channel_stride + columns.output_begin;
    for (int32_t y = 0; y < rows.outputs; ++y) {
      const Tap& tap = rows.taps[y];
      const Terms<acc> terms{spread + tap.first * pitch, pitch, rows.weights + tap.offset, tap.count};
      acc* out_row = out_plane + (rows.output_begin + y) * grad_feature.row_stride;
      for (int32_t x = 0; x < length; x += V::kLanes) {
        const int lanes = std::min(V::kLanes, length - x);
        auto sum = V::load_partial(out_row + x, lanes);
        add_terms<1, V, false>(terms, x, &sum);
        V::store_partial(out_row + x, sum, lanes);
      }
    }
  }
}
