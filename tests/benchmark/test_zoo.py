import re

import pytest
import torch

pytest.importorskip("detectron2")
from mrcnn_ext.benchmark import zoo
from mrcnn_ext.benchmark.model import Subject
from mrcnn_ext.benchmark.tables import write_csv
from mrcnn_ext.benchmark.zoo import PAPER, markdown, measure_zoo, zoo_configs
from mrcnn_ext.cli.jobs import engine_job
from mrcnn_ext.model_zoo import find_config, get_config, zoo_name

pytestmark = pytest.mark.detectron2

NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN"
SMALL = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
]


def cells(page, name):
    line = next(line for line in page.splitlines() if line.startswith(f"| {name.partition('/')[2]} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_that_cannot_be_written_leave_those_before(tmp_path):
    class Unwritable:
        def __str__(self):
            raise OSError("no more")

    write_csv([{"config": "a"}], tmp_path / "rows.csv")
    with pytest.raises(OSError, match="no more"):
        write_csv([{"config": "b"}, {"config": Unwritable()}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "config\na\n"


def test_every_row_of_the_paper_has_a_config():
    assert set(PAPER) <= set(zoo_configs())


def test_each_command_trains_on_the_data_of_its_config():
    by_command = {}
    for line in markdown([], "").splitlines():
        if found := re.search(r"`mrcnn-ext train model=(\S+) data=(\w+)`", line):
            by_command[found[1]] = found[2]
    assert len(by_command) == len(zoo_configs())
    for model, data in by_command.items():
        file = find_config(model)
        _, values, _ = engine_job(file, data=data)
        opts = dict(zip(values["opts"][::2], values["opts"][1::2], strict=True))
        own = get_config(zoo_name(file)).DATASETS
        assert (opts["DATASETS.TRAIN"], opts["DATASETS.TEST"]) == (own.TRAIN, own.TEST), model
        _, values, _ = engine_job(file.replace(".yaml", ".py"), data=data)
        expected = [
            f"dataloader.train.dataset.names=[{own.TRAIN[0]!r}]",
            f"dataloader.test.dataset.names={own.TEST[0]!r}",
        ]
        assert values["opts"] == expected, model


def test_rows_are_kept_and_laid_out(tmp_path, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(zoo, "_SIZE", (64, 96))
    monkeypatch.setattr(
        zoo, "Subject", lambda config, opts, **kwargs: Subject(config, opts=[*opts, *SMALL], **kwargs)
    )
    monkeypatch.setattr(zoo, "cost", lambda name, real=zoo.cost: calls.append(name) or real(name))
    threads = torch.get_num_threads()
    try:
        for times in (False, True, True):
            rows, left = measure_zoo([NAME], tmp_path / "rows.csv", 0.1, 1, times, say=said.append)
    finally:
        torch.set_num_threads(threads)
    assert calls == [NAME] and left == [] and len(said) == 2
    (row,) = rows
    expected = sum(p.numel() for p in Subject(f"{NAME}.yaml", opts=SMALL).stock.parameters()) / 1e6
    assert float(row["parameters"]) == pytest.approx(expected)
    assert float(row["gmacs"]) > 0.1
    page = markdown(rows, "the command")
    assert "`the command`" in page and "1 threads of an " in page
    found = cells(page, NAME)
    assert found[1] == f"{expected:.1f}" and found[4].endswith("x)") and " / " in found[5]
    assert "GMACs: billions of multiply-adds" in page and page.count("| GMACs |") == 4
    assert found[2] == f"{float(row['gmacs']):.0f}" and found[6:8] == ["mask 33.6", ""]
    assert found[8] == "`mrcnn-ext train model=mask_rcnn_R_50_FPN data=coco`"
    # All others are there, not measured.
    assert cells(page, "Cityscapes/mask_rcnn_R_50_FPN_from_COCO")[1:6] == [""] * 5
    assert page.count("`mrcnn-ext train") == len(zoo_configs())


def test_a_slice_ends_and_the_next_goes_on(tmp_path, monkeypatch):
    names, said, clock = zoo_configs()[:4], [], iter(range(0, 1000, 10))
    failing = names[1]

    def measure(subject, *_):
        if subject == failing:
            raise AssertionError("there is nothing to compare")
        return {"stock_ms": 4.0, "ours_ms": 2.0, "ratio": 2.0, "stock_mb": 1, "ours_mb": 1, "bf16": True}

    monkeypatch.setattr(zoo, "cost", lambda name: {"config": name, "parameters": 1.0, "gmacs": 2.0})
    monkeypatch.setattr(zoo, "_subject", lambda name: name)
    monkeypatch.setattr(zoo, "measure", measure)
    monkeypatch.setattr(zoo.time, "monotonic", lambda: next(clock))

    def go_on(processor="a processor", **options):
        monkeypatch.setattr(zoo, "_processor", lambda: processor)
        return measure_zoo(names, tmp_path / "rows.csv", 0.1, 2, say=said.append, **options)

    rows, left = go_on(seconds=25)  # a look at the clock takes 10
    assert [row["config"] for row in rows] == names[:2] and left == names[1:]
    assert said[1] == f"{failing}: not measured: there is nothing to compare"
    failing = ""
    rows, left = go_on()
    assert left == [] and [row["config"] for row in rows] == names
    said.clear()
    assert go_on()[1] == [] and said == []
    go_on("another")
    assert len(said) == 4 and "2 GMACs, 4 ms -> 2 ms, 2.0x" in said[0]  # each anew
    go_on("a third", times=False)
    assert len(said) == 4
