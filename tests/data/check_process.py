"""One of two processes that check datasets together, for a server that has imported everything."""

import logging
import threading

import torch.distributed as dist
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances

import mrcnn_ext
from mrcnn_ext.data import check_dataset, images
from mrcnn_ext.engine import check_config

EVERYTHING = {"num_classes": 2, "needs_masks": True, "workers": 2}


def check_together(rank, store, queue, cases):
    """Puts what it finds of each case into a queue: (rank, number of the case, (what was logged and raised, the files
    that were looked at, what `check_config` raised)).

    Args:
        rank: 0 or 1; None: alone.
        store: a file by which the processes meet.
        queue: takes the answers.
        cases: (name, annotation file of each process, folder of the images).
    """
    if rank is not None:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    looked, told, lock = [], [], threading.Lock()
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("mrcnn_ext").addHandler(handler)
    look = images.check_image_file

    def counting(path, **options):
        with lock:
            looked.append(path)
        return look(path, **options)

    images.check_image_file = counting
    for number, (name, files, folder) in enumerate(cases):
        register_coco_instances(name, {}, files[rank or 0], folder)
        del looked[:], told[:]
        try:
            check_dataset(name, **EVERYTHING, sharded=True)
        except (ValueError, FileNotFoundError) as error:
            told += [type(error).__name__, str(error)]
        here, found = sorted(looked), list(told)
        cfg = get_cfg()
        mrcnn_ext.add_mrcnn_ext_config(cfg)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        cfg.MODEL.MASK_ON = True
        cfg.OUTPUT_DIR = folder
        config = ""
        try:
            check_config(cfg)
        except ValueError as error:
            config = str(error)
        queue.put((rank, number, (found, here, config)))
    if rank is not None:
        dist.destroy_process_group()
