"""The network that tells how good a predicted mask is."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv import ConvNormReLU, msra_fill

__all__ = ["MaskIoUNetwork"]


class MaskIoUNetwork(nn.Module):
    """Predicts the IoU of a mask with its object from the mask and the RoI's features (Huang et al., Mask Scoring
    R-CNN, CVPR 2019, section 3.3): 3x3 convolutions, the last with stride 2, then fully connected layers.

    Args:
        input_size: C, H and W of the pooled features.
        num_classes: IoUs per RoI, one for each class, K.
        conv_dims: output channels of each convolution; the paper's are four times 256.
        fc_dims: width of each hidden fully connected layer; the paper's are twice 1024.

    Raises:
        ValueError: if ``conv_dims`` is empty.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        num_classes: int,
        conv_dims=(256, 256, 256, 256),
        fc_dims=(1024, 1024),
    ):
        super().__init__()
        if len(conv_dims) == 0:
            raise ValueError(
                "conv_dims is empty: its last entry is the width of the convolution with stride 2"
            )
        channels, height, width = input_size
        self.convs = nn.Sequential()
        in_channels = channels + 1
        for dim in conv_dims[:-1]:
            self.convs.append(ConvNormReLU(in_channels, dim))
            in_channels = dim
        self.convs.append(nn.Conv2d(in_channels, conv_dims[-1], kernel_size=3, stride=2, padding=1))
        self.convs.append(nn.ReLU())
        self.fcs = nn.Sequential(nn.Flatten())
        in_features = conv_dims[-1] * ((height + 1) // 2) * ((width + 1) // 2)
        for dim in fc_dims:
            self.fcs.append(nn.Linear(in_features, dim))
            self.fcs.append(nn.ReLU())
            in_features = dim
        self.predictor = nn.Linear(in_features, num_classes)
        for layer in self.convs:
            if isinstance(layer, nn.Conv2d):
                msra_fill(layer)
        for layer in self.fcs:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """
        Args:
            features: (R, C, H, W) pooled features.
            masks: (R, 1, m, m) probabilities of the predicted masks, of any size.

        Returns:
            (R, K) IoUs; not bounded.
        """
        # Whatever an accelerated backbone computes in, the result is a number to rank by.
        features = features.to(self.predictor.weight.dtype)
        masks = F.adaptive_max_pool2d(masks.to(features.dtype), features.shape[-2:])
        return self.predictor(self.fcs(self.convs(torch.cat([features, masks], dim=1))))
