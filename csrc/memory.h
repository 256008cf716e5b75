// Memory for large results.
#pragma once

#include <ATen/ATen.h>

namespace mrcnn_ext {

// A tensor, in the memory layout of the options, that is not filled. A result of tens of megabytes would be
// fresh memory from the kernel at every call, and faulting it in costs more than computing it: memory of
// results that nobody has any more is kept and used again, up to MRCNN_EXT_KEEP_MB megabytes; if that is not
// set up to 512, or as much as was in use at once.
at::Tensor empty_result(at::IntArrayRef size, const at::TensorOptions& options);

}  // namespace mrcnn_ext
