"""Where images come from: files, folders, patterns, lists, standard input, the web, object storage, Parquet, videos,
cameras, datasets."""

import glob
import io
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..data.data_file import read_data_file
from ..data.loading import coco_loader, not_on_disk
from ..data.problems import Problems
from ..engine.errors import UserError, did_you_mean
from ..engine.setup import register_datasets
from .downloads import MAX_VIDEO, download, is_url
from .image_files import ImageFiles, describe
from .object_storage import StoredFile, is_stored, list_stored
from .parquet_source import ParquetImages
from .videos import Video, Webcam

__all__ = ["IMAGE_SUFFIXES", "ImageFiles", "Video", "Webcam", "describe", "open_source"]

_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_LOOK = 4096  # bytes
_WEBCAM = re.compile(r"webcam:(\d+)|(\d{1,2})")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PARQUET = ".parquet"
_VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_log = logging.getLogger(__name__)


def open_source(source) -> ImageFiles | Video | Webcam:
    """
    Args:
        source: one of

            * a registered dataset, or ``data=shapes.yaml``: the "val" (else "test") of a data file;
            * a folder: its images and those of the folders in it, sorted by path, hidden ones left out;
            * an image or video file, or a pattern of image files, ``photos/**/*.jpg``;
            * a ``.txt`` file of image files or addresses, one a line, relative to its folder or to the working
              directory; lines that begin with # are left out;
            * ``-``: standard input, which is an image, or such a list;
            * ``http://`` or ``https://``: an image (to 100 MB) or a video (to 4 GB);
            * ``s3://``, ``gs://``, ``abfs://``, ``hdfs://`` or ``file://`` (`mrcnn_ext.inference.object_storage`): an
              image, or the images under it;
            * a ``.parquet`` file, a folder of such, or one in object storage: see `ParquetImages`;
            * ``webcam:0``, or 0: a camera of this machine;
            * a sequence of image files, folders, patterns, lists and addresses, or of detectron2's dataset records.

            Image ids count from 1, but in datasets and records that have their own.

    Raises:
        UserError: it is none of these, or has no images.
    """
    if isinstance(source, (ImageFiles, Video, Webcam)):
        return source
    if isinstance(source, int):
        return Webcam(source)
    if not isinstance(source, (str, os.PathLike)):
        return _sequence(source)
    name = os.fspath(source)
    if name in DatasetCatalog.list():
        return _dataset(name)
    if name.startswith("data="):
        return _data_file(name.removeprefix("data="))
    if name == "-":
        return _standard_input()
    if is_url(name):
        return _from_web(name)
    if is_stored(name):
        return _stored(name)
    if os.path.isdir(name):
        return _folder(name)
    camera = _WEBCAM.fullmatch(name)
    if camera and not os.path.exists(name):
        return Webcam(int(camera[1] or camera[2]))
    if _is_pattern(name):
        found = _matching(name)
        # The only thing that it matches may be a video.
        return open_source(found[0]) if len(found) == 1 else _numbered(found, "")
    if not os.path.isfile(name):
        raise UserError(
            f"{name!r} is no file, folder or registered dataset{did_you_mean(name, DatasetCatalog.list())}"
        )
    if name.lower().endswith(IMAGE_SUFFIXES):
        return _numbered([name], "")
    if name.lower().endswith(".txt"):
        return _numbered(_listed(name), "")
    if name.lower().endswith(_PARQUET):
        return ParquetImages({name: os.path.basename(name)})
    if _is_text(name):
        raise UserError(f"{name}: it is text, neither an image ({' '.join(IMAGE_SUFFIXES)}) nor a video")
    return Video(name)


def _folder(name: str) -> ImageFiles:
    paths = sorted(Path(name).rglob("*"))
    tables = [path for path in paths if _is_taken(path, Path(name), (_PARQUET,))]
    if tables and not any(_is_taken(path, Path(name), IMAGE_SUFFIXES) for path in paths):
        return ParquetImages({os.fspath(path): path.relative_to(name).as_posix() for path in tables})
    return _numbered(_images_among(paths, name), name)


def _stored(uri: str) -> ImageFiles:
    """Of object storage: an image, a folder of images, or Parquet."""
    files = _not_hidden(uri)
    images = _images_in(files)
    tables = [file for file in files if file.name.lower().endswith(_PARQUET)]
    if tables and not images:
        return ParquetImages({file.uri: file.name for file in tables})
    if not images:
        raise UserError(f"{uri}: no images there; looked for {' '.join((*IMAGE_SUFFIXES, _PARQUET))}")
    records = [{"file_name": file.uri, "image_id": i} for i, file in enumerate(images, 1)]
    names = {file.uri: file.name for file in images}
    return ImageFiles(records, names=names, sizes=[file.size for file in images])


def _not_hidden(uri: str) -> list[StoredFile]:
    return [file for file in list_stored(uri) if not _is_hidden(file.name)]


def _images_in(files: list[StoredFile]) -> list[StoredFile]:
    return [file for file in files if file.name.lower().endswith(IMAGE_SUFFIXES)]


def _images_among(paths: list[Path], name: str) -> list[Path]:
    """The images of a folder, whose paths are given."""
    found = [p for p in paths if _is_taken(p, Path(name), IMAGE_SUFFIXES)]
    files = sorted(found, key=lambda path: path.relative_to(name).as_posix())
    if not files:
        raise UserError(f"{name}: no images in this folder; looked for {' '.join(IMAGE_SUFFIXES)}")
    _tell_videos([p for p in paths if _is_taken(p, Path(name), _VIDEO_SUFFIXES)], name)
    return files


def _tell_videos(videos: list, where: str) -> None:
    if videos:
        _log.warning(
            "%s: %d video(s) left out (%s%s): a video is predicted alone, not with images",
            *(where, len(videos), os.path.basename(videos[0]), ", ..." if len(videos) > 1 else ""),
        )


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not os.path.exists(name)


def _matching(pattern: str) -> list[str]:
    """Images that a pattern matches, sorted; or the only thing that it matches."""
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    images = [path for path in found if path.lower().endswith(IMAGE_SUFFIXES)]
    if not images and len(found) != 1:
        raise UserError(f"{pattern}: no image matches this pattern; looked for {' '.join(IMAGE_SUFFIXES)}")
    if images:
        _tell_videos([path for path in found if path.lower().endswith(_VIDEO_SUFFIXES)], pattern)
    return images or found


def _listed(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a list of image files must be text in UTF-8 ({error})") from error
    return _lines(text, path, os.path.dirname(path))


def _lines(text: str, where: str, folder: str) -> list[str]:
    """Files that the lines of a text name."""
    files = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if not is_url(name) and not is_stored(name):
            places = [os.path.join(folder, name), name]
            file = next((place for place in places if os.path.isfile(place)), None)
            if file is None:
                tried = " or ".join(dict.fromkeys(map(repr, places)))
                raise UserError(f"{where}, line {number}: there is no file {tried}")
            if not file.lower().endswith(IMAGE_SUFFIXES):
                raise UserError(f"{where}, line {number}: {file!r} is no image ({' '.join(IMAGE_SUFFIXES)})")
            name = file
        files.append(name)
    if not files:
        raise UserError(f"{where}: it names no image files; one a line is expected")
    return files


def _standard_input() -> ImageFiles:
    if sys.stdin.isatty():
        raise UserError("- reads an image, or the names of image files, from standard input: pipe them in")
    content = sys.stdin.buffer.read()
    if not content:
        raise UserError("standard input is empty: an image, or names of image files, are expected")
    if (text := _as_text(content)) is not None:
        return _numbered(_lines(text, "standard input", ""), "")
    suffix = _image_suffix(io.BytesIO(content))
    if suffix is None:
        raise UserError("standard input is neither an image nor a list of image files")
    folder, path = _temporary(f"image{suffix}")
    Path(path).write_bytes(content)
    return _held(folder, path, f"stdin{suffix}")


def _from_web(url: str) -> ImageFiles | Video:
    name = os.path.basename(urlsplit(url).path)
    if name.lower().endswith(IMAGE_SUFFIXES):
        return _numbered([url], "")
    folder, path = _temporary(name[-100:] or "download")
    download(url, path, MAX_VIDEO)
    if _image_suffix(path) is not None:
        return _held(folder, path, url)
    if _is_text(path):
        raise UserError(f"{url}: it is text, neither an image nor a video")
    video = Video(path, url)
    video._folder = folder
    return video


def _temporary(name: str) -> tuple[tempfile.TemporaryDirectory, str]:
    folder = tempfile.TemporaryDirectory(prefix="mrcnn_ext-")
    return folder, os.path.join(folder.name, name)


def _held(folder, path: str, name: str) -> ImageFiles:
    """One image in a temporary folder, which is there as long as the source."""
    source = ImageFiles([{"file_name": path, "image_id": 1}], names={path: name})
    source._folder = folder
    return source


def _image_suffix(file) -> str | None:
    """The suffix of an image's format, None for what is no image."""
    try:
        with Image.open(file) as image:
            return f".{image.format.lower()}"
    except Exception:  # decoders raise anything
        return None


def _is_taken(path: Path, root: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a path in a folder is a file with such a suffix, and no hidden one or one that a system put there."""
    if _is_hidden(path.relative_to(root).as_posix()):
        return False
    return path.suffix.lower() in suffixes and path.is_file()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in name.split("/"))


def _is_text(name: str) -> bool:
    """Whether a file begins as text does, which FFmpeg would show as a video of its letters."""
    with open(name, "rb") as file:
        return _as_text(file.read(_LOOK)) is not None


def _as_text(content: bytes) -> str | None:
    """UTF-8 text, of which the last letter may be cut in two; None for anything else."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if error.start < len(content) - 3:
            return None
        text = content[: error.start].decode()
    return text if text and all(letter.isprintable() or letter.isspace() for letter in text) else None


def _numbered(files, root):
    """Images with ids from 1."""
    records = [{"file_name": os.fspath(file), "image_id": i} for i, file in enumerate(files, 1)]
    return ImageFiles(records, root)


def _sequence(source):
    items = list(source)
    if not items:
        raise UserError("the source is empty: it has no images")
    if isinstance(items[0], dict):
        return ImageFiles([{"image_id": i, **record} for i, record in enumerate(items, 1)])
    return _numbered([file for item in items for file in _files_of(os.fspath(item))], "")


def _files_of(name: str) -> list:
    """The image files that one of several sources stands for."""
    if is_stored(name):
        images = _images_in(_not_hidden(name))
        if not images:
            raise UserError(f"{name}: no images there; looked for {' '.join(IMAGE_SUFFIXES)}")
        return [file.uri for file in images]
    if is_url(name) or name.lower().endswith(IMAGE_SUFFIXES):
        return _matching(name) if not is_url(name) and _is_pattern(name) else [name]
    if os.path.isdir(name):
        return _images_among(sorted(Path(name).rglob("*")), name)
    if _is_pattern(name):
        return [file for found in _matching(name) for file in _files_of(found)]
    if name.lower().endswith(".txt") and os.path.isfile(name):
        return _listed(name)
    if os.path.isfile(name):
        raise UserError(f"{name}: it is no image; a video is predicted alone, not with other sources")
    raise UserError(
        f"{name!r} is no file or folder; several sources may be image files, folders, patterns, .txt lists and "
        "addresses of images"
    )


def _data_file(path: str):
    """The part of a data file to evaluate on, with the ids of its annotation file."""
    try:
        file = read_data_file(path)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    if len(file.test) != 1:
        which = f"several to evaluate on ({', '.join(file.test)})" if file.test else "no val or test"
        raise UserError(f"data file {path} has {which}: one is predicted for at a time")
    register_datasets(file.coco_format)
    return _dataset(file.test[0])


def _dataset(name):
    problems = Problems(name)
    try:
        loader = coco_loader(name)
        records = loader.load(problems) if loader is not None else DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(str(not_on_disk(name, error.filename or str(error)))) from error
    except Exception as error:  # a registered function may raise anything
        raise UserError(f"dataset {name!r} cannot be read: {type(error).__name__}: {error}") from error
    # Of annotations nothing is needed.
    wrong = [finding for finding in problems.errors if finding.kind.startswith("image-")]
    if wrong:
        raise UserError("\n".join(f"{problems.title}, {finding}" for finding in wrong))
    if not records:
        raise UserError(f"dataset {name!r} is empty: it has no images")
    records = [{"image_id": i, **record} for i, record in enumerate(records, 1)]
    metadata = MetadataCatalog.get(name)
    return ImageFiles(records, metadata.get("image_root", ""), metadata)
