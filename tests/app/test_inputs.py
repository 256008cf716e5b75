"""What is taken from uploads, and the words with which the rest is refused."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from mrcnn_ext.app.inputs import Limits, Picture, _capture, read_upload, sample_clip, sample_scene
from mrcnn_ext.engine.errors import UserError

pytestmark = pytest.mark.detectron2


def encoded(pixels, kind="PNG", **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def video(path, frames, rate=10.0, code="MJPG"):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, (width, height))
    for frame in frames:
        writer.write(frame[:, :, ::-1])
    writer.release()
    return path.read_bytes()


@pytest.fixture
def flat_frames():
    return [np.full((32, 48, 3), 10 * i, np.uint8) for i in range(20)]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_images_are_read(noise, kind):
    [picture] = read_upload("a photo", encoded(noise, kind))
    assert np.array_equal(picture.read(), noise)
    assert picture.title == "a photo" and picture.frame is None


def test_exif_data_turn_an_image(noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    [picture] = read_upload("turned.png", encoded(noise, exif=exif))
    assert np.array_equal(picture.read(), np.rot90(noise, -1))


def test_equal_pixels_have_equal_keys(noise):
    assert Picture("a", encoded(noise)).key == Picture("b", encoded(noise)).key
    assert Picture("a", encoded(noise)).key != Picture("a", encoded(noise + 1)).key


def test_a_video_gives_frames_evenly(tmp_path, flat_frames):
    data = video(tmp_path / "v.avi", flat_frames)
    pictures = read_upload("v.avi", data, Limits(frames=7))
    assert [picture.frame for picture in pictures] == [0, 3, 6, 9, 12, 15, 18]
    assert abs(pictures[2].read().astype(int) - 60).max() <= 4  # JPEG's loss
    assert pictures[2].title == "v.avi, frame 6"
    assert len(read_upload("v.avi", data)) == 20


def test_other_containers_are_read(tmp_path, flat_frames):
    data = video(tmp_path / "v.mp4", flat_frames, code="mp4v")
    assert len(read_upload("film", data)) == 20


def refused(name, data, limits=None):
    with pytest.raises(UserError) as error:
        read_upload(name, data, limits)
    assert str(error.value).startswith(f"{name}: ")
    return str(error.value)


def test_what_is_too_large_is_refused_in_words(noise, tmp_path, flat_frames):
    data = encoded(noise)
    assert "more than the 0.001" in refused("a.png", data, Limits(image_bytes=1049))
    assert "64 x 48 pixels, more than the 0.003 megapixels" in refused(
        "a.png", data, Limits(megapixels=0.003)
    )
    film = video(tmp_path / "v.avi", flat_frames)
    assert "the video has 0.0 MB, more than" in refused("v.avi", film, Limits(video_bytes=100))
    assert "lasts 2 seconds, more than the 1.5 seconds" in refused("v.avi", film, Limits(video_seconds=1.5))
    assert "48 x 32 pixels" in refused("v.avi", film, Limits(megapixels=0.001))
    assert "took more than 0 seconds" in refused("v.avi", film, Limits(decoding_seconds=0))


def test_an_image_of_a_billion_pixels_is_refused_undecoded():
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    for side in (6_000, 50_000):  # Pillow itself refuses the second
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        assert "25 megapixels" in refused("bomb.png", data)


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text\n" * 100,
        b"#EXTM3U\n#EXTINF:1,\nhttp://example.com/a.ts\n",  # FFmpeg would follow it
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # Pillow would call Ghostscript
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + bytes(100),  # a pickle
        bytes(1000),
    ],
)
def test_what_is_neither_image_nor_video_is_refused(data):
    assert "neither an image (jpg," in refused("photo.jpg", data)


def test_damaged_files_are_refused(noise, tmp_path, flat_frames):
    assert "empty" in refused("a.png", b"")
    assert "damaged or cut short" in refused("a.png", encoded(noise)[:-2000])
    assert "damaged or cut short" in refused("a.jpg", encoded(noise, "JPEG")[:-700])
    film = video(tmp_path / "v.avi", flat_frames)
    assert "damaged" in refused("v.avi", film[:100])
    assert "8 bits" in refused("deep.png", encoded(np.zeros((8, 8), np.uint16)))


def test_ffmpeg_follows_no_list_of_files(tmp_path, flat_frames):
    target = tmp_path / "other.avi"
    video(target, flat_frames)
    playlist = tmp_path / "upload.mp4"
    playlist.write_text("ffconcat version 1.0\nfile other.avi\n")
    assert cv2.VideoCapture(str(playlist), cv2.CAP_FFMPEG).isOpened()  # left to itself it does
    assert not _capture(str(playlist)).isOpened()
    assert _capture(str(target)).isOpened()


def test_samples_are_drawn_anew_from_their_numbers():
    one, other = sample_scene(0), sample_scene(1)
    assert one.key == sample_scene(0).key and one.key != other.key
    assert one.read().shape == (160, 256, 3)
    clip = sample_clip(0)
    assert [picture.frame for picture in clip] == list(range(24))
    first, second = (picture.read() for picture in clip[:2])
    assert np.array_equal(first[:, 8:], second[:, :-8])  # the camera moves 8 pixels a frame
