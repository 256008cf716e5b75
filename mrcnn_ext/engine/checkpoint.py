"""Checkpoints that a kill cannot corrupt and that are checked against the model they are loaded into."""

import contextlib
import os
import pickle

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .errors import UserError

__all__ = ["Checkpointer"]


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with atomic saves and a check of what is loaded.

    A checkpoint and the ``last_checkpoint`` file are written beside their place and then moved there: at any
    moment ``last_checkpoint`` names a complete file.

    Args:
        model, save_dir, checkpointables: as :class:`detectron2.checkpoint.DetectionCheckpointer`.
        allow_partial (bool): load whatever fits. By default a file of another architecture is an error.
    """

    # Tensors of the file that may be without a place in the model: a mask head, predictors of other classes.
    MAX_UNUSED = 0.2
    # Tensors of the backbone that may be missing from a file that has some of them.
    MAX_MISSING_IN_BACKBONE = 0.2

    def __init__(self, model, save_dir="", *, allow_partial=False, **kwargs):
        super().__init__(model, save_dir, **kwargs)
        self._allow_partial = allow_partial
        self._file = None

    def save(self, name, **kwargs):
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with _replacing(path) as f:
            torch.save(data, f)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename):
        with _replacing(os.path.join(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename.encode())

    def load(self, path, *args, **kwargs):
        """As detectron2's.

        Raises:
            UserError: no such file, not a checkpoint, or one of another architecture.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"weights file not found: {path}")
        self._file = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # detectron2 forgets to, after an error, and then refuses to load anything else.
            self._parsed_url_during_load = None

    def _load_file(self, filename):
        try:
            return super()._load_file(filename)
        # What torch.load and pickle raise for a file that is cut short, or no checkpoint at all.
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise UserError(f"{self._file}: {_reason(error)}") from error

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        if not self._allow_partial:
            self._check(incompatible)
        return incompatible

    def _check(self, incompatible):
        unused = [key for key in incompatible.unexpected_keys if not key.endswith("num_batches_tracked")]
        misshapen = [key for key, _, _ in incompatible.incorrect_shapes]
        absent = {*incompatible.missing_keys, *misshapen}
        wanted = [key for key in self.model.state_dict() if not key.endswith("num_batches_tracked")]
        loaded = [key for key in wanted if key not in absent]

        reasons = []
        num_unused = len(unused) + len(misshapen)
        if num_unused > self.MAX_UNUSED * (num_unused + len(loaded)):
            total = num_unused + len(loaded)
            reasons.append(f"{num_unused} of its {total} tensors have no place in the model")
        backbone = [key for key in wanted if key.startswith("backbone.bottom_up.")]
        backbone = backbone or [key for key in wanted if key.startswith("backbone.")]
        num_missing = sum(key in absent for key in backbone)
        if self.MAX_MISSING_IN_BACKBONE * len(backbone) < num_missing < len(backbone):
            reasons.append(f"it lacks {num_missing} of the {len(backbone)} tensors of the model's backbone")
        if not reasons:
            return

        examples = [
            f"{key} is {tuple(theirs)} in the file, {tuple(ours)} in the model"
            for key, theirs, ours in incompatible.incorrect_shapes[:3]
        ]
        examples += [f"{key} is not in the model" for key in unused[:3]]
        examples += [f"{key} is not in the file" for key in incompatible.missing_keys[:3]]
        raise UserError(
            f"{self._file} is a checkpoint of another architecture: {' and '.join(reasons)} "
            f"({'; '.join(examples[:4])}). To load what fits, set MODEL.ALLOW_PARTIAL_WEIGHTS True "
            "(LazyConfig: train.allow_partial_weights=True)"
        )


@contextlib.contextmanager
def _replacing(path):
    """Open a binary file that takes the place of ``path`` when it is closed without an error."""
    temporary = path + ".tmp"
    try:
        with open(temporary, "wb") as f:
            yield f
            # Its content must be on the disk before its name is, or a power cut leaves an empty file.
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.remove(temporary)
        raise


def _reason(error):
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            "holds Python objects besides tensors, which torch.load refuses; if you trust the file, "
            'save its weights alone: torch.save(torch.load(FILE, weights_only=False)["model"], NEW_FILE)'
        )
    return f"not a checkpoint, or damaged ({type(error).__name__})"
