"""Images in the rows of Parquet files."""

import functools
import os
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import quote

import numpy as np

from ..engine.errors import UserError
from .image_files import ImageFiles, reader_of
from .object_storage import decode, is_stored, open_stored

__all__ = ["ParquetImages"]

_IMAGE_COLUMNS = ("image", "image_bytes", "bytes")
_PATH_COLUMNS = ("file_name", "filename", "path", "image_path", "uri", "url", "image")


class ParquetImages(ImageFiles):
    """A row for each image, in Parquet files on disk or in object storage.

    The image is in a column ``image``, ``image_bytes`` or ``bytes``: an encoded file as binary, or {bytes, path} as
    Hugging Face's data sets have it. Or a column ``file_name``, ``path``, ``uri`` or ``url`` names its file, relative
    to the folder of the Parquet file, or its address. ``image_id``, where there is such a column, is its id; else ids
    count from 1.

    Args:
        files: paths or URIs, in order, each with the name that rows without one of their own are called by.

    Raises:
        UserError: pyarrow is not installed, a file is damaged or has no such column, or an id is not alone.
    """

    def __init__(self, files: Mapping[str, str]):
        self._files = list(files)
        self._rows: list[tuple[int, int, int]] = []  # file, row group, row in it
        self._columns: list[str] = []  # of each file: of the images' bytes; "" where they are files
        records, names, sizes = [], {}, []
        for number, (file, short) in enumerate(files.items()):
            table, column, rows, size = _read_index(file)
            self._columns.append(column)
            for place, (group, row) in enumerate(rows):
                name = table["name"][place]
                record = {"file_name": f"{file}#{place}", "image_id": len(records) + 1}
                if column == "":
                    record["file_name"] = _resolved(name, file)
                if table["id"] is not None:
                    record["image_id"] = table["id"][place]
                names[record["file_name"]] = name or f"{short}#{place}"
                records.append(record)
                sizes.append(size if column else None)
                self._rows.append((number, group, row))
        if not records:
            raise UserError(f"{', '.join(self._files[:3])}: no rows, and so no images")
        super().__init__(records, names=names, sizes=sizes)

    def reader(self, index: int, image_format: str) -> tuple[int, dict, Callable]:
        file, group, row = self._rows[index]
        record = self._records[index]
        if self._columns[file] == "":
            return index, record, partial(reader_of(record["file_name"]), record["file_name"], image_format)
        read = partial(_read_row, self._files[file], group, row, self._columns[file], image_format)
        return index, record, read

    def for_other_processes(self) -> "ParquetImages":
        other = super().for_other_processes()
        other._files = [file if is_stored(file) else os.path.abspath(file) for file in self._files]
        return other


def _read_index(file):
    """What is read at first: {"name", "id"}: lists, None where there is no such column; the column of the bytes; row
    group and row in it of each row; and bytes of the file."""
    with _opened(file) as source:
        parquet, size = _parquet(source, file), source.size()
        column, name = _columns_of(parquet.schema_arrow, file)
        has_id = "image_id" in parquet.schema_arrow.names
        wanted = [*([name] if name else []), *(["image_id"] if has_id else [])]
        table = parquet.read(columns=wanted) if wanted else None
        groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    rows = [(group, row) for group, count in enumerate(groups) for row in range(count)]
    names = [None] * len(rows)
    if name:
        values = table.column(name.partition(".")[0]).to_pylist()
        names = [(value or {}).get("path") for value in values] if "." in name else values
    if column == "" and None in names:
        raise UserError(f"{file}: row {names.index(None)} has no {name}")
    return {"name": names, "id": table.column("image_id").to_pylist() if has_id else None}, column, rows, size


def _columns_of(schema, file):
    """The column of the encoded images, "" for none; and the column of the files' names, "" for none."""
    from pyarrow import types

    def is_binary(kind):
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_text(kind):
        return types.is_string(kind) or types.is_large_string(kind)

    kinds = {field.name: field.type for field in schema}
    names = [name for name in _PATH_COLUMNS if name in kinds and is_text(kinds[name])]
    for column in _IMAGE_COLUMNS:
        kind = kinds.get(column)
        if kind is not None and types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            inner = f"{column}.path" if kind.get_field_index("path") >= 0 else ""
            return column, (names[0] if names else inner)
        if kind is not None and is_binary(kind):
            return column, (names[0] if names else "")
    if names:
        return "", names[0]
    raise UserError(
        f"{file}: no column has images ({', '.join(_IMAGE_COLUMNS)}: binary) or names them "
        f"({', '.join(_PATH_COLUMNS[:-1])}: text); it has {', '.join(kinds) or 'none'}"
    )


def _resolved(name, file):
    if "://" in name or os.path.isabs(name):
        return name
    if is_stored(file):
        return f"{file.rpartition('/')[0]}/{quote(name)}"
    return os.path.join(os.path.dirname(file), name)


def _read_row(file, group, row, column, image_format) -> np.ndarray:
    cell = _row_group(file, group, column)[row].as_py()
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if not content:
        raise OSError("the row has no image")
    return decode(content, image_format)


@functools.lru_cache(maxsize=2)
def _row_group(file, group, column):
    """What is read together; neighbouring rows are asked for one after the other."""
    with _opened(file) as source:
        return _parquet(source, file).read_row_group(group, columns=[column]).column(column)


def _opened(file):
    if is_stored(file):
        return open_stored(file)
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"Parquet is read by pyarrow (pip install pyarrow): {error}") from error
    return pyarrow.OSFile(file)


def _parquet(source, file):
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(source)
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: it cannot be read as Parquet: {error}") from error
