// Memory for large results.
#pragma once

#include <ATen/ATen.h>

namespace mrcnn_ext {

// A result on the CPU. One of tens of megabytes would be fresh memory from the system at every call, and to
// fault it in, zeroed, costs as much as a layer: where such memory has become free it is used again, and the
// system is asked for huge pages. What the last results had no use for is given back.
at::Tensor empty_result(at::IntArrayRef size, const at::TensorOptions& options);

}  // namespace mrcnn_ext
