// Operator schemas of mrcnn_ext. The implementations register themselves per device in their own folders;
// autograd and fake kernels are registered in Python (mrcnn_ext/layers).
#include <Python.h>
#include <torch/library.h>

// roi_align pools every row of `rois`, (R, 5) = [batch index, x0, y0, x1, y1] in pixels, from one level of a
// feature pyramid (FPN eq. 1; a list of one needs no assignment) to (R, C, pooled_height, pooled_width).
// mode: "avg", "max", "warp_avg", "warp_max", "pool" or "exact". What each computes, and what degenerate or
// non-finite boxes and wrong batch indices give, is written at the top of roi_align/axis_weights.h.
//
// roi_align_backward returns the gradients of the features and of the RoIs: (R, 5), zero except for mode
// "exact"; (0, 5) where rois_need_grad is false.
//
// roi_max_pool is roi_align in a max mode, "max", "warp_max" or "pool", which also returns where the maxima
// are, as roi_max_pool_backward takes it: int16 codes of the output's shape (roi_align/cpu/kernels.h). A code
// that would need more bits is -1, and found again from the features. On the CPU alone.
//
// masks_to_rle pastes masks (R, h, w) into their boxes (R, 4) of an image and returns the COCO run-length
// encodings: the characters of all masks, uint8, and where each mask's begin and end, (R + 1) int64.
//
// resized_heatmap_argmax returns the largest pixel of heatmaps (R, K, H, W) resized by bicubic interpolation
// to sizes (R, 2) = [height, width], int64: its place (R, K, 2) = [y, x], int64, and its value (R, K).
//
// winograd_conv3x3 is a 3x3 convolution of stride 1 and padding 1 of a map (N, C, H, W), plus a bias and
// `add`, then a ReLU if asked for. weight and scale are what winograd_weight makes of the convolution's
// weight (O, C, 3, 3) or, transposed, for the convolution of its gradient: (36, O / 16, C, 16) float32 and an
// empty tensor, or (36, O / 16, C / 2, 32) int16 and (36, O) float32; or of winograd_int8_weight, (36, O /
// 16, C / 4, 64) int8 and (72, O) float32, for processors with AVX512-VNNI. C and O are multiples of 16.
//
// winograd_weight_gradient is the gradient of the weight of such a convolution, (O, C, 3, 3) float32
// channels-last, from those of its output, (N, O, H, W), and its input; and that of the bias, (O,), or (0,).
//
// pointwise_conv is a 1x1 convolution of a map (N, C, H, W) of float32 or bf16 with weights in the order
// that ops/pointwise.py gives them, plus a bias and `add`, either of the output's shape or half its height
// and width (then brought to twice its size, nearest), then a ReLU if asked for. add_pointwise_conv_ adds to
// self.
//
// int8_pointwise_conv is the same with the input quantised to q = clamp(round(x / scale + zero_point), 0,
// 255) and weights of 8 bits, in the order that ops/int8_pointwise.py gives them: sum(q w) * weight_scale +
// bias, plus `add`, then a ReLU if asked for. add_int8_pointwise_conv_ adds to self.
//
// stem_conv_pool is a convolution of 7x7, stride 2 and padding 3 of images (N, 3, H, W) in the dtype of the
// weight, bf16 or float32, plus a bias, ReLU, and max pooling of 3x3, stride 2 and padding 1. weight is in
// the order that ops/stem.py gives it.
//
// rpn_proposals turns the best pre_topk anchors of every level, (n, 4), with their logits (N, n) and deltas
// (N, n, 4) into boxes, clips them to the images, drops those with a side not above min_size, suppresses
// level by level and returns the best post_topk of each image: boxes (N, P, 4), logits (N, P) and how many
// there are (N,).
//
// select_detections selects from boxes (R, 1 or K, 4) with scores (R, K) the best topk above score_thresh
// after suppression class by class, clipped to the image: boxes (D, 4), scores, classes and rows (D,), and
// how many there are, (); -1 where a box is not finite.
//
// relu_gradient is the gradient of the input of a ReLU from that of its output and its output, both (N, C, H,
// W) float32 or bf16: grad where output > 0, else zero.
//
// match_boxes gives for each of boxes (R, 4) its largest overlap with one of targets (G, 4), (R,), which
// target that is, (R,) int64, and whether no other box overlaps some target more, (R,) bool. Coordinates are
// finite, and so are their products.
//
// crop_masks brings the parts of masks (G, H, W), bool, that lie in boxes (R, 4) to size x size; index (R,)
// tells which mask each box is of.
//
// multiply_adds multiplies and adds numbers of a tensor's dtype in registers, on all threads, so often, and
// returns how many products these were: a benchmark divides them by the time. On the CPU alone.
TORCH_LIBRARY(mrcnn_ext, m) {
  m.def(
      "roi_align(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt "
      "pooled_width, "
      "int sampling_ratio, bool aligned, str mode, float canonical_box_size, int canonical_level) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor[] features, Tensor rois, float[] spatial_scales, SymInt "
      "pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, str mode, float canonical_box_size, "
      "int canonical_level, bool rois_need_grad) -> (Tensor[], Tensor)");
  m.def(
      "roi_max_pool(Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt "
      "pooled_width, "
      "int sampling_ratio, bool aligned, str mode, float canonical_box_size, int canonical_level) -> "
      "(Tensor, "
      "Tensor)");
  m.def(
      "roi_max_pool_backward(Tensor grad, Tensor codes, Tensor[] features, Tensor rois, float[] "
      "spatial_scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, str mode, float canonical_box_size, "
      "int canonical_level) -> Tensor[]");
  m.def(
      "masks_to_rle(Tensor masks, Tensor boxes, int height, int width, float threshold) -> (Tensor, Tensor)");
  m.def(
      "winograd_conv3x3(Tensor input, Tensor weight, Tensor scale, Tensor? bias, Tensor? add, bool relu) "
      "-> Tensor");
  m.def("winograd_weight(Tensor weight, bool int16, bool transposed) -> (Tensor, Tensor)");
  m.def("winograd_weight_gradient(Tensor grad, Tensor input, bool int16, bool bias) -> (Tensor, Tensor)");
  m.def("winograd_int8_weight(Tensor weight) -> (Tensor, Tensor)");
  m.def(
      "pointwise_conv(Tensor input, Tensor weight, int outputs, Tensor? bias, Tensor? add, int stride, bool "
      "relu, bool float32) -> Tensor");
  m.def(
      "add_pointwise_conv_(Tensor(a!) sum, Tensor input, Tensor weight, Tensor? bias, int stride, bool "
      "relu) "
      "-> ()");
  m.def(
      "int8_pointwise_conv(Tensor input, float scale, int zero_point, Tensor weight, Tensor weight_scale, "
      "Tensor bias, Tensor? add, int stride, bool relu) -> Tensor");
  m.def(
      "add_int8_pointwise_conv_(Tensor(a!) sum, Tensor input, float scale, int zero_point, Tensor weight, "
      "Tensor weight_scale, Tensor bias, int stride, bool relu) -> ()");
  m.def("stem_conv_pool(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "rpn_proposals(Tensor[] logits, Tensor[] deltas, Tensor[] anchors, int[] heights, int[] widths, "
      "float[] "
      "weights, float scale_clamp, float nms_thresh, int pre_topk, int post_topk, float min_size, bool "
      "drop_not_finite) -> (Tensor, Tensor, Tensor)");
  m.def(
      "select_detections(Tensor boxes, Tensor scores, int height, int width, float score_thresh, float "
      "nms_thresh, int topk, float? min_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("relu_gradient(Tensor grad, Tensor output) -> Tensor");
  m.def("match_boxes(Tensor boxes, Tensor targets) -> (Tensor, Tensor, Tensor)");
  m.def("crop_masks(Tensor masks, Tensor index, Tensor boxes, int size) -> Tensor");
  m.def("multiply_adds(Tensor like, int repeats) -> int");
  m.def("resized_heatmap_argmax(Tensor maps, Tensor sizes) -> (Tensor, Tensor)");
}

// Makes the shared object importable under the name that it is built with (setup.py); importing it runs the
// static registrations. Only what is in Python's limited API.
#define MRCNN_EXT_JOIN(a, b) a##b
#define MRCNN_EXT_INIT(name) MRCNN_EXT_JOIN(PyInit_, name)
#define MRCNN_EXT_QUOTE(name) #name
#define MRCNN_EXT_NAME(name) MRCNN_EXT_QUOTE(name)

extern "C" {
#if defined(_WIN32)
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
PyObject*
MRCNN_EXT_INIT(TORCH_EXTENSION_NAME)(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT,
                                      MRCNN_EXT_NAME(TORCH_EXTENSION_NAME),
                                      nullptr,
                                      -1,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr};
  return PyModule_Create(&module);
}
}
