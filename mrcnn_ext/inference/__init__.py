"""Inference over many images, with reading, model and writing overlapped."""

from .models import LoadedModel, load_predictor
from .ray_data import RayOptions
from .run import predict, predictions
from .sources import open_source

__all__ = ["LoadedModel", "RayOptions", "load_predictor", "open_source", "predict", "predictions"]
