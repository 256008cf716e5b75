"""Inference over many images, with reading, model and writing overlapped."""

from .models import LoadedModel, load_predictor
from .run import predict, predictions
from .sources import open_source

__all__ = ["LoadedModel", "load_predictor", "open_source", "predict", "predictions"]
