"""mrcnn-ext zoo."""

import pytest

pytest.importorskip("detectron2")

from detectron2.utils.file_io import PathManager

from mrcnn_ext import model_zoo

pytestmark = pytest.mark.detectron2


def test_list(run):
    names = run("zoo", "list").split()
    assert names == model_zoo.list_configs()
    assert run("zoo", "list", "KEYPOINT", "yaml").split() == [
        name for name in names if "keypoint" in name.lower() and "yaml" in name
    ]
    theirs = run("zoo", "list", "--detectron2", "mask", "R_50_FPN_3x").split()
    assert "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml" in theirs
    assert "no name holds transformer" in run("zoo", "list", "transformer", code=2)


def test_show(run):
    printed = run("zoo", "show", "mask_rcnn_timm_convnext_tiny_FPN")
    assert "# backbone: build_timm_fpn_backbone (convnext_tiny)" in printed
    assert "# heads: FusedROIHeads, FCNMaskHead" in printed
    assert "# training: 160000 iterations of 16 images, SGD" in printed
    assert "WARMUP_METHOD" not in printed and "MASK_ON: true" in printed, "what is as by default is shown"
    assert "WARMUP_METHOD" in run("zoo", "show", "mask_rcnn_timm_convnext_tiny_FPN", "--all")
    printed = run("zoo", "show", "keypoint_rcnn_R_50_FPN.py")
    assert "# data: keypoints_coco_2017_train" in printed and "KRCNN" not in printed
    printed = run("zoo", "show", "mask_rcnn_R_50_FPN_3x")
    assert "model_final_f10217.pkl" in printed
    assert "did you mean" in run("zoo", "show", "mask_rcnn_R50_FPN", code=2)


def test_fetch(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []

    def get_local_path(url):
        fetched.append(url)
        if "Keypoints" in url:
            raise OSError("no route to host")
        (tmp_path / "cached").write_bytes(b"weights")
        return str(tmp_path / "cached")

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    printed = run("zoo", "fetch", "mask_rcnn_R_50_FPN_3x")
    assert "mask_rcnn_R_50_FPN_3x.pkl: trained weights of" in printed
    assert (tmp_path / "mask_rcnn_R_50_FPN_3x.pkl").read_bytes() == b"weights"
    assert fetched[0].endswith("mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl")
    assert "ImageNet weights" in run("zoo", "fetch", "mask_rcnn_R_50_FPN.py", "--output", "r50.pkl")
    assert fetched[1] == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    message = run("zoo", "fetch", "keypoint_rcnn_R_50_FPN_3x", code=1)
    assert "could not be fetched (no route to host)" in message
    assert "neither trained weights nor a file" in run("zoo", "fetch", "quickstart", code=2)


def test_names_without_folder_and_suffix():
    find = model_zoo.find_config
    assert (
        model_zoo.zoo_name(find("mask_rcnn_r_50_fpn")) == "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml"
    )
    assert model_zoo.zoo_name(find("cityscapes/mask_rcnn_R_50_FPN.py")) == "Cityscapes/mask_rcnn_R_50_FPN.py"
    # Of detectron2's zoo what ours does not have.
    assert (
        model_zoo.zoo_name(find("faster_rcnn_R_50_FPN_1x")) == "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    )
    with pytest.raises(ValueError, match="no file and no model 'x' in the zoo; `mrcnn-ext zoo list` has"):
        find("x")
