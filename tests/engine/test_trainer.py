"""The trainer's constructor; tests/tools trains with it."""

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from mrcnn_ext.engine import Trainer, UserError
from mrcnn_ext.engine.trainer import thin_out


def test_config_without_our_keys():
    with pytest.raises(UserError, match="call mrcnn_ext.add_mrcnn_ext_config"):
        Trainer(get_cfg())


@pytest.mark.parametrize(
    "count, expected", [(0, [0, 1, 2, 3, 4, 5]), (2, [0, 3]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_validation_images_are_spread_over_the_data(count, expected):
    assert thin_out(list(range(6)), count) == expected
