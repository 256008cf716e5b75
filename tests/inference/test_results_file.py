"""The file of results: whole images only, none lost, none twice, and one valid array at the end."""

import contextlib
import io
import json

import pytest

pytest.importorskip("detectron2")
from pycocotools.coco import COCO

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference.results import ResultsFile

pytestmark = pytest.mark.detectron2

IDENTITY = {"weights": "abc", "model": "def", "min_score": 0.0}
CATEGORIES = [{"id": 3, "name": "car"}]


def write(results, index):
    image = {"id": 10 + index, "file_name": f"ü{index}.png", "height": 20, "width": 30}
    boxes = [[0.1 * index, 0.2, 3.5, 4.25]] * index  # the first image is without
    records = [
        {"image_id": image["id"], "category_id": 3, "bbox": box, "score": 1 / (3 + i)}
        for i, box in enumerate(boxes)
    ]
    results.write(index, image, records, stamp=index + 5)


def run(path, indices, **kwargs):
    results = ResultsFile(path, IDENTITY, **kwargs)
    for index in indices:
        if index not in results.done:
            write(results, index)
    return results.finish(CATEGORIES)


def test_results_are_in_the_order_of_the_source_and_pycocotools_reads_them(tmp_path):
    path = tmp_path / "new" / "results.json"
    assert run(path, [2, 0, 3, 1]) == {"images": 4, "results": 6, "skipped": []}
    assert [record["image_id"] for record in json.loads(path.read_text())] == [11, 12, 12, 13, 13, 13]
    assert sorted(file.name for file in path.parent.iterdir()) == ["results.images.json", "results.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path.parent / "results.images.json")
        found = truth.loadRes(str(path))
    assert [image["file_name"] for image in truth.imgs.values()] == ["ü0.png", "ü1.png", "ü2.png", "ü3.png"]
    assert len(found.getAnnIds(imgIds=[13])) == 3 and found.cats == {3: CATEGORIES[0]}


def test_nothing_found_at_all_is_an_empty_array(tmp_path):
    assert run(tmp_path / "results.json", [0])["images"] == 1
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_a_run_cut_off_at_any_byte_continues_to_the_same_result(tmp_path):
    whole, path = tmp_path / "whole.json", tmp_path / "results.json"
    run(whole, range(4))
    results = ResultsFile(path, IDENTITY)
    ends = [results.part.stat().st_size]
    for index in range(4):
        write(results, index)
        ends.append(results.part.stat().st_size)
    results.close()
    content = results.part.read_bytes()
    for length in range(len(content) + 1):
        results.part.write_bytes(content[:length])
        again = ResultsFile(path, IDENTITY)
        assert again.done.keys() == set(range(sum(end <= length for end in ends[1:])))
        if all(abs(length - end) > 1 for end in ends):  # those that are cut off within a line are alike
            again.close()
            continue
        for index in set(range(4)) - again.done.keys():
            write(again, index)
        again.finish(CATEGORIES)
        assert path.read_bytes() == whole.read_bytes()
        path.unlink()


def test_lines_that_a_power_cut_left_empty_are_done_again(tmp_path):
    results = ResultsFile(tmp_path / "results.json", IDENTITY)
    write(results, 0)
    write(results, 1)
    results.close()
    content = results.part.read_bytes()
    results.part.write_bytes(content[:-20] + bytes(19) + b"\n" + content[-20:])
    assert ResultsFile(tmp_path / "results.json", IDENTITY).done.keys() == {0}


def test_killed_between_the_results_and_the_end(tmp_path):
    path = tmp_path / "results.json"
    results = ResultsFile(path, IDENTITY)
    for index in range(3):
        write(results, index)
    part = results.part.read_bytes()
    results.finish(CATEGORIES)
    expected = path.read_bytes()
    results.part.write_bytes(part)
    assert run(path, range(3))["images"] == 3
    assert path.read_bytes() == expected and not results.part.exists()


def test_complete_results_are_known_and_left(tmp_path):
    path = tmp_path / "results.json"
    summary = run(path, range(3))
    results = ResultsFile(path, IDENTITY)
    assert results.complete and results.summary() == summary
    assert results.done == {index: index + 5 for index in range(3)}
    content = path.read_bytes()
    anew = ResultsFile(path, IDENTITY, overwrite=True)
    assert not anew.done and path.read_bytes() == content  # until there are new ones
    write(anew, 1)
    anew.close()
    assert run(path, range(2))["images"] == 2 and path.read_bytes() != content


@pytest.mark.parametrize("complete", [True, False])
def test_other_runs_are_named_and_refused(tmp_path, complete):
    path = tmp_path / "results.json"
    results = ResultsFile(path, IDENTITY)
    write(results, 0)
    results.finish(CATEGORIES) if complete else results.close()
    where = "results.json" if complete else r"results.json.part"
    for change, names in (
        ({"weights": "xyz"}, "other weights: give"),
        ({"limit": 5}, r"other limit \(None, now 5\): give"),
        ({"min_score": 0.5, "model": "m"}, r"other model and min_score \(0.0, now 0.5\): give"),
    ):
        with pytest.raises(UserError, match=rf"{where} is of a run with {names} what it was made with"):
            ResultsFile(path, {**IDENTITY, **change})
    fewer = {key: value for key, value in IDENTITY.items() if key != "min_score"}
    with pytest.raises(UserError, match=r"is of a run with other min_score \(0.0, now None\): give"):
        ResultsFile(path, fewer)


def test_what_a_run_made_is_known_to_the_next(tmp_path):
    path = tmp_path / "results.json"
    results = ResultsFile(path, IDENTITY)
    write(results, 0)
    results.own("a.mp4")
    results.close()
    results = ResultsFile(path, IDENTITY)
    assert results.owned == {"a.mp4"} and set(results.done) == {0}
    results.finish(CATEGORIES)
    ResultsFile(path, IDENTITY).own("b.mp4")
    assert ResultsFile(path, IDENTITY).owned == {"a.mp4", "b.mp4"}
    ResultsFile(path, IDENTITY).note({"video": "x"})
    assert ResultsFile(path, IDENTITY).owned == {"a.mp4", "b.mp4"}


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="is not known to be of this program"):
        ResultsFile(path, IDENTITY)
    assert path.read_text() == "[]"
    with pytest.raises(UserError, match="must end with .json"):
        ResultsFile(tmp_path / "results", IDENTITY)


def test_two_processes_do_not_write_one_file(tmp_path):
    first = ResultsFile(tmp_path / "results.json", IDENTITY)
    with pytest.raises(UserError, match="another process is writing it"):
        ResultsFile(tmp_path / "results.json", IDENTITY, overwrite=True)
    write(first, 0)
    assert first.finish(CATEGORIES)["images"] == 1


def test_skipped_images_are_listed_and_tried_again(tmp_path):
    path = tmp_path / "results.json"
    for _ in range(2):
        results = ResultsFile(path, IDENTITY)
        write(results, 0)
        results.write(1, {"id": 11, "file_name": "1.png"}, [], error="truncated")
        results.close()
        assert ResultsFile(path, IDENTITY).done.keys() == {0}
    results = ResultsFile(path, IDENTITY)
    results.write(1, {"id": 11, "file_name": "1.png"}, [], error="empty")
    skipped = [{"file_name": "1.png", "error": "empty"}]
    assert results.finish(CATEGORIES) == {"images": 1, "results": 0, "skipped": skipped}
    assert json.loads((tmp_path / "results.images.json").read_text())["skipped"] == skipped


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    results = ResultsFile(tmp_path / "results.json", IDENTITY)
    with pytest.raises(ValueError, match="JSON"):
        results.write(0, {"id": 1}, [{"score": float("nan")}])
    assert results.done == {}
