"""Networks: the benchmark's keys and shapes, what `layers` finds, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apnb.errors import Invalid
from apnb.networks import NETWORKS, Normalize, build, identity, layers, resnet18
from apnb.paths import data_path

SIZES = {"cnn": (1, 8), "resnet8": (1, 8), "resnet18": (3, 32), "vgg16": (3, 32)}  # channels, height and width


def sample(network: str, n: int = 2) -> torch.Tensor:
    channels, size = SIZES[network]
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def made(network: str) -> nn.Module:
    return build(network, channels=SIZES[network][0], classes=10)


@pytest.mark.parametrize(("network", "parameters"), [("resnet18", 11_173_962), ("vgg16", 15_311_818)])
def test_benchmark_networks_have_the_published_state(network, parameters):
    keys = json.loads(data_path("state_dict_keys.json").read_text())[network]
    net = build(network, channels=3, classes=10)
    assert [(k, list(v.shape)) for k, v in net.state_dict().items()] == list(keys.items())
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_layers_are_those_of_the_survey(network):
    with data_path("networks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == network]
    found = layers(build(network, channels=3, classes=10), sample(network))
    assert [(x.module, x.kind, "x".join(map(str, x.shape)), x.macs) for x in found] == [
        (row["layer"], row["kind"], row["weight_shape"], int(row["macs"])) for row in rows
    ]
    assert [x.first for x in found] == [True] + [False] * (len(found) - 1)
    assert [x.last for x in found] == [False] * (len(found) - 1) + [True]
    assert {x.name: x.maps for x in found if x.maps > 1} == ({"classifier.0.weight": 4} if network == "vgg16" else {})


def test_small_networks():
    assert sum(p.numel() for p in made("cnn").parameters()) == 25_978
    found = layers(made("cnn"), sample("cnn"))
    assert [(x.name, x.shape, x.maps) for x in found] == [
        ("conv1.weight", (16, 1, 3, 3), 1),
        ("conv2.weight", (32, 16, 3, 3), 1),
        ("conv3.weight", (64, 32, 3, 3), 1),
        ("linear.weight", (10, 256), 4),
    ]
    assert [x.macs for x in found] == [9 * 16 * 64, 9 * 16 * 32 * 16, 9 * 32 * 64 * 4, 2560]
    assert [x.module for x in layers(made("resnet8"), sample("resnet8"))][3:6] == [
        "layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0",
    ]  # fmt: skip
    for network in ("cnn", "resnet8"):
        net = build(network, channels=3, classes=7)
        assert net(torch.rand(2, 3, 9, 13)).shape == (2, 7)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_relu_and_pooling_runs_once(network):
    net, calls = made(network).eval(), Counter()
    leaves = {name: m for name, m in net.named_modules() if not list(m.children()) and not isinstance(m, nn.Sequential)}
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        net(sample(network))
    assert calls == Counter(list(leaves))
    weighted = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for n, m in leaves.items() if "shortcut" not in n)
    assert sum(isinstance(m, nn.ReLU) for m in leaves.values()) == weighted - 1


def test_initial_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    first = made("cnn").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = made("cnn").state_dict(), build("cnn", channels=1, classes=10, seed=1).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_normalisation_is_part_of_the_network_and_not_of_its_keys():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    plain, normal = build("resnet18", channels=3, classes=10).eval(), resnet18(mean=mean, std=std).eval()
    normal.load_state_dict(plain.state_dict(), strict=True)
    x = sample("resnet18", 1)
    with torch.no_grad():
        torch.testing.assert_close(normal(x), plain((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]))
    assert isinstance(normal.normalize, Normalize)
    assert identity(normal) != identity(plain)
    with pytest.raises(Invalid, match="do not fit 3 channel"):
        resnet18(mean=(0.5,), std=(0.5,))


def test_layers_leaves_the_network_alone():
    net = made("cnn").train()
    net.bn1.eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    layers(net, sample("cnn"))
    assert net.training and not net.bn1.training and net.conv1.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Own(nn.Module):
    """A network as people write them: activations, pooling and flattening as functions, layers defined out of order."""

    def __init__(self, flatten):
        super().__init__()
        self.out = nn.Linear(20, 3)
        self.fc = nn.Linear(8 * 16, 20)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.flatten = flatten

    def forward(self, x):
        x = F.relu(self.deep(F.relu(self.conv(x))))
        return self.out(F.relu(self.fc(self.flatten(F.max_pool2d(x, 2)))))


@pytest.mark.parametrize(
    "flatten",
    [lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), lambda x: x.view(len(x), -1), lambda x: x.reshape(x.shape[0], 128)],
)
def test_layers_of_a_network_with_functions(flatten):
    found = layers(Own(flatten), torch.rand(3, 1, 8, 8))
    assert [(x.module, x.maps, x.groups) for x in found] == [("conv", 1, 1), ("deep", 1, 2), ("fc", 16, 1), ("out", 1, 1)]
    assert found[1].macs == 8 * 2 * 9 * 64


def test_maps_after_a_concatenation_and_after_a_mean():
    class Dense(nn.Module):
        def __init__(self, mean):
            super().__init__()
            self.a, self.b, self.mean = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 4, 3), mean
            self.fc = nn.Linear(6 if mean else 6 * 36, 4)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x)], 1)
            return self.fc(x.mean((2, 3)) if self.mean else x.flatten(1))

    assert layers(Dense(False), torch.rand(2, 1, 8, 8))[-1].maps == 36
    assert layers(Dense(True), torch.rand(2, 1, 8, 8))[-1].maps == 1
    only = layers(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), torch.rand(2, 3, 8, 8))
    assert (only[0].maps, only[0].first, only[0].last) == (64, True, True)


def test_other_kinds_of_layers_stay_dense():
    net = nn.Sequential(
        nn.ConvTranspose2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Flatten(2), nn.Conv1d(3, 3, 1), nn.Flatten(), nn.Linear(192, 2)
    )
    assert [(x.module, x.maps) for x in layers(net, torch.rand(2, 1, 8, 8))] == [("1", 1), ("5", 1)]


# ---------------------------------------------------------------------------------------------------------------- own networks

FACTORIES = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
def plain(): return Net()
def sized(channels, classes=2): return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(144, classes))
def nothing(): return 3
def a_class(): return Net
def greedy(depth): return Net()
def broken(): raise RuntimeError("no luck")
instance = Net()
number = 5
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(FACTORIES)
    (tmp_path / "own_broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


def test_factories(factories):
    assert build("own_networks:plain", channels=1, classes=10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert build("own_networks:Net", channels=1, classes=10)[1].out_features == 10
    sized = build("own_networks:sized", channels=3, classes=5, seed=4)
    assert sized[0].in_channels == 3 and sized[2].out_features == 5
    again = build("own_networks:sized", channels=3, classes=5, seed=4)
    assert torch.equal(sized[0].weight, again[0].weight)
    first = identity("own_networks:sized")
    assert first == identity("own_networks:sized") != identity("own_networks:sized", classes=5)
    assert first["factory"] == "own_networks:sized" and json.dumps(first)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("resnet81", "no network 'resnet81'; did you mean 'resnet8'"),
        ("", "no network ''"),
        ("no_such_module_here:f", "cannot be imported"),
        ("own_networks:absent", "cannot be imported"),
        ("own_broken:f", "cannot be imported .SyntaxError"),
        ("own_networks:nothing", "returned int, expected an instance"),
        ("own_networks:a_class", "returned the class Net"),
        ("own_networks:greedy", "failed .TypeError"),
        ("own_networks:broken", "failed .RuntimeError: no luck"),
        ("own_networks:instance", "is a network, not a function"),
        ("own_networks:number", "is a int, not a function"),
        (nn.Linear, "is a class, not a network"),
        (None, "a network cannot be None"),
    ],
)
def test_what_is_no_network(factories, network, sentence):
    with pytest.raises(Invalid, match=sentence):
        build(network, channels=1, classes=10)


def test_a_module_is_copied_and_identified_by_its_weights():
    net = made("cnn")
    copied = build(net, channels=1, classes=10, seed=5)
    assert copied is not net and identity(copied) == identity(net)
    with torch.no_grad():
        copied.conv1.weight[0, 0, 0, 0] += 1
    assert identity(copied) != identity(net) and identity(net)["class"] == "apnb.networks.CNN"
    assert identity("cnn") == "cnn"
    conv = nn.Conv2d(1, 2, 3)
    assert identity(nn.Sequential(conv, nn.ReLU())) != identity(nn.Sequential(conv, nn.Tanh()))
    with pytest.raises(Invalid, match="at least 1 channel and 2 classes"):
        build("cnn", channels=1, classes=1)
    net.effective = net.conv1.weight * 2  # no leaf of the graph
    with pytest.raises(Invalid, match="CNN cannot be copied"):
        build(net, channels=1, classes=10)


# -------------------------------------------------------------------------------------------------------------------- refusals


class Wired(nn.Module):
    """Two convolutions and a linear layer, wired by a function (net, x) -> output."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.fc, self.wiring = (
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Linear(64, 2),
            forward,
        )

    def forward(self, x):
        return self.wiring(self, x)


def tied(net=None):
    net = Wired(lambda net, x: net.fc(net.b(net.a(x)).flatten(1)))
    net.b.weight = net.a.weight
    return net


def parametrized():
    net = Wired(lambda net, x: net.fc(net.b(net.a(x)).flatten(1)))
    nn.utils.parametrizations.weight_norm(net.b)
    return net


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "nothing to prune"),
        (Wired(lambda net, x: net.fc(net.a(net.a(net.b(x))).flatten(1))), "a has weights and is called 2 times"),
        (Wired(lambda net, x: net.fc(net.a(x).flatten(1))), "b is never used in a forward pass"),
        (tied(), "a.weight and b.weight are one parameter"),
        (parametrized(), "b.weight is computed from other parameters"),
        (Wired(lambda net, x: net.fc(net.b(net.a(x)).flatten(0))), r"cannot take images of shape \(2, 1, 8, 8\) \(RuntimeError"),
        (Wired(lambda net, x: net.b(net.a(net.fc(x.flatten(1))[:, :, None, None]))), "cannot take images"),
        (Wired(lambda net, x: (net.fc(net.b(net.a(x)).flatten(1)),)), "returns tuple, expected logits"),
        (Wired(lambda net, x: net.fc(net.b(net.a(x)).flatten(1))[:, :1]), r"returns \(2, 1\), expected logits"),
        (Wired(lambda net, x: net.fc(net.b(net.a(x)).flatten(1)).mean(0)), r"returns \(2,\), expected logits"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "1.weight has no shape yet"),
    ],
)
def test_networks_that_cannot_be_pruned(net, sentence):
    with pytest.raises(Invalid, match=sentence):
        layers(net, torch.rand(2, 1, 8, 8))


def test_a_sample_of_the_wrong_size():
    with pytest.raises(Invalid, match=r"VGG cannot take images of shape \(2, 3, 8, 8\)"):
        layers(build("vgg16", channels=3, classes=10), torch.rand(2, 3, 8, 8))
    with pytest.raises(Invalid, match=r"expected \(N, C, H, W\)"):
        layers(made("cnn"), torch.rand(1, 8, 8))
