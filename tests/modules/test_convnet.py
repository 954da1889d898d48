"""Networks of images: shapes, scaling, lazy sizes, layouts, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.modules import ConvNet, ImpalaNet, ensemble
from rlbook.modules.convnet import Residual

NETS = {
    "nature": (ConvNet, (4, 84, 84), 512, 1_684_128),
    "minatar": (ConvNet.minatar, (4, 10, 10), 128, 131_792),
    "impala": (ImpalaNet, (3, 64, 64), 256, 622_144),
}
nets = pytest.mark.parametrize(("make", "shape", "outputs", "size"), NETS.values(), ids=NETS)


@nets
def test_the_published_sizes(make, shape, outputs, size):
    # nature: 8*8*4*32+32 + 4*4*32*64+64 + 3*3*64*64+64 + 3136*512+512
    # minatar: 3*3*4*16+16 + 1024*128+128
    # impala: 448 + 4*2320 + 4640 + 4*9248 + 9248 + 4*9248 + 2048*256+256
    net = make(in_shape=shape)
    assert sum(parameter.numel() for parameter in net.parameters()) == size
    assert net.out_features == outputs


@nets
@pytest.mark.parametrize("batch", [(), (2,), (2, 0), (1, 3)])
def test_any_batch_dimensions_lazy_or_not(make, shape, outputs, size, batch):
    for net in (make(), make(in_shape=shape)):
        if 0 in batch:
            net(torch.zeros(shape))
        assert net(torch.zeros(*batch, *shape)).shape == (*batch, outputs)


def test_bytes_are_scaled_floats_are_not_and_flags_are_numbers():
    net = ConvNet.minatar(in_shape=(2, 10, 10))
    image = torch.randint(0, 256, (3, 2, 10, 10), dtype=torch.uint8)
    assert_close(net(image), net(image.float() / 255))
    flags = image > 100
    assert_close(net(flags), net(flags.float()))


def test_rows_of_a_batch_do_not_mix():
    net, images = ConvNet.minatar(in_shape=(2, 10, 10)), torch.rand(2, 3, 2, 10, 10)
    assert_close(net(images)[1, 2], net(images[1, 2]))


def test_channels_last():
    net, images = ConvNet.minatar(in_shape=(2, 10, 12)), torch.rand(3, 2, 10, 12)
    net.channels_last = True
    turned = net(images.permute(0, 2, 3, 1))
    net.channels_last = False
    assert_close(turned, net(images))


def test_without_a_last_layer_the_image_is_flattened():
    net = ConvNet(None, (1, 10, 10), channels=[2], kernels=[3], strides=[1])
    assert net.out_features == 2 * 8 * 8
    x = torch.randn(5, 1, 10, 10)
    assert_close(net(x), net.body[0](x).relu().flatten(1))
    assert ConvNet.minatar(None)(x).shape == (5, 16 * 64)


def test_a_residual_unit_is_what_its_docstring_says():
    unit, x = Residual(3), torch.randn(2, 3, 5, 5)
    assert_close(unit(x), x + unit.second(unit.first(x.clamp(min=0)).clamp(min=0)))


@pytest.mark.parametrize("in_shape", [None, (2, 10, 10)])
def test_orthogonal_initialisation(in_shape):
    net = ConvNet.minatar(8, in_shape, orthogonal=2.0)
    first_answer = net(torch.ones(2, 10, 10))
    for layer in (net.body[0], net.head[0]):
        weight = layer.weight.flatten(1)
        assert_close(weight @ weight.T, 4 * torch.eye(len(weight)), atol=1e-4, rtol=0)
        assert_close(layer.bias, torch.zeros_like(layer.bias))
    assert_close(net(torch.ones(2, 10, 10)), first_answer)


def test_members_of_an_ensemble_differ():
    out = ensemble(nn.Sequential(ConvNet.minatar(8, (2, 10, 10)), nn.Linear(8, 1)), 2)(torch.rand(3, 2, 10, 10))
    assert out.shape == (2, 3, 1)
    assert (out[0] != out[1]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvNet.minatar(8, (2, 10, 10)),
        lambda: ImpalaNet(8, (2, 10, 10), [4]),
        lambda: ConvNet(8, (2, 10, 10), [4], [3], [1], orthogonal=2**0.5),  # which asks whether it has sizes yet
    ],
)
def test_compiles_to_one_graph(make):
    net, x = make(), torch.rand(3, 2, 10, 10)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), net(x))


def test_errors():
    with pytest.raises(ConfigError, match=r"lengths of channels, kernels and strides must be equal; got 2, 3, 3"):
        ConvNet(channels=(8, 8))
    with pytest.raises(ConfigError, match=r"in_shape must be larger than the kernels; got \(1, 10, 10\).*ConvNet.minatar"):
        ConvNet(in_shape=(1, 10, 10))
    with pytest.raises(ConfigError, match=r"in_shape must be \(channels, height, width\); got \(84, 84\)"):
        ConvNet(in_shape=(84, 84))
    with pytest.raises(SpecError, match=r"An image must be of shape \[\*, C, H, W\]; got \[84, 84\]"):
        ConvNet()(torch.zeros(84, 84))
