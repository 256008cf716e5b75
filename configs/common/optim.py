from mrcnn_ext.model_zoo import detectron2_zoo

_optim = detectron2_zoo.get_config("common/optim.py")
SGD = _optim.SGD
AdamW = _optim.AdamW
