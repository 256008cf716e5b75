"""Published datasets from archives of their formats, made here."""

import contextlib
import http.server
import json
import threading
import zipfile

import pytest

pytest.importorskip("detectron2")
from click.testing import CliRunner  # noqa: E402
from published import cityscapes_archives, coco_archives, damaged  # noqa: E402

from mrcnn_ext.data.prepare import (  # noqa: E402
    COCO_2014,
    COCO_2017,
    LVIS_V1,
    Archive,
    prepare_cityscapes,
    prepare_coco,
    prepare_lvis,
)
from mrcnn_ext.data.prepare.archives import download_archive  # noqa: E402
from mrcnn_ext.data.prepare.coco import minival_ids  # noqa: E402
from mrcnn_ext_command import command  # noqa: E402

pytestmark = pytest.mark.detectron2
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco archives")
    return folder, coco_archives(folder)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes archives")
    return folder, cityscapes_archives(folder)


def test_coco_is_unpacked_counted_and_checked_and_left_alone_afterwards(coco, tmp_path):
    archives, plan = coco
    said = []
    assert prepare_coco(tmp_path, archives=archives, plan=plan, say=said.append, **QUIET)
    assert len(list((tmp_path / "train2017").iterdir())) == 6
    assert (tmp_path / "annotations" / "person_keypoints_val2017.json").is_file()
    report = "\n".join(said)
    assert "train2017: to come from train2017.zip" in report and "their checksums are right" in report
    assert "instances_val2017.json: 4 images, 4 of them with objects" in report
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    said.clear()
    # The archives are needed no more.
    assert prepare_coco(tmp_path, archives="nowhere", plan=plan, say=said.append, **QUIET)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == stamps
    assert "train2017: there" in said


def test_unpacking_goes_on_where_it_was_stopped(coco, tmp_path):
    archives, plan = coco
    prepare_coco(tmp_path, archives=archives, plan=plan, say=lambda text: None, **QUIET)
    kept, cut, gone = sorted((tmp_path / "train2017").iterdir())[:3]
    whole = cut.read_bytes()
    cut.write_bytes(whole[:100])
    gone.unlink()
    stamp = kept.stat().st_mtime_ns
    said = []
    assert prepare_coco(tmp_path, archives=archives, plan=plan, say=said.append, **QUIET)
    assert cut.read_bytes() == whole and gone.is_file() and kept.stat().st_mtime_ns == stamp
    assert any("train2017.zip: 2 files unpacked" in line for line in said)


def test_what_is_missing_is_told_with_where_to_get_it(coco, tmp_path):
    archives, plan = coco
    with pytest.raises(FileNotFoundError) as error:
        prepare_coco(tmp_path, say=lambda text: None, **QUIET)
    text = str(error.value)
    assert "COCO 2017: 3 of its 3 archives are needed and not there" in text
    assert "train2017.zip, 18.0 GiB (for train2017)" in text
    assert "from http://images.cocodataset.org/zips/train2017.zip" in text and "--download" in text
    assert not list(tmp_path.iterdir()), "nothing was downloaded"
    with pytest.raises(FileNotFoundError, match="free account.*csDownload"):
        prepare_cityscapes(tmp_path, say=lambda text: None, **QUIET)
    (tmp_path / "val2017.zip").write_bytes((archives / "val2017.zip").read_bytes())
    with pytest.raises(FileNotFoundError, match="2 of its 3 archives") as error:
        prepare_coco(tmp_path, plan=plan, say=lambda text: None, **QUIET)
    assert "/val2017.zip" not in str(error.value)


def test_damage_is_found_before_and_while_unpacking(coco, tmp_path):
    archives, plan = coco
    for path in archives.glob("*.zip"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        ValueError, match="annotations_trainval2017.zip has .* bytes, the publisher's 252907541: con"
    ):
        prepare_coco(tmp_path / "root", archives=tmp_path, say=lambda text: None, **QUIET)
    train = tmp_path / "train2017.zip"
    with zipfile.ZipFile(train) as archive:
        member = archive.namelist()[2]
    damaged(train, member)
    with pytest.raises(ValueError, match=f"train2017.zip: {member} in it is damaged .*get the archive again"):
        prepare_coco(tmp_path / "root", archives=tmp_path, plan=plan, say=lambda text: None, **QUIET)
    assert not (tmp_path / "root" / member).exists()
    train.write_bytes(train.read_bytes()[:-200])
    with pytest.raises(ValueError, match="train2017.zip is no zip file, or its end is missing"):
        prepare_coco(tmp_path / "root", archives=tmp_path, plan=plan, say=lambda text: None, **QUIET)
    with zipfile.ZipFile(train, "w") as archive:
        archive.writestr("../escaped.jpg", b"x")
    with pytest.raises(ValueError, match="'../escaped.jpg', which would lie outside"):
        prepare_coco(tmp_path / "root", archives=tmp_path, plan=plan, say=lambda text: None, **QUIET)


def test_other_counts_than_the_published_ones_are_told(coco, tmp_path):
    archives, plan = coco
    prepare_coco(tmp_path, archives=archives, plan=plan, say=lambda text: None, **QUIET)
    (tmp_path / "val2017" / "extra.jpg").write_bytes(b"")
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    removed = content["annotations"].pop()
    path.write_text(json.dumps(content))
    said = []
    assert not prepare_coco(tmp_path, plan=plan, say=said.append, **QUIET)
    assert f"{tmp_path / 'val2017'}: 5 images, the publisher's 4" in said
    count = len(content["annotations"])
    assert f"{path}: {count} annotations, the publisher's {count + 1}" in said
    # Damage that counts do not show is what the check of custom data finds.
    content["annotations"].append({**removed, "bbox": [0, 0, "?", 1], "segmentation": []})
    path.write_text(json.dumps(content))
    (tmp_path / "val2017" / "extra.jpg").unlink()
    said.clear()
    assert not prepare_coco(tmp_path, plan=plan, say=said.append, **QUIET)
    assert "Errors, with which it cannot be used" in "\n".join(said)


def test_trainval35k_and_minival_by_a_list(coco, tmp_path):
    """val2017 of the archives plays val2014; two of its images are minival."""
    archives, plan = coco
    prepare_coco(tmp_path, archives=archives, plan=plan, say=lambda text: None, **QUIET)
    for old, new in (("train2017", "train2014"), ("val2017", "val2014")):
        (tmp_path / old).rename(tmp_path / new)
        for kind in ("instances", "person_keypoints"):
            (tmp_path / "annotations" / f"{kind}_{old}.json").rename(
                tmp_path / "annotations" / f"{kind}_{new}.json"
            )
    counts = {f.path.replace("2017", "2014")[12:-5]: (f.images, f.annotations) for f in plan.files}
    kwargs = {
        f"{stem}_{what}": n
        for stem, pair in counts.items()
        for what, n in zip(("images", "annotations"), pair, strict=True)
    }
    plan = COCO_2014.only(train2014=6, val2014=4, **kwargs)
    whole = json.loads((tmp_path / "annotations" / "instances_val2014.json").read_text())
    ids = [image["id"] for image in whole["images"]][:2]
    lists = {
        "ids.txt": f"{ids[0]}\n{ids[1]}\n",
        "names.txt": "\n".join(f"COCO_val2014_{i:012d}.jpg" for i in ids),
        "ids.json": json.dumps(ids),
        "file.json": json.dumps({"images": [{"id": i} for i in ids]}),
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert minival_ids(tmp_path / name, 2) == set(ids), name
    done = prepare_coco(
        tmp_path, minival=tmp_path / "names.txt", plan=plan, num_minival=2, say=lambda text: None, **QUIET
    )
    assert done
    for kind in ("instances", "person_keypoints"):
        whole, minival, rest = (
            json.loads((tmp_path / "annotations" / f"{kind}_{part}2014.json").read_text())
            for part in ("val", "minival", "valminusminival")
        )
        assert [i["id"] for i in minival["images"]] == ids and len(rest["images"]) == 2
        both = minival["annotations"] + rest["annotations"]
        assert sorted(a["id"] for a in both) == sorted(a["id"] for a in whole["annotations"])
        assert {a["image_id"] for a in minival["annotations"]} <= set(ids)
        assert whole["categories"] == minival["categories"]
    with pytest.raises(ValueError, match="ids.txt lists 2 images, minival has 5000"):
        minival_ids(tmp_path / "ids.txt")
    (tmp_path / "bad.txt").write_text("first\nsecond\n")
    with pytest.raises(ValueError, match="bad.txt: 'first' is neither an image id nor the name of a file"):
        minival_ids(tmp_path / "bad.txt", 2)
    (tmp_path / "other.txt").write_text("1\n2\n")
    with pytest.raises(
        ValueError, match="lacks 2 of the 2 images of minival, as 1: is the list of other data"
    ):
        prepare_coco(
            tmp_path, minival=tmp_path / "other.txt", plan=plan, num_minival=2, say=lambda text: None, **QUIET
        )


def test_published_counts_of_both_years_agree():
    """2017 is 2014, divided in another way."""
    for k in (0, 2):
        for what in ("images", "annotations"):
            totals = [
                getattr(plan.files[k], what) + getattr(plan.files[k + 1], what)
                for plan in (COCO_2014, COCO_2017)
            ]
            assert totals[0] == totals[1]


def test_cityscapes(cityscapes, tmp_path):
    archives, plan = cityscapes
    said = []
    assert prepare_cityscapes(tmp_path, archives=archives, plan=plan, say=said.append, **QUIET)
    assert "cityscapes_fine_instance_seg_train: it can be used" in said
    label = next((tmp_path / "gtFine" / "val").rglob("*_polygons.json"))
    label.unlink()
    said.clear()
    assert not prepare_cityscapes(tmp_path, archives=archives, plan=plan, say=said.append, **QUIET)
    assert any(f"{label} is missing" in line for line in said)
    next((tmp_path / "leftImg8bit" / "train").rglob("*.png")).unlink()
    prepare_cityscapes(tmp_path, archives=archives, plan=plan, say=said.append, **QUIET)
    assert any("leftImg8bit_trainvaltest.zip: 1 files unpacked" in line for line in said)


def test_lvis_names_its_images_by_address(coco, tmp_path):
    archives, plan = coco
    root = tmp_path / "coco"
    prepare_coco(root, archives=archives, plan=plan, say=lambda text: None, **QUIET)
    kwargs = {"train2017": 6, "val2017": 4}
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
        content["annotations"] = [a for a in content["annotations"] if not a.pop("iscrowd")]
        with zipfile.ZipFile(tmp_path / f"lvis_v1_{split}.json.zip", "w") as archive:
            archive.writestr(f"lvis_v1_{split}.json", json.dumps(content))
        kwargs |= {
            f"lvis_v1_{split}_images": len(content["images"]),
            f"lvis_v1_{split}_annotations": len(content["annotations"]),
        }
    said = []
    assert prepare_lvis(root, archives=tmp_path, plan=LVIS_V1.only(**kwargs), say=said.append, **QUIET)
    assert (tmp_path / "lvis" / "lvis_v1_val.json").is_file()
    assert "lvis/lvis_v1_val.json: to come from lvis_v1_val.json.zip" in said
    assert said[-1].startswith(f"\n{tmp_path / 'lvis' / 'lvis_v1_val.json'}: 4 images")
    (root / "val2017" / "000000000707.jpg").unlink()
    assert not prepare_lvis(
        root, archives=tmp_path, plan=LVIS_V1.only(**{**kwargs, "val2017": 3}), say=said.append, **QUIET
    )
    assert "000000000707.jpg" in said[-1] + said[-2]


class _Server(http.server.BaseHTTPRequestHandler):
    content = b""
    asked = []

    def do_GET(self):
        span = self.headers.get("Range")
        self.asked.append(span)
        start = int(span[6:-1]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        body = self.content[start:]
        self.wfile.write(body[:1000] if not span else body)  # the first answer is cut off

    def log_message(self, *args):
        pass


class _BrokenChunk(_Server):
    """Sends half a chunk of no known length in all."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1000\r\n" + bytes(0x800))
        self.close_connection = True


@contextlib.contextmanager
def serving(content, handler=_Server):
    _Server.content, _Server.asked = content, []
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/val2017.zip", _Server.asked
        finally:
            server.shutdown()
            thread.join()


def test_a_download_goes_on_where_it_was_cut_off(coco, tmp_path):
    archives, _ = coco
    content = (archives / "val2017.zip").read_bytes()
    with serving(content) as (url, asked):
        archive = Archive("val2017.zip", url)
        with pytest.raises(
            OSError, match="1000 of .* bytes have come. They are kept: the same command goes on"
        ):
            download_archive(archive, tmp_path, progress=False)
        assert not (tmp_path / "val2017.zip").exists()
        assert download_archive(archive, tmp_path, progress=False).read_bytes() == content
        assert asked == [None, "bytes=1000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["val2017.zip"]


def test_an_answer_that_breaks_off_within_a_chunk_is_told(tmp_path):
    with serving(b"", _BrokenChunk) as (url, _):
        with pytest.raises(OSError, match="What has come is kept: the same command goes on"):
            download_archive(Archive("val2017.zip", url), tmp_path, progress=False)


@pytest.mark.parametrize(
    "words, match",
    [
        (
            ["cityscapes", "--download"],
            "--download is for coco and lvis, not cityscapes: its publisher asks for an acc",
        ),
        (["lvis", "--minival", "x"], "--minival is for coco, not lvis"),
        (["coco", "--coarse"], "--coarse is for cityscapes, not coco"),
    ],
)
def test_options_of_other_datasets_are_refused(words, match):
    result = CliRunner().invoke(command, ["datasets", "prepare", *words])
    assert result.exit_code == 2 and match in result.output


def test_the_command_tells_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    result = CliRunner().invoke(command, ["datasets", "prepare", "cityscapes", "--quiet"])
    assert isinstance(result.exception, ValueError) and str(tmp_path / "cityscapes") in str(result.exception)
    assert "leftImg8bit/train: to come from leftImg8bit_trainvaltest.zip" in result.output
