from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.model_zoo import detectron2_zoo

dataloader = detectron2_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
dataloader.evaluator._target_ = COCOEvaluator
