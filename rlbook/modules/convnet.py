"""Networks of images: the convolutions of the Nature DQN, of IMPALA and of MinAtar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rlbook.errors import ConfigError, SpecError, explain


class ImageNet(nn.Module):
    """What the networks of images share: bytes are scaled to [0, 1], any batch dimensions, one vector of features.

    Args:
        body: layers from ``[B, C, H, W]`` to ``[B, c, h, w]``.
        out_features: units of a last layer over all that the body returns; None leaves it out.
        in_shape: ``(C, H, W)``, or None to find the sizes at the first forward pass.
        activation: module class put after the last layer.
        channels_last: images come as ``[*, H, W, C]``.
        orthogonal: gain of an orthogonal initialisation of every layer, with zero biases; PyTorch's default when None.
    """

    def __init__(
        self,
        body: nn.Sequential,
        out_features: int | None,
        in_shape: Sequence[int] | None,
        activation: Callable[[], nn.Module],
        channels_last: bool,
        orthogonal: float | None,
    ):
        super().__init__()
        self.body, self.channels_last, self._gain = body, channels_last, orthogonal
        size = None if in_shape is None else _size(body, in_shape)
        head: list[nn.Module] = []
        if out_features is not None:
            head = [nn.LazyLinear(out_features) if size is None else nn.Linear(size, out_features), activation()]
        self.head = nn.Sequential(*head)
        self.out_features = size if out_features is None else out_features
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the layers, which have been reset already, the orthogonal initialisation if one was asked for."""
        if self._gain is None or self._lazy():
            return
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, self._gain)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _lazy(self) -> bool:
        return any(is_lazy(parameter) for parameter in self.parameters())

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``[*, C, H, W]``, bytes or floats, to features ``[*, out_features]``."""
        if image.ndim < 3:
            fix = "Add the channel: image.unsqueeze(-3)"
            raise SpecError(explain("An image", "of shape [*, C, H, W]", f"{list(image.shape)}", fix))
        if self._gain is not None and not torch.compiler.is_compiling() and self._lazy():
            self._features(image)  # the sizes are unknown until now: find them, then initialise
            self.reset_parameters()
        return self._features(image)

    def _features(self, image: Tensor) -> Tensor:
        x = image.movedim(-1, -3) if self.channels_last else image
        x = x / 255 if x.dtype == torch.uint8 else x.float() if not x.is_floating_point() else x
        features = self.head(self.body(x.flatten(0, -4) if x.ndim > 3 else x.unsqueeze(0)).flatten(1))
        return features.reshape(*x.shape[:-3], features.shape[-1])


class ConvNet(ImageNet):
    """Convolutions, each with an activation, then one linear layer: by default those of the Nature DQN.

    Args:
        out_features: units of the last layer, which has an activation too; None for the flattened image.
        in_shape: ``(C, H, W)``, or None to find the sizes at the first forward pass (lazy layers).
        channels: channels of each convolution.
        kernels: their widths.
        strides: their steps.
        activation: module class.
        channels_last: images come as ``[*, H, W, C]``.
        orthogonal: gain of an orthogonal initialisation; ``2**0.5`` is PPO's choice.

    Raises:
        ConfigError: the three sequences have different lengths, or the image is smaller than the kernels.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.

    Example:
        >>> frames = torch.zeros(8, 4, 84, 84, dtype=torch.uint8)
        >>> ConvNet()(frames).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        out_features: int | None = 512,
        in_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64, 64),
        kernels: Sequence[int] = (8, 4, 3),
        strides: Sequence[int] = (4, 2, 1),
        activation: Callable[[], nn.Module] = nn.ReLU,
        channels_last: bool = False,
        orthogonal: float | None = None,
    ):
        if not len(channels) == len(kernels) == len(strides):
            got, fix = f"{len(channels)}, {len(kernels)}, {len(strides)}", "Give one of each per convolution"
            raise ConfigError(explain("The lengths of channels, kernels and strides", "equal", got, fix))
        layers: list[nn.Module] = []
        inputs = None if in_shape is None else in_shape[0]
        for outputs, kernel, stride in zip(channels, kernels, strides, strict=True):
            layers += [_conv(inputs, outputs, kernel, stride), activation()]
            inputs = outputs
        super().__init__(nn.Sequential(*layers), out_features, in_shape, activation, channels_last, orthogonal)

    @classmethod
    def minatar(cls, out_features: int | None = 128, in_shape: Sequence[int] | None = None, **kwargs: Any) -> Self:
        """Make the network for 10 x 10 boards: 16 kernels of 3 x 3, then 128 units.

        Source: Young and Tian 2019, "MinAtar: An Atari-Inspired Testbed", section 4.
        """
        return cls(out_features, in_shape, channels=(16,), kernels=(3,), strides=(1,), **kwargs)


class ImpalaNet(ImageNet):
    """Three blocks, each of a convolution, a max pooling by 2 and two residual units, then one linear layer.

    Slower than :class:`ConvNet` and better on images with more to see.

    Args:
        out_features: units of the last layer, which has an activation too; None for the flattened image.
        in_shape: ``(C, H, W)``, or None to find the sizes at the first forward pass.
        channels: channels of each block.
        channels_last: images come as ``[*, H, W, C]``.
        orthogonal: gain of an orthogonal initialisation.

    Source: Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
    figure 3, right, without the LSTM.

    Example:
        >>> ImpalaNet(256, in_shape=(3, 64, 64))(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        out_features: int | None = 256,
        in_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32, 32),
        channels_last: bool = False,
        orthogonal: float | None = None,
    ):
        layers: list[nn.Module] = []
        inputs = None if in_shape is None else in_shape[0]
        for outputs in channels:
            layers += [_conv(inputs, outputs, 3, padding=1), nn.MaxPool2d(3, 2, 1), Residual(outputs), Residual(outputs)]
            inputs = outputs
        super().__init__(nn.Sequential(*layers, nn.ReLU()), out_features, in_shape, nn.ReLU, channels_last, orthogonal)


class Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``, with 3 x 3 kernels that keep the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the same."""
        return x + self.second(self.first(x.relu()).relu())


def _conv(inputs: int | None, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding}
    return nn.LazyConv2d(outputs, **options) if inputs is None else nn.Conv2d(inputs, outputs, **options)


def _size(body: nn.Sequential, in_shape: Sequence[int]) -> int:
    """Return how many numbers the body makes of an image."""
    if len(in_shape) != 3:
        raise ConfigError(explain("in_shape", "(channels, height, width)", f"{tuple(in_shape)}", "Pass for example (4, 84, 84)"))
    try:
        with torch.no_grad():
            return body(torch.zeros(1, *in_shape)).numel()
    except RuntimeError as error:
        fix = "Use smaller kernels and strides, as ConvNet.minatar does for boards of 10 x 10"
        raise ConfigError(explain("in_shape", "larger than the kernels", f"{tuple(in_shape)}", fix)) from error
