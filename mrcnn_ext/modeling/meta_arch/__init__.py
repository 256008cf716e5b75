"""Meta-architectures registered with detectron2's META_ARCH_REGISTRY."""

from .unipose import UniPose, UniPoseHead

__all__ = ["UniPose", "UniPoseHead"]
