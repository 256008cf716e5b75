"""Colours that can be told apart, the same for a number in every picture."""

import colorsys

__all__ = ["color_of", "ink_on", "lighter"]

# Bright enough to be seen on photos; neighbours in the list are far apart in hue.
_FIRST = (
    (255, 82, 82),  # red
    (64, 156, 255),  # blue
    (255, 193, 7),  # amber
    (46, 204, 113),  # green
    (217, 105, 255),  # violet
    (0, 210, 211),  # cyan
    (255, 138, 60),  # orange
    (255, 121, 198),  # pink
    (163, 217, 40),  # lime
    (140, 145, 255),  # indigo
    (226, 176, 126),  # sand
    (0, 184, 148),  # teal
)
_GOLDEN = 0.618034  # hues that follow one another are far apart
_LEVELS = ((0.75, 1.0), (0.55, 0.85), (0.95, 0.8))  # saturation and value


def color_of(number: int) -> tuple[int, int, int]:
    """RGB of a class, an instance or a track, from 0 on."""
    if number < len(_FIRST):
        return _FIRST[number]
    saturation, value = _LEVELS[number % len(_LEVELS)]
    rgb = colorsys.hsv_to_rgb(number * _GOLDEN % 1, saturation, value)
    return tuple(round(255 * part) for part in rgb)


def lighter(color: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """A colour moved towards white."""
    return tuple(round(part + (255 - part) * share) for part in color)


def ink_on(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is read more easily on a colour (WCAG's relative luminance)."""
    linear = [(part / 255) ** 2.2 for part in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)
