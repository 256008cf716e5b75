#pragma once

#include <c10/util/Exception.h>

#include "cuda_emulation.h"

#define C10_CUDA_CHECK(call) \
  TORCH_CHECK((call) == cudaSuccess, "emulated CUDA: ", cuda_emulation::machine().error)
