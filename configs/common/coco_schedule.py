"""detectron2's schedules for COCO: 1x and 3x, 16 images an iteration."""

from .schedule import multi_step

_MILESTONES = {"1x": (60000, 80000, 90000), "3x": (210000, 250000, 270000)}


def schedule(name, train, dataloader=None):
    """Sets the iterations of a training, and its image sizes as detectron2's zoo has them.

    Args:
        name: "1x" or "3x".
        train, dataloader: of the LazyConfig; None leaves the image sizes alone.

    Returns:
        the ``lr_multiplier``.
    """
    *steps, train.max_iter = _MILESTONES[name]
    if dataloader is not None:
        dataloader.train.mapper.augmentations[0].update(
            short_edge_length=(640, 672, 704, 736, 768, 800), sample_style="choice"
        )
    return multi_step(*steps, max_iter=train.max_iter)
