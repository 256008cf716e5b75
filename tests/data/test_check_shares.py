"""Two processes of a training check a dataset together, and find what one finds, in the same order."""

import json
import multiprocessing
import shutil
from multiprocessing import forkserver

import pytest

pytest.importorskip("detectron2")

import check_process
from coco_examples import base

pytestmark = pytest.mark.detectron2

NUM_IMAGES = 7


def many(tmp_path, **changes):
    """The base's image and its objects, several times; ``changes``: functions of the contents of an annotation file."""
    one = base()
    content = {"images": [], "annotations": [], "categories": one["categories"]}
    for k in range(NUM_IMAGES):
        content["images"].append({**one["images"][0], "id": k + 1, "file_name": f"{k + 1}.png"})
        for annotation in one["annotations"]:
            own = {"id": len(content["annotations"]) + 1, "image_id": k + 1}
            content["annotations"].append({**annotation, **own})
    for name, change in changes.items():
        changed = json.loads(json.dumps(content))
        change(changed)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed))
        yield name, str(path)


def odd(content):
    """Mended are areas; wrong are the sizes of the second and the last image, the sixth's name, and masks."""
    for annotation in content["annotations"][::5]:
        annotation["area"] = -1
    for k in (1, 6):
        content["images"][k]["height"] = 21
    content["images"][5]["file_name"] = "gone.png"
    for annotation in content["annotations"][3::2]:
        del annotation["segmentation"]


def without_the_last(content):
    content["images"].pop()
    del content["annotations"][-2:]


@pytest.fixture
def checked(write, tmp_path):
    """Checks cases by two processes and by one: {rank, None of one: what each has found in the cases}."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mrcnn_ext.engine"])
    forkserver._forkserver._stop()  # another test's has imported something else

    def check(cases):
        queue = context.Queue()
        processes = [
            context.Process(
                target=check_process.check_together, args=(rank, tmp_path / "store", queue, cases)
            )
            for rank in (0, 1, None)
        ]
        for process in processes:
            process.start()
        found = {}
        for _ in range(len(processes) * len(cases)):
            rank, number, answer = queue.get(timeout=60)
            found.setdefault(rank, {})[number] = answer
        for process in processes:
            process.join(20)
            assert process.exitcode == 0
        return {rank: [answers[k] for k in range(len(cases))] for rank, answers in found.items()}

    yield check
    forkserver._forkserver._stop()


def test_two_processes_find_what_one_finds(checked, write, tmp_path):
    write()
    for k in range(2, NUM_IMAGES + 1):
        shutil.copy(tmp_path / "1.png", tmp_path / f"{k}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    files = dict(many(tmp_path, fine=lambda content: None, odd=odd, fewer=without_the_last))
    gone = str(tmp_path / "gone.json")
    folder = str(tmp_path)
    cases = [
        ("odd", [files["odd"]] * 2, folder),
        ("damaged", [files["fine"]] * 2, folder),
        ("different", [files["fine"], files["fewer"]], folder),
        ("missing", [files["fine"], gone], folder),
    ]
    found = checked(cases)
    (told, looked, config), (damaged, _, _), *_ = found[None]
    assert len(told) == 3 and "an area of -1" in told[0] and told[1] == "ValueError" and told[2] == config
    assert config.count("\n") == 3 and "has no segmentation" in config and "gone.png" in config
    assert "(and 1 more like it)" in config
    assert "4.png" in damaged[-1] and len(looked) == NUM_IMAGES
    for rank in (0, 1):
        for case in (0, 1):
            told, here, config = found[rank][case]
            assert (told, config) == (found[None][case][0], found[None][case][2])
            assert len(here) == (3, 4)[rank]
        told, _, config = found[rank][2]
        assert told[0] == "ValueError" and told[1] == config
        assert "'different' has 7 images in process 0 and 6 in process 1: all machines must have" in config
        told, _, config = found[rank][3]
        assert told[0] == "FileNotFoundError" and f"'missing' is not on disk: {gone} is missing" in config
    assert sorted([*found[0][0][1], *found[1][0][1]]) == looked
