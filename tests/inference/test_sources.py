"""Where images come from: lists, patterns, standard input, the web, cameras."""

import functools
import http.server
import io
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import downloads, pipeline
from mrcnn_ext.inference.sources import ImageFiles, Video, Webcam, open_source

pytestmark = pytest.mark.detectron2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a.png, more/b.jpg and clip.avi in the working directory."""
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("a.png", "more/b.jpg")):
        Image.new("RGB", (24, 16), (40 * number, 120, 10)).save(tmp_path / name)
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 16))
    for shade in range(3):
        writer.write(np.full((16, 32, 3), 60 * shade, np.uint8))
    writer.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(source):
    return [source.name(k) for k in range(len(source))]


def read(source):
    return [reader() for _, _, reader in source.readers("RGB", set())]


def test_patterns(folder):
    assert names(open_source("**/*.*g")) == ["a.png", "more/b.jpg"]
    assert names(open_source("more/*")) == ["more/b.jpg"]
    assert isinstance(open_source("*.avi"), Video)
    (folder / "odd[1].png").write_bytes((folder / "a.png").read_bytes())
    assert names(open_source("odd[1].png")) == ["odd[1].png"], "a file of that name comes first"
    with pytest.raises(UserError, match=r"\*\.gif: no image matches this pattern; looked for .bmp"):
        open_source("*.gif")


def test_lists_of_files(folder):
    list_file = folder / "more" / "list.txt"
    list_file.write_text("# mine\nb.jpg\n\na.png \nhttps://example.com/c.jpg\n", encoding="utf-8-sig")
    source = open_source("more/list.txt")
    assert names(source) == ["more/b.jpg", "a.png", "https://example.com/c.jpg"]
    for text, message in (
        ("a.png\nnone.png\n", r"list.txt, line 2: there is no file 'more/none.png' or 'none.png'"),
        ("clip.avi\n", r"line 1: 'clip.avi' is no image \(.bmp"),
        ("# nothing\n", "it names no image files; one a line is expected"),
    ):
        list_file.write_text(text)
        with pytest.raises(UserError, match=message):
            open_source("more/list.txt")
    list_file.write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="list of image files must be text in UTF-8"):
        open_source("more/list.txt")


def test_several_sources(folder):
    assert names(open_source(["more", "a.png", "*.png"])) == ["more/b.jpg", "a.png", "a.png"]
    with pytest.raises(UserError, match="clip.avi: it is no image; a video is predicted alone"):
        open_source(["a.png", "clip.avi"])
    with pytest.raises(UserError, match="'none' is no file or folder; several sources may be image files"):
        open_source(["a.png", "none"])


@pytest.mark.parametrize("content", ["a.png", "more/b.jpg"])
def test_an_image_on_standard_input(folder, monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((folder / content).read_bytes())))
    source = open_source("-")
    expected = np.asarray(Image.open(folder / content))
    assert len(source) == 1 and (read(source)[0] == expected).all()
    assert source.short_names == [(1, "stdin.png" if content == "a.png" else "stdin.jpeg")]
    path = Path(next(iter(source.readers("RGB", set())))[1]["file_name"])
    assert path.exists()
    del source
    assert not path.exists(), "the copy outlives the source"


def test_names_and_nonsense_on_standard_input(folder, monkeypatch):
    for content, expected in (
        (b"a.png\nmore/b.jpg\n", ["a.png", "more/b.jpg"]),
        (b"", "standard input is empty"),
        (b"\x00\xff\xfe nothing", "neither an image nor a list of image files"),
        (b"none.png\n", "standard input, line 1: there is no file 'none.png'"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        if isinstance(expected, list):
            assert names(open_source("-")) == expected
            continue
        with pytest.raises(UserError, match=expected):
            open_source("-")


@pytest.fixture
def web(folder):
    """The folder's address, and what was asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/away.png":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/a.png")
                self.end_headers()
                return
            if self.path == "/short.png":
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"few")
                return
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_and_videos_of_the_web(folder, web):
    source = open_source(f"{web}/a.png?size=1")
    assert names(source) == [f"{web}/a.png?size=1"]
    assert (read(source)[0] == np.asarray(Image.open(folder / "a.png"))).all()
    (folder / "picture").write_bytes(
        (folder / "a.png").read_bytes()
    )  # an address that does not say what it is
    source = open_source(f"{web}/picture")
    assert source.short_names == [(1, f"{web}/picture")] and read(source)[0].shape == (16, 24, 3)
    video = open_source(f"{web}/clip.avi")
    assert isinstance(video, Video) and len(video) == 3 and video.fps == 5
    assert video.short_name({}) == f"{web}/clip.avi"


def test_what_the_web_does_not_give(folder, web, monkeypatch):
    (folder / "page").write_text("<html>")
    for address, message in (
        ("page", "page: it is text, neither an image nor a video"),
        ("none", "none: the server answers 404"),
        ("away", ""),
    ):
        if message:
            with pytest.raises(UserError, match=message):
                open_source(f"{web}/{address}")
    for name, message in (
        ("away.png", "it redirects to ftp://127.0.0.1/a.png, which is no http or https address"),
        ("short.png", "short.png: it cannot be downloaded|the connection ended after 3 of 5000 bytes"),
    ):
        with pytest.raises(UserError, match=message):
            read(open_source(f"{web}/{name}"))
    (folder / "large.png").write_bytes(bytes(2000))
    monkeypatch.setattr(downloads, "MAX_IMAGE", 1000)
    with pytest.raises(UserError, match="it has 2000 bytes, and at most 1000 are downloaded"):
        read(open_source(f"{web}/large.png"))
    with pytest.raises(UserError, match="it cannot be downloaded"):
        read(open_source("http://127.0.0.1:9/a.png"))


class FakeCamera:
    """OpenCV's capture of a camera that sees four frames."""

    def __init__(self, number):
        self.number, self.place = number, 0

    def isOpened(self):
        return self.number == 0

    def get(self, what):
        return 7.0

    def read(self):
        self.place += 1
        return self.place <= 4, np.full((16, 24, 3), 40 * self.place, np.uint8)


def test_cameras(folder, monkeypatch):
    monkeypatch.setattr(
        "mrcnn_ext.inference.videos.cv2", SimpleNamespace(VideoCapture=FakeCamera, CAP_PROP_FPS=5)
    )
    for name in ("webcam:0", "0", 0):
        source = open_source(name)
        assert isinstance(source, Webcam) and source.fps == 7 and source.live
    frames = [reader() for _, (_, _, reader) in zip(range(6), source.readers("RGB", set()), strict=False)]
    assert [frame is None for frame in frames] == [False] * 4 + [True] * 2
    source = open_source(0)
    source.stop()
    assert next(source.readers("RGB", set()))[2]() is None
    assert open_source("0").identity != source.identity, "a recording cannot be continued"
    with pytest.raises(UserError, match="webcam:3: OpenCV finds no such camera"):
        open_source("webcam:3")
    os.mkdir("1")  # a folder of this name comes first
    Image.new("RGB", (4, 4)).save("1/x.png")
    assert isinstance(open_source("1"), ImageFiles)


def test_videos_among_images_are_told(folder, caplog):
    (folder / ".hidden.mp4").write_bytes(b"")
    for source in (str(folder), str(folder / "**" / "*")):
        caplog.clear()
        open_source(source)
        assert "1 video(s) left out (clip.avi): a video is predicted alone" in caplog.text


def test_a_data_file_stands_for_its_val(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "x.png")
    image = {"id": 77, "file_name": "x.png", "height": 20, "width": 30}
    content = {"images": [image], "annotations": [], "categories": [{"id": 4, "name": "disc"}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    file = tmp_path / "dataset_of_file.yaml"
    file.write_text("val: [val.json, .]")
    try:
        source = open_source(f"data={file}")
        assert source.identity == [[77, "x.png"]]
        assert source.metadata.thing_classes == ["disc"]
    finally:
        DatasetCatalog.remove("dataset_of_file_val")
        MetadataCatalog.remove("dataset_of_file_val")
    file.write_text("train: [val.json, .]")
    with pytest.raises(UserError, match="has no val or test: one is predicted for at a time"):
        open_source(f"data={file}")
    file.write_text("val: [[val.json, .], [val.json, .]]")
    with pytest.raises(UserError, match="has several to evaluate on .dataset_of_file_val_1, "):
        open_source(f"data={file}")
    with pytest.raises(UserError, match="there is no such file"):
        open_source("data=none.yaml")


def test_what_is_wrong_with_standard_input_names_it(folder, monkeypatch):
    content = (folder / "a.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content[: len(content) // 2])))
    source = open_source("-")
    ((index, record, reader),) = source.readers("RGB", set())
    with pytest.raises(UserError, match=r"^stdin.png: the image cannot be read: (?!.*/mrcnn_ext-)"):
        pipeline._read(index, record, reader, None, False, False)
