import pytest

pytest.importorskip("detectron2")
from mrcnn_ext.engine.settings import tell_of_warmup

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize("share, told", [(0.0, False), (0.9, False), (1.0, True), (80 / 30, True)])
def test_a_warmup_that_does_not_end_is_told(share, told, caplog):
    tell_of_warmup(share, "SOLVER.WARMUP_ITERS and SOLVER.MAX_ITER")
    assert ("never reached: see SOLVER.WARMUP_ITERS" in caplog.text) == told
