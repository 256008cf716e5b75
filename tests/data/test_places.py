"""Data are found after a move."""

import os

import pytest

from mrcnn_ext.data.places import absolute, find_again


@pytest.fixture
def project(tmp_path, monkeypatch):
    """proj/skis (data) and proj/output, seen from proj."""
    (tmp_path / "proj" / "skis" / "images").mkdir(parents=True)
    (tmp_path / "proj" / "output").mkdir()
    (tmp_path / "proj" / "skis" / "val.json").write_text("{}")
    (tmp_path / "proj" / "skis" / "about.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path / "proj")
    return tmp_path


ENTRY = ["skiers_val", "skis/val.json", "skis/images", "skis/about.yaml"]


def test_from_another_working_directory(project, monkeypatch):
    entry = absolute(ENTRY)
    assert absolute([*ENTRY[:3], {"sigmas": "uniform"}])[3] == {"sigmas": "uniform"}
    monkeypatch.chdir(project)
    assert find_again(entry, "proj/output") == entry and os.path.isfile(entry[3])
    # A relative path is looked for above the folder that names it.
    assert find_again(ENTRY, "proj/output") == entry


def test_after_a_move_of_data_and_folder_together(project, monkeypatch):
    entry = absolute(ENTRY)
    monkeypatch.chdir(project)
    (project / "proj").rename(project / "moved")
    assert find_again(entry, project / "moved" / "output") == [
        "skiers_val",
        *(str(project / "moved" / place) for place in ENTRY[1:]),
    ]
    # Only the data, or a folder that has a file of the same name alone: not found, and as it was.
    assert find_again(entry, project / "elsewhere") == entry
    (project / "other").mkdir()
    (project / "other" / "val.json").write_text("{}")
    assert find_again(entry, project / "other") == entry


def test_images_that_stayed(project):
    images = project / "pictures"
    images.mkdir()
    entry = absolute(["a", "skis/val.json", str(images)])
    (project / "proj").rename(project / "moved")
    assert find_again(entry, project / "moved" / "output") == [
        "a",
        str(project / "moved" / "skis" / "val.json"),
        str(images),
    ]
