"""Soft masks, lines and dots on an RGB picture, all without steps at their edges."""

import cv2
import numpy as np

__all__ = ["draw_box", "draw_dot", "draw_line", "draw_mask", "soft_mask"]

_SHIFT = 4  # bits of a pixel's fractions in OpenCV's coordinates
_FILL, _EDGE = 0.42, 0.95  # opacity within a mask, and of its outline
_DARK = (20, 20, 20)


def soft_mask(mask: np.ndarray, scale: int, sigma: float) -> tuple[np.ndarray, int]:
    """A mask, enlarged, as the share of each pixel that it covers.

    Args:
        mask: (h, w) bool.
        scale: times by which it is enlarged.
        sigma: of the edge's softness, in pixels of the result.

    Returns:
        (scale h + 2 m, scale w + 2 m) float32 from 0 to 1, and m, the pixels that the edge goes beyond the mask.
    """
    margin = int(3 * sigma) + 1
    size = (mask.shape[1] * scale, mask.shape[0] * scale)
    large = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    large = cv2.copyMakeBorder(large, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=0)
    return cv2.GaussianBlur(large, (0, 0), sigma), margin


def draw_mask(
    picture: np.ndarray, mask: np.ndarray, corner: tuple[int, int], scale: int, color: tuple, line: float
) -> None:
    """Fills a mask and draws its outline.

    Args:
        picture: (H, W, 3) uint8, drawn on.
        mask: (h, w) bool, in pixels of the image before it was enlarged.
        corner: x and y of its first pixel there.
        scale: times by which the picture was enlarged.
        color: RGB.
        line: width of the outline in pixels of the picture.
    """
    if mask.size == 0:
        return
    soft, margin = soft_mask(mask, scale, max(0.6, 0.35 * scale, 0.4 * line))
    x, y = (scale * place - margin for place in corner)
    edge = np.clip(5 * soft * (1 - soft), 0, 1)  # where half of a pixel is covered, wide as the edge is soft
    _blend(picture, np.maximum(_FILL * soft, _EDGE * edge), (x, y), color)


def _blend(picture, alpha, corner, color):
    """Mixes a colour into the part of a picture that begins at ``corner``; what lies beyond is cut off."""
    x, y = corner
    height, width = picture.shape[:2]
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(width, x + alpha.shape[1]), min(height, y + alpha.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    alpha = alpha[y0 - y : y1 - y, x0 - x : x1 - x, None]
    part = picture[y0:y1, x0:x1]
    part[:] = np.rint(part + alpha * (np.array(color, np.float32) - part)).astype(np.uint8)


def draw_box(picture: np.ndarray, box, color: tuple, line: float) -> None:
    """A rectangle, x0, y0, x1, y1 in pixels of the picture, with a dark rim that shows on bright ground."""
    corners = np.rint(np.asarray(box) * 2**_SHIFT).astype(int)
    for width, ink in ((line + 1, _DARK), (line, color)):
        cv2.rectangle(
            *(picture, corners[:2].tolist(), corners[2:].tolist(), ink, max(1, round(width))),
            lineType=cv2.LINE_AA,
            shift=_SHIFT,
        )


def draw_line(picture: np.ndarray, start, end, color: tuple, line: float) -> None:
    """A line between two points (x, y) with a dark rim."""
    ends = [np.rint(np.asarray(point) * 2**_SHIFT).astype(int).tolist() for point in (start, end)]
    for width, ink in ((line + 2, _DARK), (line, color)):
        cv2.line(picture, *ends, ink, max(1, round(width)), lineType=cv2.LINE_AA, shift=_SHIFT)


def draw_dot(picture: np.ndarray, place, radius: float, color: tuple, filled: bool) -> None:
    """A dot at (x, y) with a dark rim, or a ring."""
    centre = np.rint(np.asarray(place) * 2**_SHIFT).astype(int).tolist()
    options = {"lineType": cv2.LINE_AA, "shift": _SHIFT}
    if filled:
        cv2.circle(picture, centre, round((radius + 0.8) * 2**_SHIFT), _DARK, -1, **options)
        cv2.circle(picture, centre, round(radius * 2**_SHIFT), color, -1, **options)
    else:
        width = max(1, round(radius / 2))
        cv2.circle(picture, centre, round(radius * 2**_SHIFT), _DARK, width + 1, **options)
        cv2.circle(picture, centre, round(radius * 2**_SHIFT), color, width, **options)
