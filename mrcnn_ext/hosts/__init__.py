"""The networks and operators of mrcnn_ext.layers inside the detectors of frameworks other than detectron2."""
