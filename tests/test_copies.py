"""Copies: what attacks run on says what the network itself says, and the network itself stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from apnb.copies import Half, exact, fast, full_precision
from apnb.devices import bf16_units
from apnb.errors import Invalid
from apnb.networks import build
from tests.helpers import same

CPU = torch.device("cpu")


def images(channels=1, size=8, n=6):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def lived_in(net):
    """Batch norms with statistics, scales and shifts of their own."""
    draw = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in ((m.running_mean, -0.5), (m.running_var, 0.5), (m.weight.data, 0.5), (m.bias.data, -0.5)):
                t.copy_(low + torch.rand(t.shape, generator=draw))
    return net


def norms(net):
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(("name", "channels", "size"), [("cnn", 1, 8), ("resnet8", 3, 16), ("resnet18", 3, 32), ("vgg16", 3, 32)])
def test_every_batch_norm_of_our_networks_is_folded_and_the_logits_stay(name, channels, size):
    net = exact(lived_in(build(name, channels=channels, classes=10)), CPU)
    x = images(channels, size)
    copied = fast(net, x)
    assert norms(net) > 0
    assert norms(copied) == 0
    torch.testing.assert_close(copied(x), net(x), rtol=1e-4, atol=1e-3)
    assert not any(p.requires_grad for p in copied.parameters())


def test_the_network_that_was_given_stays_as_it_was_to_the_bit():
    model = lived_in(build("cnn", channels=1, classes=10)).train()
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    fast(exact(model, CPU), images())
    assert same(dict(before), dict(model.state_dict()))
    assert flags == [p.requires_grad for p in model.parameters()]
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("size", "left"), [(8, 0), (12, 1)])
def test_a_pooling_to_the_size_that_is_there_already_is_left_out(size, left):
    net = exact(lived_in(build("cnn", channels=1, classes=10)), CPU)  # its maps are 2x2 for images of 8x8, and pooled to 2x2
    copied = fast(net, images(1, size))
    assert sum(isinstance(m, nn.AdaptiveAvgPool2d) for m in copied.modules()) == left
    torch.testing.assert_close(copied(images(1, size)), net(images(1, size)), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """A convolution whose output is used before its batch norm too."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.linear, self.how = nn.Conv2d(1, 4, 3), lived_in(nn.BatchNorm2d(4)), nn.Linear(144, 3), how

    def forward(self, x):
        a = self.conv(x)
        b = self.bn(a)
        if self.how == "skip":
            b = b + a
        if self.how == "again":
            b = b + self.bn(self.conv(1 - x))
        if self.how == "between":
            b = self.bn(a * 2)
        return self.linear(b.flatten(1))


@pytest.mark.parametrize("how", ["skip", "again", "between"])
def test_a_batch_norm_that_folding_would_change_is_left_alone(how):
    net = exact(Twice(how), CPU)
    copied = fast(net, images())
    assert norms(copied) == 1
    assert torch.equal(copied(images()), net(images()))


def test_norms_without_running_statistics_and_subclasses_are_left_alone():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 3

    net = exact(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), Own(2, 2, 3),
                              lived_in(nn.BatchNorm2d(2)), nn.Flatten(), nn.Linear(32, 3)), CPU)  # fmt: skip
    copied = fast(net, images())
    assert norms(copied) == 2
    assert torch.equal(copied(images()), net(images()))


class Nosy(nn.Module):
    """Looks at its batch norm's weights, or calls it by keyword."""

    def __init__(self, keyword):
        super().__init__()
        self.conv, self.bn, self.linear, self.keyword = (
            nn.Conv2d(1, 4, 3),
            lived_in(nn.BatchNorm2d(4)),
            nn.Linear(144, 3),
            keyword,
        )

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(input=x) if self.keyword else self.bn(x) + 0 * self.bn.weight.sum()
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("keyword", [False, True])
def test_a_forward_pass_that_misses_the_batch_norm_gets_it_back(keyword):
    net = exact(Nosy(keyword), CPU)
    assert torch.equal(fast(net, images())(images()), net(images()))


def test_a_scripted_network_is_refused_or_frozen():
    try:
        net = exact(torch.jit.trace(build("cnn", channels=1, classes=10).eval(), images()), CPU)
    except Invalid as refused:
        assert "give a plain torch.nn.Module" in str(refused)
    else:
        assert not any(p.requires_grad for p in net.parameters())


def test_full_precision_puts_back_what_was_chosen_also_by_the_newer_switches():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else None
    with full_precision():
        if before is not None:
            assert matmul.fp32_precision in ("ieee", "none")
    assert (matmul.fp32_precision if before is not None else None) == before


def test_networks_without_values_or_on_several_devices_are_refused():
    with pytest.raises(Invalid, match="device 'meta', where parameters have no values; load its weights first"):
        exact(nn.Linear(2, 2, device="meta"), CPU)


def test_a_double_precision_network_is_judged_in_float32():
    assert {p.dtype for p in exact(build("cnn", channels=1, classes=10).double(), CPU).parameters()} == {torch.float32}


def test_half_precision_is_the_body_alone_and_logits_come_back_in_float32():
    net = exact(lived_in(build("resnet8", channels=3, classes=10)), CPU)
    x = images(3, 16)
    half = fast(net, x, "bf16") if bf16_units(CPU) else Half(copy.deepcopy(net), ("conv1", "linear"))
    out = half(x)
    assert out.dtype == torch.float32
    assert not torch.equal(out, net(x)), "the body does compute in bfloat16"
    torch.testing.assert_close(out, net(x), rtol=0.1, atol=0.1)
    moved = x + 0.2 / 255 * torch.sign(images(3, 16) - 0.5)  # a fifth of what bfloat16 can tell apart near 1/2
    assert not torch.equal(half(moved), out), "a perturbation below bfloat16's resolution reaches the logits"


@pytest.mark.skipif(bf16_units(CPU), reason="this processor has bfloat16 units")
def test_half_precision_without_the_hardware_is_refused():
    with pytest.raises(Invalid, match="needs bfloat16 units"):
        fast(exact(build("cnn", channels=1, classes=10), CPU), images(), "bf16")
