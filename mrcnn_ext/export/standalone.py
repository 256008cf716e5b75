"""Runs an exported detector on images as they are. One file, which needs numpy and onnxruntime (or OpenVINO) alone.

It may be copied beside a model that `mrcnn_ext.export.export_model` wrote (``mrcnn-ext export --with-runtime`` does):
neither PyTorch nor detectron2 nor this package is imported.

>>> from mrcnn_runtime import Detector
>>> detector = Detector("model.onnx")
>>> found = detector(image)  # (H, W, 3) uint8, RGB
>>> found["boxes"], found["scores"], found["names"], found["masks"], found["keypoints"]
"""

import json
import math
import os
import threading

import numpy as np

__all__ = ["Detector", "decode_keypoints", "padded", "paste_masks", "resize"]

_METADATA = "mrcnn_ext.json"
_THRESHOLD = 0.5  # probability from which on a pixel belongs to a mask


class Detector:
    """A detector from a file.

    Args:
        path: ``.onnx``, which onnxruntime runs, or ``.xml`` with its ``.bin``, which OpenVINO runs.
        providers: onnxruntime's; the CPU by default.
        threads: that compute; 0 for the runtime's choice.
        streams: images that OpenVINO computes at once, by as many threads that call it, for throughput.

    Attributes:
        metadata: what the file says of itself: ``input_format``, ``test_size``, ``classes``, ``keypoint_names``, ...
        names: of the classes; empty where the file has none.
        keypoint_names: of the keypoints.

    Raises:
        ValueError: the file was not written by mrcnn_ext.
        ImportError: the runtime is not installed.
    """

    def __init__(self, path, providers=None, threads=0, streams=1):
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no exported model {path}")
        if path.endswith(".onnx"):
            self.run, metadata = _open_onnx(path, providers, threads)
        elif path.endswith(".xml"):
            self.run, metadata = _open_openvino(path, threads, streams)
        else:
            raise ValueError(f"{path}: the suffix must be .onnx or .xml")
        if not metadata:
            raise ValueError(f"{path} lacks {_METADATA}: it was not written by mrcnn_ext.export.export_model")
        self.metadata = json.loads(metadata)
        self.names = [kind["name"] for kind in self.metadata.get("classes") or ()]
        self.keypoint_names = list(self.metadata.get("keypoint_names") or ())

    def __call__(self, image, order="RGB", min_score=0.0, masks=True):
        """Detects objects in an image.

        Args:
            image: (H, W, 3) uint8, of any size; (H, W) for a model of gray images; (H, W, C) for one of C channels.
            order: of the image's channels, "RGB" or "BGR" (as OpenCV reads); of no meaning to other models.
            min_score: detections below are left out.
            masks: paste the masks into the image; False leaves them out.

        Returns:
            A dict of R detections, the likeliest first:

            * ``boxes`` (R, 4) float32: x0, y0, x1, y1 in pixels of the image;
            * ``scores`` (R,) float32, and ``classes`` (R,) int64;
            * ``names``: list of R strings;
            * ``masks`` (R, H, W) bool, from a model with masks;
            * ``keypoints`` (R, K, 3) float32: x, y and score, from a model with keypoints;
            * ``mask_scores``, ``keypoint_scores`` (R,) float32, from models that have them.

        Raises:
            ValueError: the image has another shape, dtype or order.
        """
        pixels = _in_format(np.asarray(image), order, self.metadata)
        height, width = pixels.shape[:2]
        small = self._resized(pixels)
        found = self.detect(small)
        found = {name: value[found["scores"] >= min_score] for name, value in found.items()}
        scale = np.array([width / small.shape[1], height / small.shape[0]], np.float32)
        boxes = found["boxes"] * np.tile(scale, 2)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        found = {name: value[keep] for name, value in {**found, "boxes": boxes}.items()}
        if "keypoints" in found:
            found["keypoints"][:, :, :2] *= scale
        if "masks" in found:
            soft = found.pop("masks")
            if masks:
                found["masks"] = paste_masks(soft[:, 0], found["boxes"], (height, width))
        found["names"] = [self.names[k] if k < len(self.names) else "" for k in found["classes"].tolist()]
        return found

    def detect(self, pixels):
        """Detections in an image that has the model's size and channels, without resizing.

        Args:
            pixels: (H, W, C), 0 to 255, in ``metadata["input_format"]``.

        Returns:
            As the call's, in pixels of this image; ``masks`` are probabilities (R, 1, m, m) within the boxes.
        """
        about = self.metadata
        image = padded(pixels, about)
        outputs = self.run(image, np.array(pixels.shape[:2], np.int64))
        found = dict(zip(about["outputs"], outputs, strict=True))
        heatmaps = found.pop("heatmaps", None)
        if heatmaps is not None:
            options = dict(about["keypoints"])
            rois = _scaled(found["boxes"], options.pop("box_scale"))
            decoded = decode_keypoints(heatmaps, rois, **options)
            found["keypoints"] = decoded
            if options["method"] == "oks":
                found["keypoint_scores"] = found["scores"] * decoded[:, :, 2].mean(axis=1)
        return found

    def _resized(self, pixels):
        size = self.metadata.get("test_size")
        if not size:
            return pixels
        height, width = pixels.shape[:2]
        scale = size["min"] / min(height, width)
        sides = (size["min"], scale * width) if height < width else (scale * height, size["min"])
        if max(sides) > size["max"]:
            shrink = size["max"] / max(sides)
            sides = (sides[0] * shrink, sides[1] * shrink)
        new_height, new_width = (int(side + 0.5) for side in sides)
        if min(new_height, new_width) < 1:
            raise ValueError(f"nothing of the image's {height} x {width} pixels is left at the model's size")
        return resize(pixels, new_height, new_width)


def padded(pixels, about):
    """(H, W, C) pixels as the graph takes them, (C, H', W') float32, filled up to the sides that the backbone takes.

    What is filled up becomes zero when the model normalises it.
    """
    height, width = pixels.shape[:2]
    multiple = max(about["size_divisibility"], 1)
    mean = np.array(about["pixel_mean"], np.float32)
    filled = np.empty((height + -height % multiple, width + -width % multiple, len(mean)), np.float32)
    filled[:] = mean
    filled[:height, :width] = pixels
    return np.ascontiguousarray(filled.transpose(2, 0, 1))


def _in_format(image, order, about):
    """The image with the model's channels, (H, W, C) uint8."""
    channels, format = len(about["pixel_mean"]), about["input_format"]
    if image.dtype != np.uint8:
        raise ValueError(f"image must be uint8, 0 to 255, got {image.dtype}")
    if order not in ("RGB", "BGR"):
        raise ValueError(f"order must be RGB or BGR, got {order!r}")
    if image.ndim == 2:
        image = image[:, :, None]
    if format == "L" and image.ndim == 3 and image.shape[2] == 3:
        red, green, blue = (
            image[:, :, k].astype(np.uint32) for k in ((0, 1, 2) if order == "RGB" else (2, 1, 0))
        )
        return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise ValueError(f"image must have shape (H, W, {channels}), got {image.shape}")
    if format in ("RGB", "BGR"):
        return image if order == format else image[:, :, ::-1]
    if format == "YUV-BT.601":
        raise ValueError("models of YUV images are not served: convert the image, and call detect()")
    return image


# --- resizing ----------------------------------------------------------------------------------------------

_BITS = 22  # of Pillow's fixed-point weights


def resize(pixels, height, width):
    """Bilinear resizing with antialiasing, (H, W, C) uint8 -> (height, width, C), as Pillow does it.

    detectron2 resizes with Pillow, and its models are trained on such images: columns and then rows, with weights of 22
    bits, each pass rounded to 8 bits. Images that lose more than twice as many rows as columns begin with rows, as in
    Pillow 13; with an earlier Pillow these differ, by 1 of 255.
    """
    fewer_rows, fewer_columns = len(pixels) - height, pixels.shape[1] - width
    rows_first = fewer_rows > 0 and fewer_rows > 2 * fewer_columns
    for axis in (0, 1) if rows_first else (1, 0):
        count = (height, width)[axis]
        if pixels.shape[axis] != count:
            pixels = np.moveaxis(_resize_rows(np.moveaxis(pixels, axis, 0), count), 0, axis)
    return pixels


def _resize_rows(pixels, count):
    first, weights = _weights(len(pixels), count)
    total = np.full((count, *pixels.shape[1:]), 1 << (_BITS - 1), np.int32)
    last = len(pixels) - 1
    for tap in range(weights.shape[1]):
        rows = pixels[np.minimum(first + tap, last)]
        total += rows.astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> _BITS, 0, 255).astype(np.uint8)


def _weights(side, count):
    """First source row (count,) of each row, and its weights (count, taps), of a triangle as wide as two rows."""
    scale = side / count
    stretch = max(scale, 1.0)
    taps = math.ceil(stretch) * 2 + 1
    first = np.empty(count, np.int64)
    weights = np.zeros((count, taps))
    for row in range(count):
        centre = (row + 0.5) * scale
        low = max(0, int(centre - stretch + 0.5))
        high = min(side, int(centre + stretch + 0.5))
        distance = np.abs((np.arange(low, high) - centre + 0.5) * (1 / stretch))
        kernel = np.where(distance < 1, 1 - distance, 0)
        first[row] = low
        weights[row, : high - low] = kernel / kernel.sum()
    return first, (weights * (1 << _BITS) + 0.5).astype(np.int32)


# --- masks -------------------------------------------------------------------------------------------------


def paste_masks(masks, boxes, size):
    """Masks of boxes as masks of the image, as detectron2's ``paste_masks_in_image``.

    Args:
        masks: (R, m, m) float32, probabilities.
        boxes: (R, 4) in pixels of the image.
        size: its height and width.

    Returns:
        (R, height, width) bool.
    """
    height, width = size
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, box, image in zip(masks, boxes, pasted, strict=True):
        x0, y0 = (
            min(max(int(math.floor(side)) - 1, 0), limit)
            for side, limit in zip(box[:2], (width, height), strict=True)
        )
        x1, y1 = (
            min(max(int(math.ceil(side)) + 1, 0), limit)
            for side, limit in zip(box[2:], (width, height), strict=True)
        )
        rows = _sampled(np.arange(y0, y1), box[1], box[3], mask.shape[0])
        columns = _sampled(np.arange(x0, x1), box[0], box[2], mask.shape[1])
        image[y0:y1, x0:x1] = rows @ mask @ columns.T >= _THRESHOLD
    return pasted


def _sampled(pixels, low, high, cells):
    """(len(pixels), cells): bilinear weights of a mask's cells at pixels of one axis, zero beyond the mask."""
    low, high = np.float32(low), np.float32(high)
    place = ((pixels.astype(np.float32) + np.float32(0.5) - low) / (high - low) * cells) - np.float32(0.5)
    distance = np.abs(place[:, None] - np.arange(cells, dtype=np.float32))
    return np.clip(1 - distance, 0, None).astype(np.float32)


# --- keypoints ---------------------------------------------------------------------------------------------


def _scaled(boxes, scale):
    grow = (boxes[:, 2:] - boxes[:, :2]) * ((scale - 1) / 2)
    return np.concatenate([boxes[:, :2] - grow, boxes[:, 2:] + grow], axis=1)


def decode_keypoints(maps, rois, method="stock", sigmas=None, covered=0.53):
    """Keypoints of heatmaps, as ``mrcnn_ext.layers.heatmaps_to_keypoints``, which says what the methods are.

    Args:
        maps: (R, K, H, W) float32, logits.
        rois: (R, 4) that they cover, in pixels.
        method: "stock", "quadratic", "dark" or "oks".
        sigmas: (K,) of object keypoint similarity, for "oks".
        covered: part of its RoI that an object covers, for "oks".

    Returns:
        (R, K, 3) float32: x, y in pixels, and the score.
    """
    keypoints = np.zeros((*maps.shape[:2], 3), np.float32)
    for found, heat, roi in zip(keypoints, maps.astype(np.float32), rois.astype(np.float32), strict=True):
        start = roi[[1, 0]]
        length = np.maximum(roi[[3, 2]] - start, 1)
        score = None
        if method == "stock":
            pixels = np.ceil(length)
            place, logit = _resized_maximum(heat, pixels.astype(int))
        else:
            pixels = np.array(heat.shape[1:], np.float32)
            if method == "oks":
                surface = _expected_similarity(
                    heat, covered * length.prod(), length, np.asarray(sigmas, np.float32)
                )
                place, logit, height = _taylor_maximum(heat, np.log(np.maximum(surface, _TINY)), margin=1)
                score = np.minimum(np.exp(height), 1)
            else:
                surface = _smoothed_log_probability(heat) if method == "dark" else heat
                place, logit, _ = _taylor_maximum(heat, surface, margin=0)
        if score is None:
            highest = heat.max(axis=(1, 2))
            total = np.exp(heat - highest[:, None, None]).sum(axis=(1, 2))
            score = np.exp(logit - highest) / total
        centre = (place + 0.5) * (length / pixels) + start
        found[:, 0], found[:, 1], found[:, 2] = centre[:, 1], centre[:, 0], score
    return keypoints


def _resized_maximum(heat, pixels):
    """The largest pixel of (K, H, W) maps resized to a size by bicubic interpolation: (K, 2), y and x, and (K,)."""
    rows, columns = (_cubic(side, count) for side, count in zip(heat.shape[1:], pixels, strict=True))
    places, values = [], []
    for one in heat:
        large = rows @ one @ columns.T
        index = int(large.argmax())
        places.append(divmod(index, large.shape[1]))
        values.append(large.flat[index])
    return np.array(places, np.float32).reshape(-1, 2), np.array(values, np.float32)


def _cubic(side, count):
    """(count, side): weights of PyTorch's bicubic interpolation (Keys 1981, a = -0.75), borders repeated."""
    place = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(side / count) - np.float32(
        0.5
    )
    floor = np.floor(place)
    weights = np.zeros((count, side), np.float32)
    for tap in range(-1, 3):
        d = np.abs(place - (floor + tap))
        near = (1.25 * d - 2.25) * d * d + 1
        far = ((-0.75 * d + 3.75) * d - 6) * d + 3
        cell = np.clip(floor + tap, 0, side - 1).astype(int)
        np.add.at(weights, (np.arange(count), cell), np.where(d < 1, near, np.where(d < 2, far, 0)))
    return weights


_SIGMA = 2  # cells, of the Gaussian
_TINY = 1e-10  # smaller probabilities count as this


def _softmax(heat):
    value = np.exp(heat - heat.max(axis=(1, 2), keepdims=True))
    return value / value.sum(axis=(1, 2), keepdims=True)


def _smoothed_log_probability(heat):
    reach = 3 * _SIGMA
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    kernel = np.exp(-(steps**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    matrices = []
    for side in heat.shape[1:]:
        distance = np.arange(side)[:, None] - np.arange(side)
        matrices.append(
            np.where(np.abs(distance) <= reach, kernel[np.clip(distance, -reach, reach) + reach], 0)
        )
    smooth = matrices[0] @ _softmax(heat) @ matrices[1].T
    return np.log(np.maximum(smooth, _TINY)).astype(np.float32)


def _expected_similarity(heat, area, length, sigmas):
    variance = area * (2 * sigmas) ** 2  # (K,)
    kernels = []
    for side, extent in zip(heat.shape[1:], length, strict=True):
        steps = np.arange(-1, side + 1, dtype=np.float32)
        squared = ((steps[:, None] - steps[1:-1]) * (extent / side)) ** 2
        kernels.append(np.exp(-squared / (2 * variance[:, None, None])))
    return kernels[0] @ _softmax(heat) @ kernels[1].transpose(0, 2, 1)


def _taylor_maximum(heat, surface, margin):
    """Place (K, 2) in cells, y and x, of the largest cell of (K, H + 2 margin, W + 2 margin), refined by a Taylor
    expansion; the logit of the cell; the expansion's height."""
    count, height, width = heat.shape
    inner = surface[:, margin : margin + height, margin : margin + width].reshape(count, -1)
    y, x = np.divmod(inner.argmax(axis=1), width)
    last = (height - 1, width - 1)
    along = (y > -margin) & (y < last[0] + margin) & (x > -margin) & (x < last[1] + margin)
    around = np.pad(surface, ((0, 0), (1, 1), (1, 1)), mode="edge")
    k = np.arange(count)

    def at(dy, dx):
        return around[k, y + margin + 1 + dy, x + margin + 1 + dx]

    middle = at(0, 0)
    gy, gx = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    hyy, hxx = at(1, 0) + at(-1, 0) - 2 * middle, at(0, 1) + at(0, -1) - 2 * middle
    hxy = (at(-1, -1) - at(-1, 1) - at(1, -1) + at(1, 1)) / 4
    gy, gx, hxy = (np.where(along, value, 0) for value in (gy, gx, hxy))
    hyy, hxx = (np.where(along, value, -1) for value in (hyy, hxx))
    determinant = hyy * hxx - hxy * hxy
    maximum = (hyy < 0) & (determinant > 0)
    determinant = np.where(maximum, determinant, 1)
    offset = np.stack([hxy * gx - hxx * gy, hxy * gy - hyy * gx]) / determinant
    offset = np.where(maximum, np.clip(offset, -1, 1), 0)
    top = middle + (gy * offset[0] + gx * offset[1]) / 2
    place = np.stack([y + offset[0], x + offset[1]], axis=1)
    place = np.clip(place, -0.5, np.array(last) + 0.5)
    return place.astype(np.float32), heat[k, y, x], top


# --- runtimes ----------------------------------------------------------------------------------------------


def _open_onnx(path, providers, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=providers or ["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map.get(_METADATA)
    return (lambda image, size: session.run(None, {"image": image, "size": size})), metadata


def _open_openvino(path, threads, streams):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    metadata = str(model.get_rt_info(_METADATA).value) if model.has_rt_info(_METADATA) else ""
    precision = json.loads(metadata or "{}").get("precision", "float32")
    # What is not in int8 of such a file is in bfloat16, which OpenVINO computes in float32 where there is none.
    hint = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16"}
    if threads:
        hint["INFERENCE_NUM_THREADS"] = threads
    if streams > 1:
        hint |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
    compiled = core.compile_model(model, "CPU", hint)
    ports = list(compiled.outputs)
    of_thread = threading.local()  # a request serves one caller at a time

    def run(image, size):
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        found = of_thread.request.infer({"image": image, "size": size})
        return [np.array(found[port]) for port in ports]

    return run, metadata
