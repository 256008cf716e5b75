"""Keypoint heads that carry a state from one frame of a video to the next, for detectron2."""

from collections.abc import Callable

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from ...accel import KernelPolicy, fuse_traced
from ...config import with_defaults
from ...layers.boxes import move_maps
from ...layers.temporal_networks import ConvLSTMKeypointNetwork, UniPoseLSTMNetwork
from ..norms import norm_maker
from ..tracks import TrackStates, track_steps
from .base import KeypointHead

__all__ = ["ConvLSTMKeypointHead", "TemporalKeypointHead", "UniPoseLSTMKeypointHead"]

# Layers that HeatmapKeypointHead has too, and where they are in the networks.
_RENAMED = (
    ("conv_fcn", "network.convs.conv_fcn"),
    ("wasp.", "network.wasp."),
    ("score_lowres.", "network.score_lowres."),
)


class TemporalKeypointHead(KeypointHead):
    """Base of keypoint heads over the RoI features of tracks.

    In training the images of a batch may be the frames of clips, in order: RoIs of the same ``gt_track_ids`` follow
    each other (`mrcnn_ext.data.ClipMapper` and `mrcnn_ext.data.build_clip_train_loader` make such batches). At
    inference the frames of a video are a stream within `mrcnn_ext.modeling.streaming`, with a state for each track; the
    instances get ``track_ids`` (N,) int64 then, 0 for what has no track. Without either every image is by itself.

    Checkpoints of `HeatmapKeypointHead` and of detectron2's KRCNNConvDeconvUpsampleHead load into the layers that are
    like theirs.

    Args:
        network: as those of `mrcnn_ext.layers.temporal_networks`: ``features``, ``initial_state`` and ``step``,
            ``state_channels`` and ``state_scales``.
        align_state: move the state, which lies over the RoI of the frame before, to where the RoI is now. Boxes follow
            what is seen of an object, and the detector's noise. Otherwise it is taken as it lies in the RoI.
        kwargs: those of `KeypointHead`.

    Attributes:
        stream: states of the tracks of a video; None outside of `streaming`.
    """

    def __init__(self, network: nn.Module, *, align_state: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        self.align_state = align_state
        self.stream: TrackStates | None = None

    def layers(self, x):
        """Heatmaps of RoIs with no frame before them."""
        return self.network(x)[0]

    @torch.jit.unused
    def heatmaps(self, x: Tensor, instances: list[Instances]) -> Tensor:
        """Heatmaps of the RoIs of images, or of frames in order."""
        if not self.training:
            return self.layers(x) if self.stream is None else self._of_stream(x, instances, self.stream)
        # Images without objects have no ground truth.
        if all(image.has("gt_track_ids") for image in instances if len(image) > 0):
            return self._of_clips(x, instances)
        return self.layers(x)

    @torch.jit.unused
    def first_state(self, features: Tensor, boxes: Tensor) -> list[Tensor]:
        """What `next_step` takes for tracks that begin: the network's state before the first frame, and the RoIs.

        Args:
            features: (R, D, H, W), of the network.
            boxes: (R, 4), the RoIs.
        """
        return [*self.network.initial_state(features), boxes]

    @torch.jit.unused
    def next_step(self, features: Tensor, boxes: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A frame of each of R tracks.

        Args:
            features: (R, D, H, W), of the network.
            boxes: (R, 4), the RoIs.
            state: what the frame before gave, or `first_state`: the network's, and the RoIs it lies over.

        Returns:
            (R, K, S_h, S_w) heatmap logits, and the state after the frame.
        """
        *maps, before = state
        if self.align_state:
            maps = self._moved(maps, before, boxes)
        heatmaps, maps = self.network.step(features, maps)
        return heatmaps, [*maps, boxes]

    def _moved(self, maps: list[Tensor], before: Tensor, boxes: Tensor) -> list[Tensor]:
        """Those of one size together: the places to sample at are the same."""
        channels, scales = self.network.state_channels, self.network.state_scales
        moved: dict[int, Tensor] = {}
        for scale in sorted(set(scales)):
            same = [k for k, own in enumerate(scales) if own == scale]
            together = move_maps(torch.cat([maps[k] for k in same], dim=1), before, boxes)
            parts = together.split([channels[k] for k in same], dim=1)
            moved.update(zip(same, parts, strict=True))
        return [moved[k] for k in range(len(maps))]

    def _of_clips(self, x, instances):
        tracks = [
            image.gt_track_ids if len(image) > 0 else torch.zeros(0, dtype=torch.int64) for image in instances
        ]
        steps = track_steps(tracks)
        if len(steps) < 2:
            return self.layers(x)
        features, results, state = self.network.features(x), [], None
        boxes = torch.cat([image.proposal_boxes.tensor for image in instances])
        for rows, parents in steps:
            rows, parents = rows.to(x.device), parents.to(x.device)
            frame = features[rows], boxes[rows]
            state = self.first_state(*frame) if state is None else [part[parents] for part in state]
            heatmaps, state = self.next_step(*frame, state)
            results.append(heatmaps)
        places = torch.cat([rows for rows, _ in steps]).argsort()
        return torch.cat(results)[places.to(x.device)]

    def _of_stream(self, x, instances, stream):
        features, results = self.network.features(x), []
        for image, frame in zip(instances, features.split([len(image) for image in instances]), strict=True):
            boxes = image.pred_boxes.tensor
            tracks, state = stream.track(image), self.first_state(frame, boxes)
            if tracks is not None:
                state = stream.gather(tracks, state)
            heatmaps, state = self.next_step(frame, boxes, state)
            results.append(heatmaps)
            if tracks is not None:
                stream.put(tracks, state)
                numbers = [track or 0 for track in tracks]
                image.track_ids = torch.tensor(numbers, dtype=torch.int64, device=x.device)
        return torch.cat(results)

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "TemporalKeypointHead | None":
        """As a rule of `mrcnn_ext.accel` does: what the network does in a frame, with the state and without."""
        fused = [
            fuse_traced(self.network, policy, "features"),
            fuse_traced(self.network, policy, "step", float32=True),
        ]
        return self if any(part is not None for part in fused) else None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name in list(state_dict):
            for theirs, ours in _RENAMED:
                if name.startswith(prefix + theirs):
                    state_dict[prefix + ours + name[len(prefix + theirs) :]] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _LSTMKeypointHead(TemporalKeypointHead):
    """What both heads have in common: a network of `mrcnn_ext.layers.temporal_networks`, made from a shape or a config.

    Attributes:
        make_network: the class of the network.
    """

    make_network: type[nn.Module]

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_keypoints: int,
        conv_dims,
        conv_norm: str | Callable = "",
        hidden_channels: int = 128,
        up_scale: float = 2.0,
        wasp_rates=(),
        num_lstm_convs: int = 2,
        **kwargs,
    ):
        network = self.make_network(
            input_shape.channels,
            num_keypoints,
            list(conv_dims),
            norm_maker(conv_norm),
            hidden_channels=hidden_channels,
            up_scale=up_scale,
            wasp_rates=list(wasp_rates),
            num_convs=num_lstm_convs,
        )
        super().__init__(network, num_keypoints=num_keypoints, **kwargs)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": head.CONV_DIMS,
            "conv_norm": head.NORM,
            "hidden_channels": head.LSTM_DIM,
            "align_state": head.ALIGN_STATE,
            "up_scale": head.UP_SCALE,
            "wasp_rates": head.WASP_RATES,
            "num_lstm_convs": head.LSTM_CONVS,
        }


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class ConvLSTMKeypointHead(_LSTMKeypointHead):
    """`ConvLSTMKeypointNetwork` as a keypoint head: features and heatmaps are carried from frame to frame, as in LSTM
    Pose Machines.

    Args:
        input_shape: of the pooled features; only its channels matter.
        num_keypoints: heatmaps per RoI.
        conv_dims: output channels of each 3x3 convolution before the LSTM.
        conv_norm: normalisation of the convolutions: a name of detectron2's get_norm ("" for none, "BN", "GN",
            "SyncBN", ...) or a callable that makes the layer from a channel count.
        hidden_channels: of the LSTM.
        up_scale: bilinear upsampling of the heatmaps after the transposed convolution.
        wasp_rates: dilations of a waterfall of atrous convolutions before the LSTM; empty for none.
        num_lstm_convs: 3x3 convolutions after the LSTM.
        kwargs: those of `TemporalKeypointHead`.
    """

    make_network = ConvLSTMKeypointNetwork


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class UniPoseLSTMKeypointHead(_LSTMKeypointHead):
    """`UniPoseLSTMNetwork` as a keypoint head: a waterfall's features and the last frame's heatmaps go into the LSTM,
    and convolutions follow it.

    Args:
        input_shape: of the pooled features; only its channels matter.
        wasp_rates: dilations of the waterfall; at least one.
        kwargs: the others of `ConvLSTMKeypointHead`.

    Raises:
        ValueError: ``wasp_rates`` is empty.
    """

    make_network = UniPoseLSTMNetwork

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, wasp_rates=(1, 2, 4, 6), **kwargs):
        if not len(wasp_rates):
            raise ValueError(
                "UniPoseLSTMKeypointHead has a waterfall of atrous convolutions: give the dilations in wasp_rates, "
                "MODEL.ROI_KEYPOINT_HEAD.WASP_RATES, [1, 2, 4, 6] say"
            )
        super().__init__(input_shape, wasp_rates=wasp_rates, **kwargs)
