// The gradient of the weight of a 3x3 convolution of stride 1 on the CPU, by Winograd's minimal filtering;
// see kernels.h. As many tiles as a third-level cache holds are transformed, all threads together, and
// multiplied point by point; what belongs to one point stays in a second-level cache. The result does not
// depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "canvas.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"

namespace mrcnn_ext {
namespace winograd {
namespace {

// Bytes of what is transformed at a time.
constexpr int64_t kTransformed = 20 << 20;
constexpr int64_t kGroup = 8 * kPanel;       // channels that a thread transforms at a time
constexpr int64_t kRowsAtOnce = 16 * kRows;  // of the sums of a point, that a thread takes at a time

// Transformed tiles of inputs or of gradients, of some blocks of kDepth tiles: for each point, panel and step
// kStep values, and for each point, block and channel the scale.
template <typename Value>
class Packed {
 public:
  static constexpr bool kQuantized = std::is_same_v<Value, int16_t>;

  Packed(int64_t channels, int64_t tiles, const at::TensorOptions& options)
      : channels_(channels),
        blocks_(ceil_div(tiles, kDepth)),
        steps_(ceil_div(tiles, kTilesPerStep<Value>)),
        values_(
            empty_result({kPoints * point_stride()}, options.dtype(c10::CppTypeToScalarType<Value>::value))),
        scales_(at::empty({kQuantized ? kPoints * blocks_ * channels : 0}, options.dtype(at::kFloat))),
        value_(values_.template mutable_data_ptr<Value>()),
        scale_(scales_.template mutable_data_ptr<float>()) {}

  int64_t panel_stride() const { return steps_ * kStep<Value>; }
  // A little more than what it has: else the points would share few lines of a cache.
  int64_t point_stride() const { return channels_ / kPanel * panel_stride() + kStep<Value>; }
  int64_t scale_stride() const { return blocks_ * channels_; }

  Value* values(int64_t point, int64_t panel, int64_t block) const {
    return value_ + point * point_stride() + panel * panel_stride() + block * kDepth * kPanel;
  }
  float* scales(int64_t point, int64_t channel, int64_t block) const {
    return kQuantized ? scale_ + point * scale_stride() + block * channels_ + channel : nullptr;
  }

 private:
  int64_t channels_, blocks_, steps_;
  at::Tensor values_, scales_;
  Value* value_;
  float* scale_;
};

// The cells of some tiles, and of one more, which is prefetched.
template <typename T>
std::vector<const T*> find_cells(const Canvas& canvas, int64_t first, int64_t tiles, int64_t offset,
                                 int64_t side, const T* from, int64_t channels, const T* zeros) {
  std::vector<int64_t> places(tiles * side * side);
  for (int64_t tile = 0; tile < tiles; ++tile)
    canvas.cells(first + tile, offset, side, places.data() + tile * side * side);
  std::vector<const T*> cells(places.size() + side * side, zeros);
  for (size_t i = 0; i < places.size(); ++i)
    if (places[i] >= 0) cells[i] = from + places[i] * channels;
  return cells;
}

// Channels [from, end) of the cells of some tiles, but for those at the rim, which are other tiles'.
template <typename T>
void prefetch(const T* const* cells, int64_t tiles, bool is_input, int64_t from, int64_t end) {
  const int64_t side = is_input ? kInput : kOutput, rim = is_input ? 1 : 0;
  for (int64_t tile = 0; tile < tiles; ++tile, cells += side * side)
    for (int64_t y = rim; y < side - rim; ++y)
      for (int64_t x = rim; x < side - rim; ++x)
        for (int64_t channel = from; channel < end; channel += int64_t(64 / sizeof(T)))
          __builtin_prefetch(cells[y * side + x] + channel, 0, 2);
}

// Both (N, C or O, H, W), channels-last. sums: (kPoints, O, C), point_stride apart. totals: the sums of the
// gradients' cells, (blocks, O), zeros at first; or nullptr.
template <typename T, typename Value>
void sum_products(const at::Tensor& grad, const at::Tensor& input, const Kernels& kernels,
                  Pack<T, Value> pack_inputs, Pack<T, Value> pack_gradients, AddProducts<Value> add_products,
                  const Canvas& canvas, float* sums, int64_t point_stride, float* totals) {
  const int64_t channels = input.size(1), outputs = grad.size(1);
  const int64_t bytes = kPoints * (channels + outputs) * sizeof(Value);
  const int64_t fitting = std::max<int64_t>(kTransformed / bytes / kDepth, 1) * kDepth;
  const int64_t parts = ceil_div(canvas.tiles(), fitting);
  const int64_t most = std::min(ceil_div(ceil_div(canvas.tiles(), parts), kDepth) * kDepth, canvas.tiles());
  const Packed<Value> inputs(channels, most, input.options()), gradients(outputs, most, input.options());
  const at::Tensor scratch =
      at::empty({at::get_num_threads(), kPoints * kDepthFloats}, input.options().dtype(at::kFloat));
  const std::vector<T> zeros(std::max(channels, outputs), T(0));

  for (int64_t begin = 0; begin < canvas.tiles(); begin += most) {
    const int64_t tiles = std::min(most, canvas.tiles() - begin);
    const int64_t blocks = ceil_div(tiles, kDepth);
    const auto input_cells =
        find_cells(canvas, begin, tiles, -1, kInput, input.const_data_ptr<T>(), channels, zeros.data());
    const auto gradient_cells =
        find_cells(canvas, begin, tiles, 0, kOutput, grad.const_data_ptr<T>(), outputs, zeros.data());
    // The cells of a block, brought from memory together, stay in a second-level cache from panel to panel.
    const int64_t input_groups = ceil_div(channels, kGroup),
                  groups = input_groups + ceil_div(outputs, kGroup);
    share_out(blocks * groups, [&](int64_t unit) {
      const int64_t block = unit / groups, group = unit % groups;
      const bool is_input = group < input_groups;
      const Packed<Value>& packed = is_input ? inputs : gradients;
      const T* const* cells = is_input ? input_cells.data() + block * kDepth * kPoints
                                       : gradient_cells.data() + block * kDepth * kOutputs;
      const int64_t count = std::min(kDepth, tiles - block * kDepth);
      const int64_t from = (is_input ? group : group - input_groups) * kGroup;
      const int64_t end = std::min(from + kGroup, is_input ? channels : outputs);
      prefetch(cells, count, is_input, from, end);
      for (int64_t channel = from; channel < end; channel += kPanel) {
        float* total =
            is_input || totals == nullptr ? nullptr : totals + (begin / kDepth + block) * outputs + channel;
        (is_input ? pack_inputs : pack_gradients)(
            cells, count, channel, packed.values(0, channel / kPanel, block), packed.point_stride(),
            packed.scales(0, channel, block), packed.scale_stride(), total,
            scratch.mutable_data_ptr<float>() + at::get_thread_num() * scratch.size(1));
      }
    });

    const int64_t shares = ceil_div(outputs, kRowsAtOnce);
    share_out(kPoints * shares, [&](int64_t unit) {
      const int64_t point = unit / shares, first_row = unit % shares * kRowsAtOnce;
      const int64_t end_row = std::min(first_row + kRowsAtOnce, outputs);
      RowsOfSums<Value> task;
      task.panel_stride = inputs.panel_stride();
      task.sum_stride = channels;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t depth = std::min(kDepth, tiles - block * kDepth);
        task.steps = ceil_div(depth, kTilesPerStep<Value>);
        task.first = begin == 0 && block == 0;
        for (int64_t channel = 0; channel < channels; channel += kChunk) {
          task.panels = inputs.values(point, channel / kPanel, block);
          task.panel_scales = inputs.scales(point, channel, block);
          for (int64_t row = first_row; row < end_row; row += kRows) {
            task.count = static_cast<int>(std::min(kRows, end_row - row));
            for (int64_t i = 0; i < kRows; ++i) {
              const int64_t place = std::min(row + i, end_row - 1);
              task.rows[i] =
                  gradients.values(point, place / kPanel, block) + place % kPanel * kTilesPerStep<Value>;
              task.row_scales[i] = Packed<Value>::kQuantized ? *gradients.scales(point, place, block) : 1;
            }
            task.sums = sums + point * point_stride + row * channels + channel;
            add_products(task, std::min(kChunk, channels - channel) / kPanel);
          }
        }
      }
    });
  }
}

std::tuple<at::Tensor, at::Tensor> weight_gradient(const at::Tensor& grad, const at::Tensor& input,
                                                   bool int16, bool bias) {
  const Kernels* kernels = best_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, "winograd_weight_gradient: this processor has no AVX2");
  TORCH_CHECK_VALUE(input.dim() == 4, "winograd_weight_gradient: input must be (N, C, H, W), got ",
                    input.sizes());
  TORCH_CHECK_TYPE(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16,
                   "winograd_weight_gradient: input must be float32 or bfloat16, got ", input.scalar_type());
  TORCH_CHECK_TYPE(grad.scalar_type() == input.scalar_type(), "winograd_weight_gradient: grad must be ",
                   input.scalar_type(), " as input is, got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.dim() == 4 && grad.size(0) == input.size(0) && grad.size(2) == input.size(2) &&
                        grad.size(3) == input.size(3),
                    "winograd_weight_gradient: grad must be (N, O, H, W) with input's N, H and W, got ",
                    grad.sizes(), " and ", input.sizes());
  const int64_t channels = input.size(1), outputs = grad.size(1);
  TORCH_CHECK_VALUE(channels > 0 && outputs > 0 && channels % kPanel == 0 && outputs % kPanel == 0,
                    "winograd_weight_gradient: channels must be multiples of ", kPanel, ", got ", channels,
                    " and ", outputs);
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::TensorOptions options = input.options().dtype(at::kFloat);
  if (input.numel() == 0)
    return {at::zeros({outputs, channels, 3, 3}, options.memory_format(layout)),
            at::zeros({bias ? outputs : 0}, options)};
  const at::Tensor dense = input.contiguous(layout), dense_grad = grad.contiguous(layout);
  const Canvas canvas(input.size(0), input.size(2), input.size(3));
  const int64_t point_stride = outputs * channels + kPanel;
  const at::Tensor sums = empty_result({kPoints * point_stride}, options);
  const at::Tensor totals = at::zeros({bias ? ceil_div(canvas.tiles(), kDepth) : 0, outputs}, options);
  float* total = bias ? totals.mutable_data_ptr<float>() : nullptr;
  float* sum = sums.mutable_data_ptr<float>();
  const auto run = [&](const auto& transforms) {
    if (int16)
      sum_products(dense_grad, dense, *kernels, transforms.pack_inputs_int16, transforms.pack_gradients_int16,
                   kernels->add_products_int16, canvas, sum, point_stride, total);
    else
      sum_products(dense_grad, dense, *kernels, transforms.pack_inputs, transforms.pack_gradients,
                   kernels->add_products, canvas, sum, point_stride, total);
  };
  input.scalar_type() == at::kFloat ? run(kernels->f32) : run(kernels->bf16);

  const at::Tensor result = at::empty({outputs, channels, 3, 3}, options.memory_format(layout));
  float* taps = result.mutable_data_ptr<float>();
  share_out(outputs, [&](int64_t output) {
    for (int64_t channel = 0; channel < channels; channel += kPanel)
      kernels->transform_sums(sum + output * channels + channel, point_stride,
                              taps + output * 9 * channels + channel, channels);
  });
  return {result, bias ? totals.sum(0) : totals.view({0})};
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("winograd_weight_gradient", weight_gradient); }

}  // namespace winograd
}  // namespace mrcnn_ext
