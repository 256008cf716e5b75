# Second step: one pass of the network over the image, from which every external proposal is pooled. The proposals are
# made beforehand: mrcnn-ext datasets proposals coco_2017_train, and the same for coco_2017_val.
from mrcnn_ext.data import get_detection_dataset_dicts

from .faster_rcnn_R_50 import dataloader, lr_multiplier, model, optimizer, train

model.proposal_generator = None
for _loader, _split in ((dataloader.train, "train"), (dataloader.test, "val")):
    _loader.dataset._target_ = get_detection_dataset_dicts
    _loader.dataset.proposal_files = [f"datasets/proposals/coco_2017_{_split}.pkl"]
    _loader.mapper.precomputed_proposal_topk = 2000
