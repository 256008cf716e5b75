// The stem of a ResNet in bf16 on the CPU; see kernels.h. A thread takes a strip of rows of the result; the
// rows of the convolution at its top are computed by the strip above too.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace stem {
namespace {

using c10::BFloat16;

// nullptr where this processor is not served.
const Kernels* best_kernels() {
#if defined(__x86_64__)
  if (runs_avx512_bf16()) return &avx512_bf16_kernels();
#endif
  return nullptr;
}

constexpr int64_t kLargestStrip = 32;

int64_t halved(int64_t side) { return (side + 1) / 2; }

// A few rows of something, the last that were asked for.
template <int64_t kKept>
class Rows {
 public:
  Rows(int64_t first, int64_t size) : next_(first), size_(size), values_(kKept * size), none_(size) {}

  // Row `index` of `count`; zeros outside. Made by make(index, row) when first asked for; rows are asked for
  // in order, but for those last made.
  template <typename Make>
  const BFloat16* get(int64_t index, int64_t count, const Make& make) {
    if (index < 0 || index >= count) return none_.data();
    for (; next_ <= index; ++next_) make(next_, &values_[next_ % kKept * size_]);
    return &values_[index % kKept * size_];
  }

 private:
  int64_t next_, size_;
  std::vector<BFloat16> values_, none_;
};

// Rows [begin, end) of the result, outputs [output, output + kOutputs), of one image (3, height, width).
void run_strip(const Kernels& kernels, const float* image, int64_t height, int64_t width,
               const BFloat16* weights, const float* bias, int64_t begin, int64_t end, int64_t outputs,
               BFloat16* result) {
  const int64_t rows = halved(height), cells = halved(width), pooled = halved(cells);
  const int64_t groups = (cells + kCells - 1) / kCells;
  // Lines of the image with room for the kernel at both ends of all groups.
  const int64_t line_size = ((groups * kCells - 1) * kStride + kKernel) * kChannels + 1;
  const int64_t first_row = std::max<int64_t>(0, kStride * begin - 1);
  Rows<8> lines(std::max<int64_t>(0, kStride * first_row - kPadding), line_size);
  Rows<3> convolved(first_row, (groups * kCells + 2) * kOutputs);

  const auto make_line = [&](int64_t y, BFloat16* line) {
    kernels.interleave(image + y * width, height * width, width, line + kPadding * kChannels);
  };
  const auto make_row = [&](int64_t row, BFloat16* to) {
    const BFloat16* below[kKernel];
    for (int64_t k = 0; k < kKernel; ++k)
      below[k] = lines.get(kStride * row - kPadding + k, height, make_line);
    kernels.convolve(below, groups, weights, bias, to + kOutputs);
    // What is right of the last cell is not part of the maximum.
    std::fill_n(to + (1 + cells) * kOutputs, kOutputs, BFloat16(0));
  };
  for (int64_t y = begin; y < end; ++y) {
    const BFloat16* around[3];
    for (int64_t k = 0; k < 3; ++k) around[k] = convolved.get(kStride * y - 1 + k, rows, make_row);
    kernels.pool(around, pooled, outputs, result + y * pooled * outputs);
  }
}

at::Tensor stem_conv_pool(const at::Tensor& input, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias) {
  const Kernels* kernels = best_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, "stem_conv_pool: this processor has no AVX512-BF16");
  TORCH_CHECK_VALUE(input.dim() == 4 && input.size(1) == kChannels,
                    "stem_conv_pool: input must be (N, 3, H, W), got ", input.sizes());
  TORCH_CHECK_TYPE(input.is_floating_point(), "stem_conv_pool: input must be floating point, got ",
                   input.scalar_type());
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kBFloat16, "stem_conv_pool: weight must be bfloat16, got ",
                   weight.scalar_type());
  TORCH_CHECK_VALUE(weight.dim() == 5 && weight.size(0) > 0 && weight.is_contiguous() &&
                        weight.sizes().slice(1) == at::IntArrayRef({kKernel, kReach / 2, kOutputs, 2}),
                    "stem_conv_pool: weight must be contiguous and what stem_weight makes, got ",
                    weight.sizes());
  const int64_t outputs = weight.size(0) * kOutputs;
  TORCH_CHECK_VALUE(!bias || (bias->sizes() == at::IntArrayRef{outputs} && bias->scalar_type() == at::kFloat),
                    "stem_conv_pool: bias must be (", outputs, ",) float32");
  const at::Tensor images = input.to(at::kFloat).contiguous();
  const at::Tensor biases =
      bias ? bias->contiguous() : at::zeros({outputs}, input.options().dtype(at::kFloat));
  const int64_t height = images.size(2), width = images.size(3);
  const int64_t rows = halved(halved(height)), cells = halved(halved(width));
  const auto options = input.options().dtype(at::kBFloat16).memory_format(at::MemoryFormat::ChannelsLast);
  const at::Tensor output = empty_result({images.size(0), outputs, rows, cells}, options);
  if (output.numel() == 0) return output;

  const float* from = images.const_data_ptr<float>();
  const BFloat16* weights = weight.const_data_ptr<BFloat16>();
  const float* offsets = biases.const_data_ptr<float>();
  BFloat16* to = output.mutable_data_ptr<BFloat16>();
  const int64_t strip = balanced_block(rows, 1, kLargestStrip), strips = (rows + strip - 1) / strip;
  const int64_t chunks = weight.size(0);
  share_out(images.size(0) * strips * chunks, [&](int64_t unit) {
    const int64_t chunk = unit % chunks, begin = unit / chunks % strips * strip;
    const int64_t image = unit / chunks / strips;
    run_strip(*kernels, from + image * kChannels * height * width, height, width,
              weights + chunk * weight.stride(0), offsets + chunk * kOutputs, begin,
              std::min(rows, begin + strip), outputs, to + image * rows * cells * outputs + chunk * kOutputs);
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("stem_conv_pool", stem_conv_pool); }

}  // namespace stem
}  // namespace mrcnn_ext
