"""The yaml keys of mrcnn_ext."""

from detectron2.config import CfgNode

__all__ = ["add_mrcnn_ext_config", "with_defaults"]


def with_defaults(cfg: CfgNode) -> CfgNode:
    """``cfg`` with every key of mrcnn_ext that it does not have, so that a config made without
    `add_mrcnn_ext_config` means the same; ``cfg`` itself stays as it is."""
    cfg = cfg.clone()
    cfg.defrost()
    add_mrcnn_ext_config(cfg)
    cfg.freeze()
    return cfg


def add_mrcnn_ext_config(cfg: CfgNode) -> None:
    """Adds to ``cfg`` every key of mrcnn_ext that it does not have, with its default.

    Call it on ``get_cfg()`` before merging a file; a second call changes nothing.
    """
    # Any timm model as the backbone: MODEL.BACKBONE.NAME "build_timm_backbone" (one map, for C4),
    # "build_timm_fpn_backbone" or "build_timm_retinanet_fpn_backbone". MODEL.BACKBONE.FREEZE_AT works as for
    # detectron2's ResNet.
    timm = cfg.MODEL.setdefault("TIMM", CfgNode())
    # A name of timm.list_models().
    timm.setdefault("NAME", "resnet50")
    # Features to give, finest first. The number at the end is the base-two logarithm of the stride.
    timm.setdefault("OUT_FEATURES", ["res2", "res3", "res4", "res5"])
    # Start from timm's weights on the hub ...
    timm.setdefault("PRETRAINED", False)
    # ... or from a file: a timm checkpoint of the same model.
    timm.setdefault("WEIGHTS", "")
    # "" for the model's own normalisation; "FrozenBN" freezes every batch normalisation.
    timm.setdefault("NORM", "")
    # "auto": where INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD are detectron2's defaults, for the weights of its
    # ResNets, they become the timm model's, RGB; and where MODEL.WEIGHTS are ImageNet weights of its ResNets, training
    # starts from timm's instead. By mrcnn_ext.engine, which then says "config": as the config has them.
    timm.setdefault("INPUT", "auto")
    # Further arguments of the timm model: in a file any, {drop_path_rate: 0.1}; on the command line those
    # that the file has.
    timm.setdefault("ARGS", CfgNode(new_allowed=True))

    # Mask heads, MODEL.ROI_MASK_HEAD.NAME: "FCNMaskHead"; "BoundaryMaskHead", which finds the mask's boundary too;
    # "MLPMaskHead"; and "MaskScoringHead", one of the others with a score for its masks. CLS_AGNOSTIC_MASK works
    # for all.
    mask = cfg.MODEL.ROI_MASK_HEAD
    # Factor of loss_mask.
    mask.setdefault("LOSS_WEIGHT", 1.0)
    # "sigmoid": each class has a mask of its own; "softmax": classes and background compete for each pixel.
    mask.setdefault("ACTIVATION", "sigmoid")
    # FCNMaskHead: transposed convolutions. The side of the masks is POOLER_RESOLUTION times 2^NUM_DECONV: 14, 28,
    # 56, 112 for 0, 1, 2, 3 (with the ROI heads of C4 half of it). BoundaryMaskHead: half of that, so that
    # POOLER_RESOLUTION 28 gives the same.
    mask.setdefault("NUM_DECONV", 1)
    # FCNMaskHead: further bilinear upsampling of the logits; the paper's 1 is none.
    mask.setdefault("UP_SCALE", 1.0)
    # BoundaryMaskHead: convolutions of the boundary branch, factor of loss_mask_boundary.
    mask.setdefault("NUM_BOUNDARY_CONV", 2)
    mask.setdefault("BOUNDARY_LOSS_WEIGHT", 1.0)
    # MLPMaskHead: hidden layers, their width, and the side of the masks.
    mask.setdefault("NUM_FC", 2)
    mask.setdefault("FC_DIM", 1024)
    mask.setdefault("OUTPUT_SIZE", 28)
    # MaskScoringHead: the mask head within, factor of loss_mask_iou, and the network that predicts the IoU.
    mask_iou = mask.setdefault("MASK_IOU", CfgNode())
    mask_iou.setdefault("MASK_HEAD", "FCNMaskHead")
    mask_iou.setdefault("LOSS_WEIGHT", 1.0)
    mask_iou.setdefault("NUM_CONV", 4)
    mask_iou.setdefault("CONV_DIM", 256)
    mask_iou.setdefault("NUM_FC", 2)
    mask_iou.setdefault("FC_DIM", 1024)

    # Keypoint heads, MODEL.ROI_KEYPOINT_HEAD.NAME: "HeatmapKeypointHead" and "SimCCKeypointHead", and for videos
    # "ConvLSTMKeypointHead" and "UniPoseLSTMKeypointHead". All also read detectron2's CONV_DIMS, NUM_KEYPOINTS,
    # LOSS_WEIGHT and NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS.
    keypoint = cfg.MODEL.ROI_KEYPOINT_HEAD
    # Normalisation of the convolutions, a name of detectron2's get_norm; "" for none.
    keypoint.setdefault("NORM", "")
    # Target of a keypoint: a Gaussian of this standard deviation in cells of the heatmap, in bins for SimCC; 0 is
    # the one cell of the paper.
    keypoint.setdefault("TARGET_SIGMA", 0.0)
    # Part of the target that is spread evenly over each axis.
    keypoint.setdefault("LABEL_SMOOTHING", 0.0)
    # From heatmaps to keypoints: "stock" is detectron2's result; "dark" and "quadratic" are sub-pixel; "oks" is
    # the place of the highest expected object keypoint similarity (OKS), by the sigmas of TEST.KEYPOINT_OKS_SIGMAS,
    # of the dataset's metadata keypoint_oks_sigmas or, for 17 keypoints, of COCO; it ranks keypoints by that OKS.
    keypoint.setdefault("DECODING", "stock")
    # All but SimCCKeypointHead: bilinear upsampling of the heatmaps after the transposed convolution.
    keypoint.setdefault("UP_SCALE", 2.0)
    # All but SimCCKeypointHead: dilations of a waterfall of atrous convolutions, [1, 2, 4, 6] say; empty for none,
    # which UniPoseLSTMKeypointHead does not take.
    keypoint.setdefault("WASP_RATES", [])
    # SimCCKeypointHead: bins per cell of the pooled features.
    keypoint.setdefault("SPLIT_RATIO", 4)
    # ConvLSTMKeypointHead and UniPoseLSTMKeypointHead: channels of the LSTM's states; whether these, which lie over the
    # RoI of the frame before, are moved to where the RoI is; and of the latter head the convolutions after the LSTM.
    keypoint.setdefault("LSTM_DIM", 128)
    keypoint.setdefault("ALIGN_STATE", True)
    keypoint.setdefault("LSTM_CONVS", 2)
    # Our ROI heads: train the keypoint head on so many RoIs of an image at most, sampled among all proposals that
    # fit an object with keypoints; 0 is detectron2's way, those of the box head's positives that have keypoints.
    keypoint.setdefault("SAMPLES_PER_IMAGE", 0)
    # Our ROI heads: sides of the keypoint head's RoI over those of the box.
    keypoint.setdefault("BOX_SCALE", 1.0)

    # Our ROI heads: factor of loss_cls, beside detectron2's BBOX_REG_LOSS_WEIGHT.
    box = cfg.MODEL.ROI_BOX_HEAD
    box.setdefault("CLS_LOSS_WEIGHT", 1.0)
    # Of them too: "softmax" over classes and background, or "hinge", linear classifiers of one class against the rest.
    box.setdefault("CLASSIFIER", "softmax")
    # RCNNROIHeads: pixels of surroundings on each side of a crop, whose side is POOLER_RESOLUTION.
    box.setdefault("CONTEXT", 16)
    # CNNBoxHead, which R-CNN puts every crop through: the backbone, by its name as of MODEL.BACKBONE.NAME, and the map
    # of it that the head's layers take; at inference, crops that it takes together.
    cnn = box.setdefault("CNN", CfgNode())
    cnn.setdefault("NAME", "build_resnet_backbone")
    cnn.setdefault("FEATURE", "res4")
    cnn.setdefault("CROPS_AT_ONCE", 64)

    # MODEL.META_ARCHITECTURE "UniPose": names of the backbone's fine and coarse map (with a timm model and
    # MODEL.TIMM.ARGS {output_stride: 8}, res2 is of stride 4 and res3 the last one, of stride 8); the dilations of the
    # waterfall, its channels, those of the fine map in the decoder, and the normalisation. What it learns and how it is
    # decoded is in MODEL.ROI_KEYPOINT_HEAD.
    unipose = cfg.MODEL.setdefault("UNIPOSE", CfgNode())
    unipose.setdefault("LOW_FEATURE", "res2")
    unipose.setdefault("HIGH_FEATURE", "res3")
    unipose.setdefault("RATES", [6, 12, 18, 24])
    unipose.setdefault("DIM", 256)
    unipose.setdefault("LOW_DIM", 48)
    unipose.setdefault("NORM", "BN")

    # Images are people cut out by their boxes, one each, in training and in testing, as UniPose wants them: height and
    # width, sides over those of the box, and in training how far both scale and place vary.
    crops = cfg.INPUT.setdefault("PERSON_CROPS", CfgNode())
    crops.setdefault("ENABLED", False)
    crops.setdefault("SIZE", [256, 192])
    crops.setdefault("SCALE", 1.25)
    crops.setdefault("JITTER", 0.25)

    # Training losses on the data of DATASETS.TEST, stored as val/loss_* and val/total_loss every
    # TEST.EVAL_PERIOD iterations and after training.
    val_loss = cfg.setdefault("VAL_LOSS", CfgNode())
    val_loss.setdefault("ENABLED", True)
    # At most this many images, evenly spaced over the data; 0: all.
    val_loss.setdefault("MAX_IMAGES", 0)

    # Boundary AP beside mask AP, where the evaluator is COCO's.
    cfg.TEST.setdefault("BOUNDARY_AP", False)

    # After each evaluation of data in COCO's format, write OUTPUT_DIR/report_<dataset>.html: losses, average
    # precisions, confusions, calibration, the worst errors as pictures. Takes about as long as the evaluator.
    cfg.TEST.setdefault("REPORT", False)
    # After each evaluation, write OUTPUT_DIR/inference/<dataset>/results.{csv,md,png}: AP by size and class, of
    # Cityscapes under the published rows.
    cfg.TEST.setdefault("TABLES", True)

    # Experiment trackers that a training writes to besides TensorBoard: "wandb", "mlflow".
    cfg.setdefault("LOGGERS", [])

    # Show the training as bars and a table of losses where the standard output is a terminal; log files do not change.
    cfg.setdefault("TERMINAL_VIEW", True)

    # Data in COCO's format to register: [name, annotation file, image folder] each, and if need be a description of
    # what the file does not say, {names, keypoints, flip_pairs, skeleton, sigmas, colors} or the path of such a file;
    # see mrcnn_ext.data.description.
    cfg.DATASETS.setdefault("COCO_FORMAT", [])

    # Large-scale jitter (Ghiasi et al., CVPR 2021) in training instead of INPUT.MIN_SIZE_TRAIN and INPUT.CROP: an image
    # is resized by a factor between these, relative to a square of SIZE pixels that it would fill, and cropped or
    # padded to the square.
    lsj = cfg.INPUT.setdefault("LSJ", CfgNode())
    lsj.setdefault("ENABLED", False)
    lsj.setdefault("MIN_SCALE", 0.1)
    lsj.setdefault("MAX_SCALE", 2.0)
    lsj.setdefault("SIZE", 1024)
    # Brightness, contrast and saturation of training images are each multiplied by up to this much more or less than 1.
    cfg.INPUT.setdefault("COLOR_JITTER", 0.0)

    # Frames of a clip in training, for keypoint heads with a state: batches are SOLVER.IMS_PER_BATCH images in clips of
    # NUM_FRAMES frames of a video, STRIDE frames apart; 1: single images.
    clip = cfg.INPUT.setdefault("CLIP", CfgNode())
    clip.setdefault("NUM_FRAMES", 1)
    clip.setdefault("STRIDE", 1)

    # Copy-paste (Ghiasi et al., CVPR 2021) in training: objects of another image, augmented like the first, are pasted
    # into an image with this probability; 0 to all of them, at random, or to MAX_OBJECTS (0: no limit). Needs masks in
    # the data, even where MODEL.MASK_ON is False. The paper has INPUT.LSJ beside it.
    copy_paste = cfg.INPUT.setdefault("COPY_PASTE", CfgNode())
    copy_paste.setdefault("ENABLED", False)
    copy_paste.setdefault("PROBABILITY", 1.0)
    copy_paste.setdefault("MAX_OBJECTS", 0)

    # Before training, read every annotation and look at every image file of DATASETS.TRAIN and TEST.
    cfg.DATASETS.setdefault("CHECK", True)

    # Load whatever fits of MODEL.WEIGHTS. Otherwise a file of another architecture is an error.
    cfg.MODEL.setdefault("ALLOW_PARTIAL_WEIGHTS", False)

    # Start the classes of the training data from those of MODEL.WEIGHTS, a detector of other classes: by their names,
    # and where these differ by PAIRS, [["rider", "person"]] say, of a class of the data and one of the weights. The
    # classes of weights are known from checkpoints of this package, and for COCO's.
    classes = cfg.MODEL.setdefault("MAP_CLASSES", CfgNode())
    classes.setdefault("ENABLED", False)
    classes.setdefault("PAIRS", [])

    # Convolutions run channels-last, which is faster on most processors, on GPUs in half precision above all.
    cfg.MODEL.setdefault("CHANNELS_LAST", False)

    # Evaluate an accelerated copy of the model (mrcnn_ext.accelerate), in bf16 where the device has it.
    cfg.MODEL.setdefault("ACCELERATE", False)
    # Of that, 1x1 convolutions and linear layers in int8 on processors with AVX2: the file of a calibration
    # (model.acceleration.int8.save), or, as trainings need for their evaluations, the name of a dataset to calibrate
    # with.
    cfg.MODEL.setdefault("ACCELERATE_INT8", "")

    # Train the model accelerated: fused pooling, channels-last, and on the CPU faster convolutions, most of all
    # with SOLVER.AMP.ENABLED.
    cfg.MODEL.setdefault("ACCELERATE_TRAINING", False)

    # Compute the backbone's blocks again in the backward pass instead of keeping what is in them: less memory, and a
    # step takes about a third longer.
    cfg.MODEL.setdefault("ACTIVATION_CHECKPOINT", False)

    # "SGD", which is detectron2's, or "AdamW"; both take their rates and decays from SOLVER.
    cfg.SOLVER.setdefault("OPTIMIZER", "SGD")

    # Parts that a batch is cut into, run one after the other, whose gradients are added up: 1/N of the memory for N.
    # SOLVER.IMS_PER_BATCH over the number of processes must be a multiple of it.
    cfg.SOLVER.setdefault("ACCUMULATE", 1)

    # Fully sharded data parallelism (FSDP) in the place of DistributedDataParallel: each process keeps a part of the
    # weights, gradients and the optimiser's state.
    cfg.SOLVER.setdefault("SHARDED", False)

    # Iterations with a loss or gradient that is not finite which are skipped, in all; one more ends the training.
    cfg.SOLVER.setdefault("SKIP_NONFINITE", 0)

    # A moving average of the weights with this decay, 0.9999 say, is evaluated, saved, and loaded by whoever predicts
    # with the checkpoint; 0 for none.
    cfg.SOLVER.setdefault("EMA_DECAY", 0.0)

    # Evaluations (TEST.EVAL_PERIOD) without improvement of CHECKPOINT.BEST after which training ends; 0: never.
    cfg.SOLVER.setdefault("PATIENCE", 0)

    # Newest checkpoints of SOLVER.CHECKPOINT_PERIOD that are kept, besides the final and the best one; 0: all.
    checkpoint = cfg.setdefault("CHECKPOINT", CfgNode())
    checkpoint.setdefault("KEEP", 0)
    # A metric of the evaluation by its name in metrics.json, "segm/AP" say, or a validation loss, "val/total_loss":
    # the best checkpoint by it is saved as model_best.pth. With several test sets the name begins with the set's.
    checkpoint.setdefault("BEST", "")
