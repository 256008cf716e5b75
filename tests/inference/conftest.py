"""A small model of all tasks, whose random weights find something, and scenes to predict for."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("detectron2") is not None:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.modeling import build_model

    from mrcnn_ext.config_files import get_config_file
    from mrcnn_ext.data import register_scenes
    from mrcnn_ext.engine import load_config
    from mrcnn_ext.scenes import write_dataset

NUM_IMAGES = 7
OPTIONS = (
    *("MODEL.TIMM.ARGS.channels", "[8, 16, 16, 32]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Name of a registered dataset of NUM_IMAGES street scenes."""
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    write_dataset(root, "easy", num_train=0, num_val=NUM_IMAGES, formats=["coco"])
    before = set(DatasetCatalog.list())
    register_scenes(str(root), "inference")
    yield "inference_val"
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of `cfg`'s model."""
    torch.manual_seed(0)
    model = build_model(load_config(get_config_file("quickstart.yaml"), OPTIONS))
    for key, value in model.state_dict().items():
        if key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
            value.mul_(20)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="session")
def s3():
    """A client of a local S3 server, which the environment's credentials and address lead to."""
    server_module = pytest.importorskip(
        "moto.server", reason="needs 'moto[s3]' and flask-cors", exc_type=ImportError
    )
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def make_cfg(scenes, weights):
    def make(*opts):
        options = (*OPTIONS, "MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{scenes}',)", *opts)
        return load_config(get_config_file("quickstart.yaml"), options)

    return make


@pytest.fixture
def cfg(make_cfg):
    return make_cfg()
