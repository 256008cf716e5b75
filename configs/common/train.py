from mrcnn_ext.model_zoo import detectron2_zoo

train = detectron2_zoo.get_config("common/train.py").train
train.max_iter = 160000
train.eval_period = 0  # once, after training
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.val_loss = dict(enabled=True, max_images=0)
train.allow_partial_weights = False
train.map_classes = dict(enabled=False, pairs=[])  # as MODEL.MAP_CLASSES
train.check_datasets = True  # before training
train.seed = -1  # random
train.cudnn_benchmark = False
train.float32_precision = ""  # as torch.set_float32_matmul_precision; "" leaves it
train.channels_last = False
train.accelerate = False  # evaluate an accelerated copy of the model
train.accelerate_int8 = (
    ""  # of that, 1x1 and linear layers in int8: a calibration's file, or a dataset's name
)
train.accelerate_training = False  # train the model accelerated, on the CPU above all
train.timm_input = "auto"  # "config" takes timm's weights with other images than those of their training
train.reference_world_size = (
    0  # processes that batch and learning rate are for, which follow their number; 0: any
)
train.accumulate = 1  # parts that a batch is cut into, whose gradients are added up
train.skip_nonfinite = 0  # iterations with losses or gradients that are not finite which are skipped, in all
train.ema_decay = 0.0  # of a moving average of the weights; 0: none
train.patience = 0  # evaluations without improvement after which training ends; 0: never
train.checkpointer.best = ""  # metric by which the best checkpoint is kept, "segm/AP" say
train.tables = True  # inference/<dataset>/results.{csv,md,png} after each evaluation
train.report = False  # an HTML page about each evaluation by our evaluator
train.loggers = []  # experiment trackers besides TensorBoard: "wandb", "mlflow"
train.terminal_view = True  # bars and losses where the output is a terminal
