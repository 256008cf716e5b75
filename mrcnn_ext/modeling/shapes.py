"""What heads ask of the features that they are built for."""

from detectron2.layers import ShapeSpec

__all__ = ["pooled_size"]


def pooled_size(head: str, input_shape: ShapeSpec) -> tuple[int, int]:
    """Height and width of the pooled features.

    Args:
        head: name of the head, for the error.

    Raises:
        ValueError: ``input_shape`` has none.
    """
    if input_shape.height is None or input_shape.width is None:
        raise ValueError(
            f"{head}: input_shape needs the height and width of the pooled features, got {input_shape}"
        )
    return input_shape.height, input_shape.width
