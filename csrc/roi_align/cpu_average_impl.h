// The vector kernels, written against the register types F32 and F64 of the including file. Every instruction
// set includes this inside its own namespace, so that no symbol is shared between differently compiled
// copies. No include guard: each file includes it once.

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

// sum[v] += the terms at offset + v * lanes, for kVectors registers side by side.
template <int kVectors, typename V, typename T>
inline void add_terms(const Terms<T>& terms, int64_t offset, typename V::Register* sum) {
  const T* input = terms.input + offset;
  for (int32_t k = 0; k < terms.count; ++k, input += terms.stride) {
    const auto weight = V::broadcast(terms.weights[k]);
    for (int v = 0; v < kVectors; ++v) sum[v] = V::fma(weight, V::load(input + v * V::kLanes), sum[v]);
  }
}

template <typename V, typename T>
inline void add_terms_partial(const Terms<T>& terms, int64_t offset, int lanes, typename V::Register& sum) {
  const T* input = terms.input + offset;
  for (int32_t k = 0; k < terms.count; ++k, input += terms.stride) {
    sum = V::fma(V::broadcast(terms.weights[k]), V::load_partial(input, lanes), sum);
  }
}

template <int kVectors, typename V, bool kAccumulate, typename Out, typename... Runs>
inline void combine_vectors(Out* output, int64_t offset, const Runs&... runs) {
  typename V::Register sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = kAccumulate ? V::load(output + offset + v * V::kLanes) : V::zero();
  }
  (add_terms<kVectors, V>(runs, offset, sum), ...);
  for (int v = 0; v < kVectors; ++v) V::store(output + offset + v * V::kLanes, sum[v]);
}

// output[0, length) (+)= the sum of all terms of all runs
template <typename V, bool kAccumulate, typename Out, typename... Runs>
inline void combine(Out* output, int64_t length, const Runs&... runs) {
  constexpr int kVectors = 4;
  int64_t i = 0;
  for (; i + kVectors * V::kLanes <= length; i += kVectors * V::kLanes) {
    combine_vectors<kVectors, V, kAccumulate>(output, i, runs...);
  }
  for (; i + V::kLanes <= length; i += V::kLanes) combine_vectors<1, V, kAccumulate>(output, i, runs...);
  if (i < length) {
    const int lanes = int(length - i);
    auto sum = kAccumulate ? V::load_partial(output + i, lanes) : V::zero();
    (add_terms_partial<V>(runs, i, lanes, sum), ...);
    V::store_partial(output + i, sum, lanes);
  }
}

// NHWC: vectors run over channels. Each input row is reduced along x once, into a ring of as many rows as an
// output row needs; the rows of the ring are then combined along y. Channels are tiled to keep the ring in
// the L1 cache.
template <bool kAccumulate, typename T, typename Out>
void banded_product_nhwc(const Image<const T>& input, const Band<acc_t<T>>& rows,
                         const Band<acc_t<T>>& columns, const Image<Out>& output, acc_t<T>* scratch) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  const int32_t ring_size = std::max(rows.widest, 1);
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
      for (int32_t row = in_ring ? reduced_end : row_tap.first; row < row_end; ++row) {
        acc* reduced = scratch + (row % ring_size) * ring_stride;
        const T* in_row = input.data + row * input.row_stride + channel;
        for (int32_t x = 0; x < columns.outputs; ++x) {
          const Tap& tap = columns.taps[x];
          combine<V, false>(reduced + x * tile, tile,
                            Terms<T>{in_row + tap.first * input.column_stride, input.column_stride,
                                     columns.weights + tap.offset, tap.count});
        }
      }
      reduced_begin = row_tap.first;
      reduced_end = in_ring ? std::max(reduced_end, row_end) : row_end;

      const int32_t slot = row_tap.first % ring_size;
      const int32_t until_wrap = std::min(row_tap.count, ring_size - slot);
      const acc* weights = rows.weights + row_tap.offset;
      Out* out_row = output.data + (rows.output_begin + y) * output.row_stride +
                     columns.output_begin * output.column_stride + channel;
      for (int32_t x = 0; x < columns.outputs; ++x) {
        combine<V, kAccumulate>(
            out_row + x * output.column_stride, tile,
            Terms<acc>{scratch + slot * ring_stride + x * tile, ring_stride, weights, until_wrap},
            Terms<acc>{scratch + x * tile, ring_stride, weights + until_wrap, row_tap.count - until_wrap});
      }
    }
  }
}

// NCHW forward: rows are combined first, as contiguous vectors over the x the RoI needs, then reduced along
// x.
template <typename T>
void pool_nchw(const Image<const T>& feature, const Band<acc_t<T>>& rows, const Band<acc_t<T>>& columns,
               const Image<T>& output, acc_t<T>* scratch) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  const int64_t length = columns.end - columns.begin;
  for (int64_t channel = 0; channel < feature.channels; ++channel) {
    const T* plane = feature.data + channel * feature.channel_stride;
    T* out_plane = output.data + channel * output.channel_stride;
    for (int32_t y = 0; y < rows.outputs; ++y) {
      const Tap& row_tap = rows.taps[y];
      combine<V, false>(scratch, length,
                        Terms<T>{plane + row_tap.first * feature.row_stride + columns.begin,
                                 feature.row_stride, rows.weights + row_tap.offset, row_tap.count});
      for (int32_t x = 0; x < columns.outputs; ++x) {
        const Tap& tap = columns.taps[x];
        acc sum = 0;
        for (int32_t k = 0; k < tap.count; ++k) {
          sum += columns.weights[tap.offset + k] * scratch[tap.first - columns.begin + k];
        }
        out_plane[y * output.row_stride + x] = T(sum);
      }
    }
  }
}

// NCHW backward: the few gradients of a bin row are spread along x, then added to rows as contiguous vectors.
template <typename T>
void scatter_nchw(const Image<const T>& grad, const Band<acc_t<T>>& rows, const Band<acc_t<T>>& columns,
                  const Image<acc_t<T>>& grad_feature, acc_t<T>* scratch) {
  using acc = acc_t<T>;
  using V = typename VectorOf<acc>::type;
  const int64_t length = columns.outputs;
  for (int64_t channel = 0; channel < grad.channels; ++channel) {
    const T* plane = grad.data + channel * grad.channel_stride;
    acc* out_plane = grad_feature.data + channel * grad_feature.channel_stride + columns.output_begin;
    for (int32_t y = rows.begin; y < rows.end; ++y) {
      for (int32_t x = 0; x < columns.outputs; ++x) {
        const Tap& tap = columns.taps[x];
        acc sum = 0;
        for (int32_t k = 0; k < tap.count; ++k) {
          sum += columns.weights[tap.offset + k] * acc(plane[y * grad.row_stride + tap.first + k]);
        }
        scratch[(y - rows.begin) * length + x] = sum;
      }
    }
    for (int32_t y = 0; y < rows.outputs; ++y) {
      const Tap& row_tap = rows.taps[y];
      combine<V, true>(out_plane + (rows.output_begin + y) * grad_feature.row_stride, length,
                       Terms<acc>{scratch + (row_tap.first - rows.begin) * length, length,
                                  rows.weights + row_tap.offset, row_tap.count});
    }
  }
}
