"""Results as Parquet: a row for each detection."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ..engine.errors import UserError

__all__ = ["check_pyarrow", "read_parquet", "write_parquet"]

_ROWS = 20_000  # written at a time
_OF_IMAGE = ("image_id", "file_name", "height", "width", "frame")


def check_pyarrow() -> None:
    """
    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f".parquet is written and read by pyarrow (pip install pyarrow): {error}") from error


def _schema():
    import pyarrow as pa

    return pa.schema(
        [
            ("image_id", pa.string()),  # a number, or a text where the dataset's ids are texts: JSON
            ("file_name", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("frame", pa.int64()),
            ("category_id", pa.int64()),
            ("category", pa.string()),
            ("score", pa.float64()),
            ("bbox", pa.list_(pa.float64())),
            ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
            ("keypoints", pa.list_(pa.float64())),
            ("mask_score", pa.float64()),
            ("keypoint_score", pa.float64()),
            ("track_id", pa.int64()),
        ]
    )


def write_parquet(
    file: IO[bytes],
    lines: Iterable[tuple[dict, list[dict]]],
    names: Mapping[int, str],
    keypoint_names: Sequence[str] = (),
) -> int:
    """Writes COCO results; what a detection does not have is null.

    Args:
        file: opened as binary.
        lines, names: as of `write_results`.

    Returns:
        How many results there are.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema, rows, count = _schema(), [], 0
    with ParquetWriter(file, schema, compression="zstd") as writer:

        def flush():
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        for image, results in lines:
            about = {key: image.get(key) for key in _OF_IMAGE} | {"image_id": json.dumps(image["id"])}
            for result in results:
                rows.append({**result, **about, "category": names.get(result["category_id"], "")})
            count += len(results)
            if len(rows) >= _ROWS:
                flush()
        flush()
    return count


def read_parquet(path: Path, images: Sequence[dict]) -> Iterator[list[dict]]:
    """COCO results of each of the images, from a file of `write_parquet`."""
    from pyarrow.parquet import ParquetFile

    columns = [name for name in _schema().names if name not in (*_OF_IMAGE[1:], "category")]
    by_image: dict = {}
    with ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                row = {key: value for key, value in row.items() if value is not None}
                row["image_id"] = json.loads(row["image_id"])
                by_image.setdefault(row["image_id"], []).append(row)
    for image in images:
        yield by_image.get(image["id"], [])
