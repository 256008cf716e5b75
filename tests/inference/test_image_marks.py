"""Pictures say whether they are as they were written, and decode to the same pixels."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mrcnn_ext.inference.image_marks import is_as_marked, marked


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_marks(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    plain = cv2.imencode(suffix, pixels)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(plain)
    assert not is_as_marked(path) and not is_as_marked(tmp_path / "none.png")
    before = cv2.imread(str(path))
    path.write_bytes(marked(plain))
    assert is_as_marked(path)
    np.testing.assert_array_equal(cv2.imread(str(path)), before)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image)[:, :, ::-1], before)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    assert not is_as_marked(path)
    path.write_bytes(b"")
    assert not is_as_marked(path)
