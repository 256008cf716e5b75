import pytest
import torch

pytest.importorskip("detectron2")
from mrcnn_ext.benchmark import zoo
from mrcnn_ext.benchmark.zoo import PAPER, markdown, measure_zoo, zoo_configs

pytestmark = pytest.mark.detectron2


def test_every_row_of_the_paper_has_a_config():
    assert set(PAPER) <= set(zoo_configs())


def test_rows_are_kept_and_laid_out(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(zoo, "_SIZE", (64, 96))
    monkeypatch.setattr(zoo, "cost", lambda name, real=zoo.cost: calls.append(name) or real(name))
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN"
    threads = torch.get_num_threads()
    try:
        for _ in range(2):
            (row,) = measure_zoo([name], tmp_path / "rows.csv", 0.1, 1)
    finally:
        torch.set_num_threads(threads)
    assert calls == [name]
    assert float(row["parameters"]) == pytest.approx(44.3, abs=0.1)
    assert float(row["gmacs"]) > 1
    page = markdown([row], "the command")
    assert "`the command`" in page
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "44.3" and cells[5].endswith("x") and cells[-1] == "mask 33.6"
