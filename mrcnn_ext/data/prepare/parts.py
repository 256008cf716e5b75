"""What a published dataset consists of: archives, folders of images, annotation files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..json_stream import stream_sections

__all__ = ["AnnotationFile", "Archive", "Images", "Plan", "count_images", "count_sections"]


@dataclass(frozen=True)
class Archive:
    """A zip file that a publisher offers.

    Attributes:
        name: of the file.
        url: where it is; "" where there is none to download from without an account.
        size: in bytes; None where nobody published it.
    """

    name: str
    url: str
    size: int | None = None


@dataclass(frozen=True)
class Images:
    """A folder of images.

    Attributes:
        folder: in the dataset's root.
        count: how many there are.
        archive: that they come in.
        suffix: that their names end in.
    """

    folder: str
    count: int
    archive: Archive
    suffix: str = ".jpg"


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file.

    Attributes:
        path: in the dataset's root.
        images, annotations: how many are in it.
        archive: that it comes in.
        image_root: folder that its file names start from, in the dataset's root.
    """

    path: str
    images: int
    annotations: int
    archive: Archive
    image_root: str


@dataclass(frozen=True)
class Plan:
    """All parts of a dataset.

    Attributes:
        name: of the dataset, for messages.
        images, files: its parts.
        how: how to get archives that have no address; "" where all have.
        terms: where the publisher's terms are.
        unpack_to: by the name of an archive, the folder in the dataset's root to which it is unpacked, if not the root.
    """

    name: str
    images: tuple[Images, ...]
    files: tuple[AnnotationFile, ...] = ()
    how: str = ""
    terms: str = ""
    unpack_to: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> list[AnnotationFile | Images]:
        """Files, then images."""
        return [*self.files, *self.images]

    @property
    def archives(self) -> list[Archive]:
        """Each archive once, in the order of the parts."""
        return list(dict.fromkeys(part.archive for part in self.parts))

    def only(self, **counts: int) -> Plan:
        """The same with other counts and archives of any size, for copies that are smaller than the original.

        Args:
            counts: by folder for images, by "<stem of the file>_images" and "<stem>_annotations" for files; slashes
                and dashes are written as underscores.
        """

        def known(key, default):
            return counts.pop(key.replace("/", "_").replace("-", "_"), default)

        def any_size(archive):
            return replace(archive, size=None)

        images = tuple(
            replace(part, count=known(part.folder, part.count), archive=any_size(part.archive))
            for part in self.images
        )
        files = tuple(
            replace(
                part,
                images=known(f"{Path(part.path).stem}_images", part.images),
                annotations=known(f"{Path(part.path).stem}_annotations", part.annotations),
                archive=any_size(part.archive),
            )
            for part in self.files
        )
        if counts:
            raise ValueError(f"{self.name} has no parts {', '.join(counts)}")
        return replace(self, images=images, files=files)


def count_images(folder: Path, suffix: str) -> int:
    """How many images are in a folder and those in it."""
    return sum(1 for path in folder.rglob(f"*{suffix}") if not path.name.startswith("."))


def count_sections(path: Path) -> tuple[int, int]:
    """How many images and annotations an annotation file has.

    Raises:
        ValueError: it is not JSON, or cut off.
    """
    counts = {"images": 0, "annotations": 0}
    try:
        for key, _, is_element in stream_sections(str(path), arrays=tuple(counts)):
            if key in counts and is_element:
                counts[key] += 1
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return counts["images"], counts["annotations"]
