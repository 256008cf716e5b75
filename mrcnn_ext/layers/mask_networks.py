"""The mask branches of Mask R-CNN as plain networks."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .conv import ConvNormReLU, msra_fill

__all__ = ["BoundaryMaskNetwork", "FCNMaskNetwork", "MLPMaskNetwork"]


class FCNMaskNetwork(nn.Sequential):
    """The fully convolutional mask branch (Mask R-CNN, figure 4): 3x3 convolutions, a 2x2 transposed
    convolution with stride 2, a 1x1 convolution to one map of logits per class.

    (R, in_channels, H, W) pooled features -> (R, num_classes, s H, s W) logits, s = 2^num_deconv up_scale.

    Shapes and initialisation are the paper's; the parameters are called ``mask_fcn1..``, ``deconv`` and
    ``predictor`` as in detectron2, whose checkpoints load as they are.

    Args:
        in_channels: channels of the pooled features.
        num_classes: masks per RoI, K; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution and, last, of the transposed convolutions. The
            paper's FPN head is five times 256, its C4 head one 256.
        norm: makes the normalisation layer of a 3x3 convolution from its channel count; None for none.
        up_scale: further bilinear upsampling of the logits; 1 for none, which is the paper's.
        num_deconv: transposed convolutions, one after the other; the paper's is 1. From 14x14 features 0, 1, 2
            and 3 give masks of 14, 28, 56 and 112.

    Raises:
        ValueError: if ``conv_dims`` is empty or ``num_deconv`` negative.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        conv_dims: Sequence[int] = (256, 256, 256, 256, 256),
        norm: Callable[[int], nn.Module] | None = None,
        up_scale: float = 1.0,
        num_deconv: int = 1,
    ):
        super().__init__()
        _check_layers(conv_dims, num_deconv)
        for index, dim in enumerate(conv_dims[:-1], start=1):
            self.add_module(f"mask_fcn{index}", ConvNormReLU(in_channels, dim, norm))
            in_channels = dim
        for index in range(1, num_deconv + 1):
            name = "deconv" if index == 1 else f"deconv{index}"
            self.add_module(name, nn.ConvTranspose2d(in_channels, conv_dims[-1], kernel_size=2, stride=2))
            self.add_module(f"{name}_relu", nn.ReLU())
            in_channels = conv_dims[-1]
        self.predictor = nn.Conv2d(in_channels, num_classes, kernel_size=1)
        if up_scale != 1:
            self.upsample = nn.Upsample(scale_factor=float(up_scale), mode="bilinear", align_corners=False)
        # All layers first, then their weights: a seed gives the weights that it gives detectron2's head.
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer is not self.predictor:
                msra_fill(layer)
        predictor_fill(self.predictor)


class MLPMaskNetwork(nn.Sequential):
    """The mask branch of fully connected layers that the paper lays beside the convolutional one (Mask R-CNN,
    table 2e): fully connected layers with ReLU, then one that gives every pixel of every class.

    (R, C, H, W) pooled features of ``input_size`` -> (R, num_classes, output_size, output_size) logits.

    Args:
        input_size: C, H and W of the pooled features.
        num_classes: masks per RoI, K; 1 for class-agnostic masks.
        fc_dims: width of each hidden layer; the paper's are twice 1024, and thrice.
        output_size: side of the masks.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        num_classes: int,
        fc_dims: Sequence[int] = (1024, 1024),
        output_size: int = 28,
    ):
        super().__init__()
        channels, height, width = input_size
        self.flatten = nn.Flatten()
        in_features = channels * height * width
        for index, dim in enumerate(fc_dims, start=1):
            layer = nn.Linear(in_features, dim)
            # By fan in, as Caffe2's XavierFill does, which detectron2 uses for fully connected layers.
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            self.add_module(f"fc{index}", layer)
            self.add_module(f"fc_relu{index}", nn.ReLU())
            in_features = dim
        self.predictor = nn.Linear(in_features, num_classes * output_size**2)
        predictor_fill(self.predictor)
        self.to_masks = nn.Unflatten(1, (num_classes, output_size, output_size))


class BoundaryMaskNetwork(nn.Module):
    """A mask branch with a branch beside it that finds the mask's boundary, each feeding the other (Cheng et al.,
    Boundary-preserving Mask R-CNN, ECCV 2020, section 3).

    (R, in_channels, H, W) pooled features -> (R, num_classes, s H, s W) logits of the masks and (R, 1, s H, s W)
    logits of their boundaries, s = 2^(num_deconv - 1); H and W are even.

    The mask branch takes the features at half their resolution, the boundary branch comes down to it by a
    convolution. In the paper the boundary branch sees the finest level of the pyramid alone, here that of the
    RoI, at twice the usual resolution.

    Args:
        in_channels: channels of the pooled features.
        num_classes: masks per RoI, K; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution of the mask branch and, last, of the transposed
            convolutions of both.
        norm: makes the normalisation layer of a 3x3 convolution with stride 1 from its channel count; None for
            none.
        num_boundary_conv: 3x3 convolutions of the boundary branch with stride 1.
        num_deconv: transposed convolutions, one after the other. From 28x28 features 0, 1, 2 and 3 give masks of
            14, 28, 56 and 112.

    Raises:
        ValueError: if ``conv_dims`` is empty or ``num_deconv`` negative.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        conv_dims: Sequence[int] = (256, 256, 256, 256, 256),
        norm: Callable[[int], nn.Module] | None = None,
        num_boundary_conv: int = 2,
        num_deconv: int = 1,
    ):
        super().__init__()
        _check_layers(conv_dims, num_deconv)
        self.mask_fcn, dim = nn.Sequential(), in_channels
        for out_channels in conv_dims[:-1]:
            self.mask_fcn.append(ConvNormReLU(dim, out_channels, norm))
            dim = out_channels
        self.boundary_down = nn.Conv2d(in_channels, dim, kernel_size=3, stride=2, padding=1)
        self.mask_to_boundary = nn.Conv2d(dim, dim, kernel_size=1)
        self.boundary_fcn = nn.Sequential(*[ConvNormReLU(dim, dim, norm) for _ in range(num_boundary_conv)])
        self.boundary_to_mask = nn.Conv2d(dim, dim, kernel_size=1)
        self.mask_up, self.boundary_up = nn.Sequential(), nn.Sequential()
        for _ in range(num_deconv):
            for branch in (self.mask_up, self.boundary_up):
                branch.append(nn.ConvTranspose2d(dim, conv_dims[-1], kernel_size=2, stride=2))
                branch.append(nn.ReLU())
            dim = conv_dims[-1]
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                msra_fill(layer)
        self.predictor = nn.Conv2d(dim, num_classes, kernel_size=1)
        self.boundary_predictor = nn.Conv2d(dim, 1, kernel_size=1)
        predictor_fill(self.predictor)
        predictor_fill(self.boundary_predictor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask, boundary = self.features(x)
        return self.predictor(self.mask_up(mask)), self.boundary_predictor(self.boundary_up(boundary))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the masks and what their boundaries are made from: (R, C, H / 2, W / 2) each."""
        mask = self.mask_fcn(F.avg_pool2d(x, 2))
        boundary = self.boundary_fcn(F.relu(self.boundary_down(x)) + self.mask_to_boundary(mask))
        return mask + self.boundary_to_mask(boundary), boundary


def _check_layers(conv_dims: Sequence[int], num_deconv: int) -> None:
    if len(conv_dims) == 0:
        raise ValueError("conv_dims is empty: its last entry is the width of the transposed convolution")
    if num_deconv < 0:
        raise ValueError(f"num_deconv must be 0 or more, got {num_deconv}")


def predictor_fill(layer: nn.Conv2d | nn.Linear) -> None:
    """Fills the layer that gives the logits: close to zero, so that at first every mask is about 0.5."""
    nn.init.normal_(layer.weight, std=0.001)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
