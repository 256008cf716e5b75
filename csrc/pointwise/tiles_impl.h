// What the kernels of all dtypes do alike, written against the register type F32 of the including file; see
// simd/*_begin.h: results are computed a tile of rows and outputs at a time.

template <typename Body, int... kNumbers>
inline __attribute__((always_inline)) void unrolled(const Body& body,
                                                    std::integer_sequence<int, kNumbers...>) {
  (body(std::integral_constant<int, kNumbers>()), ...);
}

// Calls body(i) for every i below kCount, a constant: an array that is only indexed so is kept in registers.
// gcc keeps one in memory that a loop indexes.
template <int kCount, typename Body>
inline __attribute__((always_inline)) void unrolled(const Body& body) {
  unrolled(body, std::make_integer_sequence<int, kCount>());
}

// The same for every i below kRowCount and j below kColumns.
template <int kRowCount, int kColumns, typename Body>
inline __attribute__((always_inline)) void unrolled(const Body& body) {
  unrolled<kRowCount * kColumns>([&](auto place) __attribute__((always_inline)) {
    constexpr int kPlace = decltype(place)::value;
    body(std::integral_constant<int, kPlace / kColumns>(), std::integral_constant<int, kPlace % kColumns>());
  });
}

// Calls run(row, output) for the first row and output of every tile of kRows rows and `width` outputs.
// Weights that fit in the cache stay there, and rows are read and written once; otherwise rows stay.
template <typename Run>
inline void for_each_tile(int64_t rows, int64_t outputs, int64_t width, int64_t weight_bytes,
                          const Run& run) {
  if (weight_bytes <= kFewWeights) {
    for (int64_t row = 0; row < rows; row += kRows)
      for (int64_t output = 0; output < outputs; output += width) run(row, output);
  } else {
    for (int64_t output = 0; output < outputs; output += width)
      for (int64_t row = 0; row < rows; row += kRows) run(row, output);
  }
}

// Calls run() with the number of panels, from 1 to kMost, as a constant.
template <int kMost, typename Run>
inline void with_panels(int64_t panels, const Run& run) {
  if constexpr (kMost > 1)
    if (panels < kMost) return with_panels<kMost - 1>(panels, run);
  run(std::integral_constant<int, kMost>());
}

// Where the results of a tile go: it arrives while they are computed. gcc leaves out calls of a function that
// does nothing else, unless it is always inlined.
template <typename Task>
inline __attribute__((always_inline)) void prefetch_results(const Task& rows, int64_t row, int64_t count,
                                                            int64_t output, int64_t outputs) {
  for (int64_t i = row; i < std::min(row + count, rows.count); ++i)
    for (int64_t j = 0; j < outputs; j += 64 / int64_t(sizeof(*rows.results)))
      __builtin_prefetch(rows.results + i * rows.stride + output + j, 1);
}

// Calls multiply(k) for every kStep-th of `channels` channels. Before the first outputs, the rows after those
// of the tile are fetched meanwhile, unless the processor foresees them; a little at a time, as what is
// multiplied waits while all of a row is asked for.
template <int kStep, typename In, typename Out, typename Multiply>
inline __attribute__((always_inline)) void multiply_and_prefetch(const Rows<In, Out>& rows, int64_t row,
                                                                 int64_t output, int64_t channel,
                                                                 int64_t channels, const Multiply& multiply) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(In));
  int64_t k = 0;
  if (output == 0 && channels * int64_t(sizeof(In)) <= kPrefetched && row + 2 * kRows <= rows.count)
    for (; k + kLine <= channels; k += kLine) {
      for (int i = 0; i < kRows; ++i) __builtin_prefetch(rows.inputs[row + kRows + i] + channel + k);
      for (int64_t j = 0; j < kLine; j += kStep) multiply(k + j);
    }
  for (; k < channels; k += kStep) multiply(k);
}

// Of a tile at the end of the rows or of the outputs; sums: (kTileRows, kWidth).
template <int kTileRows, int kWidth, typename Task>
__attribute__((noinline)) void write_some(const Task& rows, int64_t row, int64_t output, int64_t outputs,
                                          const float* sums) {
  const F32::Register least = F32::broadcast(rows.relu ? 0 : -std::numeric_limits<float>::infinity());
  for (int64_t i = row; i < std::min(row + kTileRows, rows.count); ++i, sums += kWidth)
    for (int j = 0; j < kWidth && output + j < outputs; j += F32::kLanes) {
      const int64_t place = output + j;
      const int lanes = static_cast<int>(std::min<int64_t>(F32::kLanes, outputs - place));
      F32::Register value = F32::load(sums + j);
      if (rows.added != nullptr) value = F32::add(value, F32::load_partial(rows.added[i] + place, lanes));
      F32::store_partial(rows.results + i * rows.stride + place, F32::max(least, value), lanes);
    }
}

// Writes the results that there are of kTileRows rows and kVectors registers of outputs, of which sum(i, j)
// is the sum with its bias.
template <int kTileRows, int kVectors, typename Task, typename Sum>
inline __attribute__((always_inline)) void write_results(const Task& rows, int64_t row, int64_t output,
                                                         int64_t outputs, const Sum& sum) {
  constexpr int kWidth = kVectors * F32::kLanes;
  if (row + kTileRows > rows.count || output + kWidth > outputs) {
    alignas(64) float sums[kTileRows * kWidth];
    unrolled<kTileRows, kVectors>([&](auto i, auto j) __attribute__((always_inline)) {
      F32::store(sums + i * kWidth + j * F32::kLanes, sum(i, j));
    });
    write_some<kTileRows, kWidth>(rows, row, output, outputs, sums);
    return;
  }
  const F32::Register least = F32::broadcast(rows.relu ? 0 : -std::numeric_limits<float>::infinity());
  const auto finish = [&](const auto& value) __attribute__((always_inline)) {
    unrolled<kTileRows, (kVectors + 1) / 2>([&](auto i, auto pair) __attribute__((always_inline)) {
      constexpr int kFirst = 2 * decltype(pair)::value;
      auto* const results = rows.results + (row + i) * rows.stride + output + kFirst * F32::kLanes;
      const F32::Register first = F32::max(least, value(i, std::integral_constant<int, kFirst>()));
      if constexpr (kFirst + 1 < kVectors)
        F32::store_neighbours(results, first,
                              F32::max(least, value(i, std::integral_constant<int, kFirst + 1>())));
      else
        F32::store(results, first);
    });
  };
  if (rows.added == nullptr)
    finish(sum);
  else
    finish([&](auto i, auto j) __attribute__((always_inline)) {
      return F32::add(sum(i, j), F32::load(rows.added[row + i] + output + j * F32::kLanes));
    });
}
