"""From pixels to polygons and run lengths."""

from __future__ import annotations

import cv2
import numpy as np
import pycocotools.mask as mask_util


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's compressed RLE of a mask (H, W) bool, with `counts` as a str as JSON needs it."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def mask_to_polygons(mask: np.ndarray, offset=(0, 0), min_area: int = 4) -> list[list[float]]:
    """
    COCO polygons of a mask: one per connected piece. A piece with holes is cut through them, because COCO
    polygons have outer outlines only.

    Args:
        mask: (H, W) bool, usually a crop.
        offset: (x, y) of the crop in the image.
        min_area: pieces of fewer pixels are left out, unless all are.

    Returns:
        list[list[float]]: [x0, y0, x1, y1, ...] in pixels, where pixel i covers [i, i + 1). Drawn by
        pycocotools they give the mask back, but for a fraction of a pixel along slanted edges.
    """
    pieces = []
    for piece, origin in _simple_pieces(np.ascontiguousarray(mask, dtype=np.uint8), (0, 0)):
        outline = _outline(piece)
        if outline is not None:
            pieces.append((int(piece.sum()), outline + np.array(origin) + np.array(offset)))
    large = [p for p in pieces if p[0] >= min_area] or pieces
    return [[float(v) for v in outline.reshape(-1)] for _, outline in large]


def _simple_pieces(mask: np.ndarray, origin):
    """Connected pieces without holes: (crop, (x, y) of the crop)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    for k in range(1, count):
        x, y, w, h = (int(v) for v in stats[k, :4])
        crop = (labels[y : y + h, x : x + w] == k).astype(np.uint8)
        hole = _hole_column(crop)
        if hole is None:
            yield crop, (origin[0] + x, origin[1] + y)
            continue
        left, right = crop[:, :hole], crop[:, hole:]
        yield from _simple_pieces(np.ascontiguousarray(left), (origin[0] + x, origin[1] + y))
        yield from _simple_pieces(np.ascontiguousarray(right), (origin[0] + x + hole, origin[1] + y))


def _hole_column(crop: np.ndarray) -> int | None:
    """A column through the largest hole of a connected piece, None if it has none of three pixels or more."""
    padded = np.pad(1 - crop, 1, constant_values=1)
    count, _, stats, centers = cv2.connectedComponentsWithStats(padded, connectivity=8)
    holes = [
        k for k in range(1, count) if stats[k, 0] > 0 and stats[k, 4] > 2
    ]  # the outside touches column 0
    if not holes:
        return None
    largest = max(holes, key=lambda k: stats[k, 4])
    return int(np.clip(round(centers[largest][0] - 1), 1, crop.shape[1] - 1))


def _outline(piece: np.ndarray) -> np.ndarray | None:
    """The outline (N, 2) of a connected piece along pixel edges, its stairs smoothed."""
    # Three times enlarged, the outermost pixels 3 i and 3 i + 2 stand for the edges i and i + 1.
    large = cv2.resize(np.pad(piece, 1), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = max(contours, key=len)
    exact = (contour[:, 0] + 1) // 3
    exact = exact[np.any(exact != np.roll(exact, 1, axis=0), axis=1)] - 1
    if min(piece.shape) < 12:
        return exact if len(exact) >= 3 else None
    smooth = cv2.approxPolyDP(exact.astype(np.float32)[:, None], 0.7, True)[:, 0]
    return smooth if len(smooth) >= 3 else exact


def mask_to_closed_outline(mask: np.ndarray, offset=(0, 0)) -> list[list[int]]:
    """
    One closed outline of a mask, as Cityscapes wants it: its pieces are joined by thin bridges and its holes
    are filled. Bridges and holes lie where something nearer hides the object, which is drawn later.

    Args:
        mask: (H, W) bool, usually a crop.
        offset: (x, y) of the crop in the image.

    Returns:
        list[list[int]]: [[x, y], ...] pixel centres, at least three.
    """
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    for _ in range(200):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if len(contours) == 1:
            break
        contours = sorted(contours, key=len, reverse=True)
        rest = np.concatenate([c[:, 0] for c in contours[1:]])
        main = contours[0][:, 0]
        steps = max(1, len(main) // 200), max(1, len(rest) // 200)
        main, rest = main[:: steps[0]], rest[:: steps[1]]
        distance = ((main[:, None].astype(np.int64) - rest[None]) ** 2).sum(-1)
        a, b = np.unravel_index(distance.argmin(), distance.shape)
        cv2.line(mask, tuple(int(v) for v in main[a]), tuple(int(v) for v in rest[b]), 1, 2)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = max(contours, key=len)[:, 0]
    if len(points) < 3:
        # A line of pixels: go round its bounding box.
        x, y, w, h = cv2.boundingRect(points)
        points = np.array([[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]])
    return [[int(x + offset[0]), int(y + offset[1])] for x, y in points]
