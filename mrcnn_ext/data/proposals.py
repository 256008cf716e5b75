"""Files of precomputed object proposals, in detectron2's format: written, read and added to datasets.

Needs no detectron2.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ..files import replacing
from .plain_pickle import HoldsCodeError, load_plain

__all__ = ["add_proposals", "proposal_file", "proposal_recall", "read_proposals", "write_proposals"]

# Keys of today and of Detectron's files, and detectron2's BoxMode by its numbers.
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}
_XYXY, _XYWH = 0, 1


def proposal_file(dataset: str) -> str:
    """Where the proposals of a dataset lie if nothing else is said: ``$DETECTRON2_DATASETS/proposals``."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return os.path.join(root, "proposals", f"{dataset}.pkl")


def write_proposals(
    path: str | os.PathLike,
    ids: Sequence[int | str],
    boxes: Sequence[np.ndarray],
    objectness_logits: Sequence[np.ndarray],
    about: dict[str, Any] | None = None,
) -> None:
    """Writes a file as ``detectron2.data.load_proposals_into_dataset`` reads it; it appears whole or not at all.

    Args:
        path: ends with .pkl.
        ids: of the images.
        boxes: of each image (N, 4): x0, y0, x1, y1 in pixels of the image.
        objectness_logits: of each image (N,); higher is better.
        about: plain values to keep with it, which detectron2 does not look at.
    """
    content = {
        "ids": list(ids),
        "boxes": [np.ascontiguousarray(b, dtype=np.float32) for b in boxes],
        "objectness_logits": [np.ascontiguousarray(v, dtype=np.float32) for v in objectness_logits],
        "bbox_mode": _XYXY,
        "about": about or {},
    }
    with replacing(path) as file:
        pickle.dump(content, file, protocol=4)


def read_proposals(path: str | os.PathLike) -> dict[str, Any]:
    """A file in detectron2's or Detectron's format, without running what a pickle may hold.

    Returns:
        ``ids``, ``boxes`` (N, 4) of each image in pixels, x0, y0, x1, y1, ``objectness_logits`` (N,) of each, best
        first, and ``about``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file.
    """
    with open(path, "rb") as file:
        try:
            return _arranged(load_plain(file), path)
        except HoldsCodeError as error:
            raise ValueError(
                f"{path} holds code ({error}) besides proposals, which would run when it is read; it was not read"
            ) from None
        except (_WrongProposals, OSError):
            raise
        except Exception as error:  # unpickling something else, or its values, fails in any way
            raise ValueError(f"{path}: no file of proposals, or damaged ({type(error).__name__})") from error


class _WrongProposals(ValueError):
    """Says itself what is wrong."""


def _arranged(content: Any, path) -> dict[str, Any]:
    """What `read_proposals` returns, of what the file holds."""
    if isinstance(content, dict):
        content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    wanted = ("ids", "boxes", "objectness_logits")
    if not isinstance(content, dict) or any(key not in content for key in wanted):
        raise _WrongProposals(f"{path}: a file of proposals is a dict of {', '.join(wanted)} and bbox_mode")
    if len({len(content[key]) for key in wanted}) != 1:
        counts = ", ".join(f"{len(content[key])} {key}" for key in wanted)
        raise _WrongProposals(f"{path}: it must have as many of each, got {counts}")
    mode = int(content.get("bbox_mode", _XYXY))
    if mode not in (_XYXY, _XYWH):
        raise _WrongProposals(f"{path}: bbox_mode must be 0 (XYXY_ABS) or 1 (XYWH_ABS), got {mode}")
    boxes, logits = [], []
    for image, of, scores in zip(*(content[key] for key in wanted), strict=True):
        of, scores = np.asarray(of, dtype=np.float64).reshape(-1, 4), np.asarray(scores).reshape(-1)
        if len(of) != len(scores):
            raise _WrongProposals(
                f"{path}, image {image}: {len(of)} boxes and {len(scores)} objectness_logits"
            )
        if mode == _XYWH:
            of = np.concatenate([of[:, :2], of[:, :2] + of[:, 2:]], axis=1)
        order = np.argsort(-scores, kind="stable")
        boxes.append(of[order])
        logits.append(scores[order])
    about = content.get("about", {})
    return {"ids": list(content["ids"]), "boxes": boxes, "objectness_logits": logits, "about": about}


def add_proposals(dicts: list[dict], path: str | os.PathLike, dataset: str) -> list[dict]:
    """Copies of a dataset's dicts with ``proposal_boxes``, ``proposal_objectness_logits`` and ``proposal_bbox_mode``.

    An image for which there is no proposal gets one, of the whole image.

    Args:
        dicts: with ``image_id``, ``height`` and ``width``.
        path: of `read_proposals`.
        dataset: its name, for errors.

    Raises:
        ValueError: the file is missing, wrong, or has nothing on some of the images.
    """
    from detectron2.structures import BoxMode

    how = f"make them with: mrcnn-ext datasets proposals {dataset} {path}"
    try:
        content = read_proposals(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file of proposals {path} for dataset {dataset!r}; {how}") from None
    places = {str(image): k for k, image in enumerate(content["ids"])}
    missing = [record for record in dicts if str(record["image_id"]) not in places]
    if missing:
        raise ValueError(
            f"{path} has no proposals for {len(missing)} of the {len(dicts)} images of dataset {dataset!r}, "
            f"{missing[0]['file_name']} (id {missing[0]['image_id']}) among them: is it of "
            f"another dataset? If not, {how}"
        )
    result = []
    for record in dicts:
        place = places[str(record["image_id"])]
        boxes, logits = content["boxes"][place], content["objectness_logits"][place]
        if len(boxes) == 0:
            boxes, logits = np.array([[0.0, 0.0, record["width"], record["height"]]]), np.zeros(1)
        result.append(
            {
                **record,
                "proposal_boxes": boxes,
                "proposal_objectness_logits": logits.astype(np.float32),
                "proposal_bbox_mode": BoxMode.XYXY_ABS,
            }
        )
    return result


def proposal_recall(
    dicts: list[dict], content: dict[str, Any], counts: Sequence[int | None], iou: float = 0.5
) -> list[float]:
    """Parts of the objects, without crowds, that have a proposal of this intersection over union among the best so
    many of their image.

    Args:
        dicts: a dataset with annotations whose boxes are in pixels.
        content: as of `read_proposals`.
        counts: proposals of an image; None for all.
        iou: that counts as found.

    Returns:
        A part for each of ``counts``; NaN where there are no objects.
    """
    from detectron2.structures import BoxMode

    places = {str(image): k for k, image in enumerate(content["ids"])}
    found, total = [0] * len(counts), 0
    for record in dicts:
        objects = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record.get("annotations", ())
            if not a.get("iscrowd", 0)
        ]
        boxes = content["boxes"][places[str(record["image_id"])]]
        total += len(objects)
        if not objects or len(boxes) == 0:
            continue
        overlaps = box_iou(torch.tensor(objects, dtype=torch.float64), torch.from_numpy(boxes).double())
        for k, count in enumerate(counts):
            found[k] += int((overlaps[:, :count].max(dim=1).values >= iou).sum())
    return [part / total if total else float("nan") for part in found]
