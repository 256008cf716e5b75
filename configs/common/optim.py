from mrcnn_ext.model_zoo import detectron2_zoo

SGD = detectron2_zoo.get_config("common/optim.py").SGD
