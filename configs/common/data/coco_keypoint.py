from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.model_zoo import detectron2_zoo

dataloader = detectron2_zoo.get_config("common/data/coco_keypoint.py").dataloader
dataloader.train.mapper.augmentations[0].update(short_edge_length=(640, 800), sample_style="range")
dataloader.evaluator._target_ = COCOEvaluator
