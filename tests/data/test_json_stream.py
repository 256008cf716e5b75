"""The pieces of a file are those that json reads, wherever the chunks that are read end."""

import json

import pytest

from mrcnn_ext.data import json_stream
from mrcnn_ext.data.json_stream import stream_sections

CONTENT = {
    "info": {"text": 'a "quoted" [bracket], a \\ and ü', "number": -1.5e-3, "nothing": None},
    "version": 12345,
    "images": [{"id": k, "name": "x" * k} for k in range(30)],
    "annotations": [[1, 2, [3.25, 4]], {"a": [True, False, None]}, "text", 17, -2.5, {}],
    "empty": [],
    "categories": [],
    "last": 1234567,
}


def read(path):
    found = {}
    for key, value, is_element in stream_sections(path, arrays=("images", "annotations", "categories")):
        if is_element:
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_every_piece_is_jsons(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "file.json"
    for ascii_only in (True, False):
        path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert read(path) == CONTENT
    path.write_text(json.dumps(CONTENT, indent=indent), encoding="utf-8-sig")
    assert read(path) == CONTENT


@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path, text = tmp_path / "file.json", json.dumps(CONTENT)
    for length in range(1, len(text), 13):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match="is it cut off|Expecting"):
            read(path)


def test_what_is_no_object(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("{}")
    assert read(path) == {}
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"it must be an object, \{...\}, and begins with '\['"):
        read(path)
    path.write_text('{"a": 1, "b": nonsense}')
    with pytest.raises(ValueError, match="JSONDecodeError: character 14: Expecting value"):
        read(path)
