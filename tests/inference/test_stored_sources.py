"""Images in object storage and in Parquet, and results as Parquet."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest

pytest.importorskip("detectron2")
pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from pycocotools.coco import COCO

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import load_predictor, open_source, predict

pytestmark = pytest.mark.detectron2


@pytest.fixture
def files(scenes, tmp_path):
    """Five images in a folder and one within it, one of whose names has a blank."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    names = ["0.png", "a b%20.png", "more/2.png", "more/3.png", "more/4.png"]
    paths = []
    for name, record in zip(names, DatasetCatalog.get(scenes), strict=False):
        paths.append(root / name)
        with open(record["file_name"], "rb") as file:
            paths[-1].write_bytes(file.read())
    return paths


def assert_reads(source, files, names):
    assert [name for _, name in source.short_names] == names
    for sent in (source, pickle.loads(pickle.dumps(source.for_other_processes()))):
        read = list(sent.readers("BGR", {1}))
        assert [index for index, _, _ in read] == [i for i in range(len(files)) if i != 1]
        for index, _, image in read:
            np.testing.assert_array_equal(image(), read_image(files[index], "BGR"))


def test_a_folder_of_object_storage(files):
    root = files[0].parent
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    source = open_source(root.as_uri())
    assert_reads(source, files, ["0.png", "a b%20.png", "more/2.png", "more/3.png", "more/4.png"])
    assert source.stamp(1) == files[1].stat().st_size
    assert [id for id, _ in source.short_names] == [1, 2, 3, 4, 5]
    alone = open_source(files[1].as_uri())
    assert [name for _, name in alone.short_names] == ["a b%20.png"]
    several = open_source([(root / "more").as_uri(), str(files[0])])
    assert [next(several.readers("BGR", {0, 1, 2}))[2]().shape] == [read_image(files[0]).shape]
    (files[0].parent / "more" / ".hidden.png").write_bytes(b"")
    assert len(open_source([(root / "more").as_uri()])) == 3, "hidden files are images of nobody"
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("no picture")
    with pytest.raises(UserError, match="texts: no images there; looked for .bmp"):
        open_source([(root / "texts").as_uri(), str(files[0])])
    with pytest.raises(UserError, match="file:///nowhere/at/all: there is nothing at this address"):
        open_source("file:///nowhere/at/all")
    empty = root / "empty"
    empty.mkdir()
    (empty / "x.txt").write_text("x")
    with pytest.raises(UserError, match="file://.*empty: no images there; looked for .bmp"):
        open_source(empty.as_uri())


def test_a_bucket(s3, files):
    root = files[0].parent
    s3.create_bucket(Bucket="pictures")
    for file in files:
        s3.upload_file(str(file), "pictures", f"some/{file.relative_to(root)}")
    s3.put_object(Bucket="pictures", Key="some/notes.txt", Body=b"no picture")
    table = io.BytesIO()
    pq.write_table(table_of(files, "image"), table)
    s3.put_object(Bucket="pictures", Key="table.parquet", Body=table.getvalue())

    source = open_source("s3://pictures/some")
    assert_reads(source, files, ["0.png", "a b%20.png", "more/2.png", "more/3.png", "more/4.png"])
    assert source.stamp(1) == files[1].stat().st_size
    assert [name for _, name in open_source("s3://pictures/some/more/3.png").short_names] == ["3.png"]
    (_, _, image), *_ = open_source("s3://pictures/table.parquet").readers("BGR", set())
    np.testing.assert_array_equal(image(), read_image(files[0], "BGR"))
    with pytest.raises(UserError, match="s3://pictures/other: there is nothing at this address"):
        open_source("s3://pictures/other")
    with pytest.raises(UserError, match="s3://nobodys/photos: there is nothing at this address"):
        open_source("s3://nobodys/photos")


def table_of(files, column):
    content = [file.read_bytes() for file in files]
    if column == "image":  # as Hugging Face's data sets
        pairs = zip(content, files, strict=True)
        return pa.table({"image": [{"bytes": data, "path": file.name} for data, file in pairs]})
    if column == "bytes":
        return pa.table({"image_id": [7, 5, 3, 1, 0], "bytes": content})
    return pa.table(
        {"file_name": [str(file.relative_to(files[0].parent)) for file in files], "label": [0] * 5}
    )


@pytest.mark.parametrize("column", ["image", "bytes", "file_name"])
@pytest.mark.parametrize("stored", [False, True])
def test_rows_of_parquet(files, column, stored):
    file = files[0].parent / "pictures.parquet"
    pq.write_table(table_of(files, column), file, row_group_size=2)
    source = open_source(file.as_uri() if stored else str(file))
    names = {
        "image": [f.name for f in files],
        "bytes": [f"pictures.parquet#{i}" for i in range(5)],
        "file_name": ["0.png", "a b%20.png", "more/2.png", "more/3.png", "more/4.png"],
    }[column]
    if column == "bytes":
        assert [id for id, _ in source.short_names] == [7, 5, 3, 1, 0]
    assert_reads(source, files, names)
    if column != "file_name":
        assert source.stamp(1) == file.stat().st_size, "the images are in it"
    elif not stored:
        assert source.stamp(1) == files[1].stat().st_size, "that of the image itself tells of its change"


def test_parquet_without_images_is_refused(files):
    folder = files[0].parent / "tables"
    folder.mkdir()
    file = folder / "a.parquet"
    pq.write_table(pa.table({"label": [1], "image_bytes": ["text"]}), file)
    with pytest.raises(
        UserError, match="no column has images .* or names them .*; it has label, image_bytes"
    ):
        open_source(str(folder))
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="a.parquet: it cannot be read as Parquet"):
        open_source(str(file))
    pq.write_table(pa.table({"file_name": ["x.png", None]}), file)
    with pytest.raises(UserError, match="a.parquet: row 1 has no file_name"):
        open_source(str(file))


def test_results_of_parquet_into_parquet(cfg, files, tmp_path):
    """They are those of the files, and pictures are drawn from what is read again."""
    predictor = load_predictor(cfg)
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(table_of(files[:3], "image"), folder / "a.parquet", row_group_size=2)
    pq.write_table(table_of(files[3:], "image"), folder / "b.parquet")
    options = {"progress": False, "accelerate": False, "limit": 5}
    predict(predictor, [str(file) for file in files], tmp_path / "files.json", **options)
    output = tmp_path / "results.parquet"
    done = predict(predictor, folder, output, **options)
    expected = json.loads((tmp_path / "files.json").read_text())
    assert done["results"] == len(expected) > 5
    table = pq.read_table(output)
    assert table.column("file_name").unique().to_pylist() == [file.name for file in files]
    assert table.column("image_id").to_pylist() == [str(record["image_id"]) for record in expected]
    for key in ("score", "bbox", "keypoints", "segmentation", "category_id"):
        assert table.column(key).to_pylist() == [record[key] for record in expected], key
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    assert set(table.column("category").to_pylist()) <= set(classes)
    drawn = predict(predictor, folder, output, pictures=tmp_path / "drawn", picture_score=0.01, **options)
    assert drawn["drawn"] == 5 and len(list((tmp_path / "drawn").rglob("*.png"))) == 5
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(output.with_suffix(".images.json")).imgs) == 5
