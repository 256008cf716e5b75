// The kernels of RoI pooling for the emulated device, apart from the operators: they are compiled once for
// each way to round, the operators, which take far longer, once for all.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cfloat>

// After the headers of others.
#include "cuda_emulation.h"
#include "roi_align/cuda/backward.cuh"
#include "roi_align/cuda/boxes.cuh"
#include "roi_align/cuda/forward.cuh"

#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)
extern const char* const emulated_name;
const char* const emulated_name = TEXT_OF(EMULATED_NAME);

namespace mrcnn_ext::cuda {
#define INSTANCE template
#include "instances.h"
}  // namespace mrcnn_ext::cuda
