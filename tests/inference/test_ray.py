"""predict on a local Ray of two actors: the answers of one process, whatever dies on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("detectron2")
import cv2
from click.testing import CliRunner
from detectron2.data import DatasetCatalog

from mrcnn_ext.cli.predict import command
from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import RayOptions, load_predictor, predict
from mrcnn_ext.inference.ray_data import map_on_actors

pytestmark = pytest.mark.detectron2
NUM_IMAGES = 60
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="could not import 'ray': pip install 'ray[data]'"
)


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    pictures = [cv2.imread(record["file_name"]) for record in DatasetCatalog.get(scenes)]
    for i in range(NUM_IMAGES):
        picture = pictures[i % len(pictures)]
        cv2.imwrite(str(root / f"{i:02d}.png"), picture[: picture.shape[0] - i // len(pictures)])
    return root


@pytest.fixture
def config(make_cfg, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(make_cfg("DATASETS.TEST", "()").dump())
    return file


def start(folder, config, output, *options):
    """The command, in a process group of its own."""
    common = ["--config-file", str(config), "--device", "cpu", "--batch-size", "1"]
    words = ["predict", str(folder), *common, "--output", str(output), *options]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mrcnn_ext_command", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def wait(process, output):
    assert process.wait(150) == 0, Path(f"{output}.log").read_text()[-3000:]
    return Path(f"{output}.log").read_text()


def lines_of(output):
    part = Path(f"{output}.part")
    return part.read_text().count("\n") if part.exists() else 0


def wait_for_lines(output, process, least):
    deadline = time.monotonic() + 120
    while lines_of(output) < least:
        assert process.poll() is None and time.monotonic() < deadline, Path(f"{output}.log").read_text()[
            -3000:
        ]
        time.sleep(0.01)


def actors_of(process):
    """Ids of the processes that Ray has started for a driver."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_text()
        except OSError:
            continue
        if name.startswith("ray::") and "_Actor" in name and _descends(int(path.name), process.pid):
            found.append(int(path.name))
    return found


def _descends(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
        except OSError:
            return False
    return False


@needs_ray
@pytest.mark.slow
def test_killed_actors_and_killed_drivers_leave_the_answers_of_one_process(folder, config, tmp_path):
    expected = tmp_path / "expected.json"
    wait(start(folder, config, expected), expected)
    images = json.loads((tmp_path / "expected.images.json").read_text())
    ray = ("--ray", "--actors", "2", "--cpus-per-actor", "1")

    output = tmp_path / "found.json"
    driver = start(folder, config, output, *ray)
    wait_for_lines(output, driver, 9)
    driver.kill()
    driver.wait()
    done = lines_of(output) - 1
    assert 0 < done < NUM_IMAGES // 2

    driver = start(folder, config, output, *ray, "--pictures", str(tmp_path / "drawn"))
    wait_for_lines(output, driver, done + 5)
    actors = actors_of(driver)
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)  # with what it was doing
    assert lines_of(output) < NUM_IMAGES - 8, "too late to lose anything"
    log = wait(driver, output)
    assert f"{NUM_IMAGES} images, {done} of them by an earlier run" in log
    assert json.loads(output.read_text()) == json.loads(expected.read_text())
    found = json.loads((tmp_path / "found.images.json").read_text())
    assert found["images"] == images["images"] and found["stamps"] == images["stamps"]
    assert len(list((tmp_path / "drawn").iterdir())) == NUM_IMAGES


@needs_ray
@pytest.mark.slow
def test_errors_and_parquet_on_ray(make_cfg, folder, tmp_path):
    """In one Ray of this process."""
    import ray

    predictor = load_predictor(make_cfg())
    files = [str(folder / "00.png"), str(folder / "01.png"), str(tmp_path / "damaged.png")]
    Path(files[-1]).write_bytes(b"nothing")
    ray.init(num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        options = {"progress": False, "ray": RayOptions(actors=1, cpus=1)}
        with pytest.raises(UserError, match="damaged.png: the image cannot be read: .*--skip-unreadable"):
            predict(predictor, files, tmp_path / "a.parquet", **options)
        done = predict(predictor, files, tmp_path / "a.parquet", skip_unreadable=True, **options)
        assert done["images"] == 2 and done["results"] > 0
        assert [image["file_name"] for image in done["skipped"]] == [files[-1]]
        with pytest.raises(
            UserError, match="8 actors of 1 CPUs and 0 GPUs each are asked for, and Ray has 2 CPUs"
        ):
            list(map_on_actors(print, [1], RayOptions(actors=8, cpus=1)))
        with pytest.raises(UserError, match="cannot be sent to Ray's workers: TypeError"):
            list(map_on_actors(partial(print, threading.Lock()), [1], RayOptions()))
        with pytest.raises(UserError, match="Ray's workers need the file of a calibration, not the dataset"):
            wrong = load_predictor(make_cfg("MODEL.ACCELERATE_INT8", "inference_val"))
            predict(wrong, files, tmp_path / "b.json", **options)
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_bucket_on_ray(s3, folder, config, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    s3.create_bucket(Bucket="for-ray")
    for file in sorted(folder.iterdir())[:12]:
        (few / file.name).write_bytes(file.read_bytes())
        s3.upload_file(str(file), "for-ray", f"photos/{file.name}")
    expected, output = tmp_path / "expected.json", tmp_path / "found.json"
    wait(start(few, config, expected), expected)
    wait(
        start("s3://for-ray/photos", config, output, "--ray", "--actors", "2", "--cpus-per-actor", "1"),
        output,
    )
    found = json.loads(output.read_text())
    assert found == json.loads(expected.read_text()) and len({record["image_id"] for record in found}) == 12
    images = json.loads((tmp_path / "found.images.json").read_text())["images"]
    assert images[0]["file_name"].startswith("s3://for-ray/photos/") or images[0]["file_name"] == "00.png"


def test_without_ray(monkeypatch, make_cfg, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is needed \(pip install 'ray\[data\]'\)"):
        predict(load_predictor(make_cfg()), folder, tmp_path / "a.json", ray=RayOptions())
    assert not list(tmp_path.glob("a.json*"))
    with pytest.raises(ValueError, match="actors of Ray must not be negative, got -1"):
        RayOptions(actors=-1)
    result = CliRunner().invoke(command, ["photos", "--output", "a.json", "--actors", "2"])
    assert "--actors: only with --ray" in str(result.exception)
