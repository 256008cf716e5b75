// Registers RoI pooling on CUDA.
#include <torch/library.h>

#include "operators.cuh"

TORCH_LIBRARY_IMPL(mrcnn_ext, CUDA, m) {
  m.impl("roi_align", mrcnn_ext::cuda::roi_align);
  m.impl("roi_align_backward", mrcnn_ext::cuda::roi_align_backward);
}
