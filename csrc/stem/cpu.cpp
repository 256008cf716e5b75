// The stem of a ResNet in bf16 or float32 on the CPU; see kernels.h. A thread takes a strip of rows of the
// result; the rows of the convolution at its top are computed by the strip above too.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
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
template <typename T>
const Kernels<T>* best_kernels() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (runs_avx512_bf16()) return &avx512_bf16_kernels();
  } else {
    static const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return &avx512_kernels();
    if (capability == "AVX2") return &avx2_kernels();
  }
#endif
  return nullptr;
}

constexpr int64_t kLargestStrip = 32;

int64_t halved(int64_t side) { return (side + 1) / 2; }

// A few rows of something, the last that were asked for.
template <typename T, int64_t kKept>
class Rows {
 public:
  Rows(int64_t first, int64_t size) : next_(first), size_(size), values_(kKept * size), none_(size) {}

  // Row `index` of `count`; zeros outside. Made by make(index, row) when first asked for; rows are asked for
  // in order, but for those last made.
  template <typename Make>
  const T* get(int64_t index, int64_t count, const Make& make) {
    if (index < 0 || index >= count) return none_.data();
    for (; next_ <= index; ++next_) make(next_, &values_[next_ % kKept * size_]);
    return &values_[index % kKept * size_];
  }

 private:
  int64_t next_, size_;
  std::vector<T> values_, none_;
};

// Rows [begin, end) of the result, outputs [output, output + kOutputs), of one image (3, height, width).
template <typename T>
void run_strip(const Kernels<T>& kernels, const float* image, int64_t height, int64_t width, const T* weights,
               const float* bias, int64_t begin, int64_t end, int64_t outputs, T* result) {
  const int64_t rows = halved(height), cells = halved(width), pooled = halved(cells);
  const int64_t groups = (cells + kCells - 1) / kCells;
  // Lines of the image with room for the kernel at both ends of all groups.
  const int64_t pitch = (groups * kCells - 1) * kStride + kKernel;
  const int64_t first_row = std::max<int64_t>(0, kStride * begin - 1);
  Rows<T, 8> lines(std::max<int64_t>(0, kStride * first_row - kPadding), pitch * kChannels + 1);
  Rows<T, 3> convolved(first_row, (groups * kCells + 2) * kOutputs);

  const auto make_line = [&](int64_t y, T* line) {
    kernels.make_line(image + y * width, height * width, width, pitch, line);
  };
  const auto make_row = [&](int64_t row, T* to) {
    const T* below[kKernel];
    for (int64_t k = 0; k < kKernel; ++k)
      below[k] = lines.get(kStride * row - kPadding + k, height, make_line);
    kernels.convolve(below, pitch, groups, weights, bias, to + kOutputs);
    // What is right of the last cell is not part of the maximum.
    std::fill_n(to + (1 + cells) * kOutputs, kOutputs, T(0));
  };
  for (int64_t y = begin; y < end; ++y) {
    const T* around[3];
    for (int64_t k = 0; k < 3; ++k) around[k] = convolved.get(kStride * y - 1 + k, rows, make_row);
    kernels.pool(around, pooled, outputs, result + y * pooled * outputs);
  }
}

template <typename T>
void run(const at::Tensor& images, const at::Tensor& weight, const at::Tensor& biases,
         const at::Tensor& output) {
  const Kernels<T>* kernels = best_kernels<T>();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, "stem_conv_pool: this processor has no ",
                              std::is_same_v<T, BFloat16> ? "AVX512-BF16" : "AVX2");
  if (output.numel() == 0) return;
  const int64_t height = images.size(2), width = images.size(3);
  const int64_t outputs = output.size(1), rows = output.size(2), cells = output.size(3);
  const float* from = images.const_data_ptr<float>();
  const T* weights = weight.const_data_ptr<T>();
  const float* offsets = biases.const_data_ptr<float>();
  T* to = output.mutable_data_ptr<T>();
  const int64_t strip = balanced_block(rows, 1, kLargestStrip), strips = (rows + strip - 1) / strip;
  const int64_t chunks = weight.size(0);
  share_out(images.size(0) * strips * chunks, [&](int64_t unit) {
    const int64_t chunk = unit % chunks, begin = unit / chunks % strips * strip;
    const int64_t image = unit / chunks / strips;
    run_strip(*kernels, from + image * kChannels * height * width, height, width,
              weights + chunk * weight.stride(0), offsets + chunk * kOutputs, begin,
              std::min(rows, begin + strip), outputs, to + image * rows * cells * outputs + chunk * kOutputs);
  });
}

at::Tensor stem_conv_pool(const at::Tensor& input, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_VALUE(input.dim() == 4 && input.size(1) == kChannels,
                    "stem_conv_pool: input must be (N, 3, H, W), got ", input.sizes());
  TORCH_CHECK_TYPE(input.is_floating_point(), "stem_conv_pool: input must be floating point, got ",
                   input.scalar_type());
  const bool bf16 = weight.scalar_type() == at::kBFloat16;
  TORCH_CHECK_TYPE(bf16 || weight.scalar_type() == at::kFloat,
                   "stem_conv_pool: weight must be bfloat16 or float32, got ", weight.scalar_type());
  const std::vector<int64_t> expected = bf16 ? std::vector<int64_t>{kKernel, kReach / 2, kOutputs, 2}
                                             : std::vector<int64_t>{kKernel, kChannels, kKernel, kOutputs};
  TORCH_CHECK_VALUE(weight.dim() == 5 && weight.size(0) > 0 && weight.is_contiguous() &&
                        weight.sizes().slice(1) == at::IntArrayRef(expected),
                    "stem_conv_pool: weight must be contiguous and what stem_weight makes, got ",
                    weight.sizes());
  const int64_t outputs = weight.size(0) * kOutputs;
  TORCH_CHECK_VALUE(!bias || (bias->sizes() == at::IntArrayRef{outputs} && bias->scalar_type() == at::kFloat),
                    "stem_conv_pool: bias must be (", outputs, ",) float32");
  const at::Tensor images = input.to(at::kFloat).contiguous();
  const at::Tensor biases =
      bias ? bias->contiguous() : at::zeros({outputs}, input.options().dtype(at::kFloat));
  const int64_t rows = halved(halved(images.size(2))), cells = halved(halved(images.size(3)));
  const auto options =
      input.options().dtype(weight.scalar_type()).memory_format(at::MemoryFormat::ChannelsLast);
  const at::Tensor output = empty_result({images.size(0), outputs, rows, cells}, options);
  const auto run_in = bf16 ? run<BFloat16> : run<float>;
  run_in(images, weight, biases, output);
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("stem_conv_pool", stem_conv_pool); }

}  // namespace stem
}  // namespace mrcnn_ext
