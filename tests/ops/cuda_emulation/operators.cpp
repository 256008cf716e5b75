// The CUDA operators of RoI pooling, compiled for the emulated device, as operators of CPU tensors:
// roi_align_<name> and roi_align_<name>_backward. Each runs once in every order of threads,
// from memory filled with NaN, and fails if the results are not the same to the bit.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <cfloat>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

// After the headers of others.
#include "cuda_emulation.h"
#include "roi_align/cuda/operators.cuh"

namespace mrcnn_ext::cuda {
#define INSTANCE extern template
#include "instances.h"
}  // namespace mrcnn_ext::cuda

extern const char* const emulated_name;  // with the kernels

namespace {

using cuda_emulation::machine;
using cuda_emulation::Order;

// While it lives, new tensors are filled with NaN.
class FilledMemory {
 public:
  FilledMemory()
      : deterministic_(at::globalContext().deterministicAlgorithms()),
        warn_only_(at::globalContext().deterministicAlgorithmsWarnOnly()) {
    at::globalContext().setDeterministicAlgorithms(true, true);
    TORCH_CHECK(at::globalContext().deterministicFillUninitializedMemory());
  }
  ~FilledMemory() { at::globalContext().setDeterministicAlgorithms(deterministic_, warn_only_); }

 private:
  bool deterministic_;
  bool warn_only_;
};

void check_same_bits(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.strides() == b.strides() && a.nbytes() == b.nbytes() &&
                  (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0),
              "emulated CUDA: the result depends on the order of the threads");
}

// The result of `run()`, which is the same in every order; `check(first, other)` fails if it is not.
template <typename Run, typename Check>
auto in_every_order(const Run& run, const Check& check) {
  const FilledMemory filled;
  machine().order = Order::kAscending;
  const auto first = run();
  for (const Order order : {Order::kDescending, Order::kShuffled}) {
    machine().order = order;
    const auto counts = machine().counts;
    check(first, run());
    machine().counts = counts;  // the work is counted once
  }
  return first;
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::ArrayRef<double> scales,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                     std::string_view mode, double canonical_box_size, int64_t canonical_level) {
  return in_every_order(
      [&] {
        return mrcnn_ext::cuda::roi_align(features, rois, scales, pooled_height, pooled_width, sampling_ratio,
                                          aligned, mode, canonical_box_size, canonical_level);
      },
      check_same_bits);
}

using Gradients = std::tuple<std::vector<at::Tensor>, at::Tensor>;

Gradients roi_align_backward(const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
                             at::ArrayRef<double> scales, int64_t pooled_height, int64_t pooled_width,
                             int64_t sampling_ratio, bool aligned, std::string_view mode,
                             double canonical_box_size, int64_t canonical_level, bool rois_need_grad) {
  return in_every_order(
      [&] {
        return mrcnn_ext::cuda::roi_align_backward(grad, features, rois, scales, pooled_height, pooled_width,
                                                   sampling_ratio, aligned, mode, canonical_box_size,
                                                   canonical_level, rois_need_grad);
      },
      [](const Gradients& first, const Gradients& other) {
        for (size_t i = 0; i < std::get<0>(first).size(); ++i) {
          check_same_bits(std::get<0>(first)[i], std::get<0>(other)[i]);
        }
        check_same_bits(std::get<1>(first), std::get<1>(other));
      });
}

// A kernel that writes 63, 62, ..., 0, with one fault or none, for the emulation to find.
enum Fault {
  kNone,
  kNoBarrier,
  kNoBarrierAfterReading,
  kNoWarpBarrier,
  kNoInitialisation,
  kBranch,
  kOverrun
};

__global__ void reverse(Fault fault, int* output) {
  int* const values = mrcnn_ext::cuda::shared_memory<int>();
  const int thread = threadIdx.x;
  if (fault == kBranch && thread > 0) return;
  if (fault != kNoInitialisation || thread != 7) values[thread] = thread;
  if (fault == kOverrun && thread == 63) values[64] = 0;
  if (fault != kNoBarrier) __syncthreads();
  const int of_other_warp = values[thread ^ 32];
  if (fault == kNoBarrierAfterReading) {
    __syncwarp();  // holds the lanes of a warp together, not the warps
  } else {
    __syncthreads();
  }
  values[thread] = of_other_warp;
  if (fault != kNoWarpBarrier) __syncwarp();
  output[thread] = values[thread ^ 31];
}

at::Tensor run_faulty(std::string_view name) {
  const std::pair<std::string_view, Fault> faults[] = {
      {"", kNone},
      {"missing barrier", kNoBarrier},
      {"missing barrier after reading", kNoBarrierAfterReading},
      {"missing barrier of a warp", kNoWarpBarrier},
      {"missing initialisation", kNoInitialisation},
      {"barrier in a branch", kBranch},
      {"write past the end", kOverrun}};
  for (const auto& [known, fault] : faults) {
    if (known != name) continue;
    return in_every_order(
        [&, fault = fault] {
          const at::Tensor output = at::empty({64}, at::kInt);
          cudaLaunchConfig_t config{dim3(1), dim3(64), 64 * sizeof(int), nullptr};
          C10_CUDA_CHECK(cudaLaunchKernelEx(&config, reverse, fault, output.mutable_data_ptr<int>()));
          return output;
        },
        check_same_bits);
  }
  TORCH_CHECK_VALUE(false, "there is no fault ", name);
}

// What was counted since the call before: locate, read, written, multiply_adds, visits.
std::vector<int64_t> take_counts() {
  const auto counts = std::exchange(machine().counts, {});
  return {int64_t(counts.locate), int64_t(counts.read), int64_t(counts.written),
          int64_t(counts.multiply_adds), int64_t(counts.visits)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mrcnn_ext, m) {
  const std::string name = emulated_name;
  const std::string arguments =
      "Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned, str mode, float canonical_box_size, int canonical_level";
  const auto define = [&](const std::string& schema) { m.def(torch::schema(schema.c_str())); };
  for (const std::string once : {"", "_once"}) {  // "_once": in one order only, for counts of large problems
    define("roi_align_" + name + once + "(" + arguments + ") -> Tensor");
    define("roi_align_" + name + "_backward" + once + "(Tensor grad, " + arguments +
           ", bool rois_need_grad) -> (Tensor[], Tensor)");
  }
  define("run_faulty_" + name + "(str fault) -> Tensor");
  define("take_counts_" + name + "() -> int[]");
}

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  const std::string name = emulated_name;
  m.impl(("roi_align_" + name).c_str(), roi_align);
  m.impl(("roi_align_" + name + "_backward").c_str(), roi_align_backward);
  m.impl(("roi_align_" + name + "_once").c_str(), mrcnn_ext::cuda::roi_align);
  m.impl(("roi_align_" + name + "_backward_once").c_str(), mrcnn_ext::cuda::roi_align_backward);
}

TORCH_LIBRARY_IMPL(mrcnn_ext, CompositeExplicitAutograd, m) {
  const std::string name = emulated_name;
  m.impl(("run_faulty_" + name).c_str(), run_faulty);
  m.impl(("take_counts_" + name).c_str(), take_counts);
}
