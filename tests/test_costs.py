"""What pruning saves: known sizes, networks slimmed by hand, and which layer reads which."""

import copy
import itertools

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from apnb import costs, networks
from apnb.errors import Invalid
from apnb.masks import Target
from apnb.paths import data_path

DIGITS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def made(name: str, channels: int = 1):
    net = networks.build(name, channels=channels, classes=10).eval()
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.bias.data.normal_(generator=generator).mul_(0.5)
    return net


def select(net, sample, structure, sparsity, locality="local"):
    found = networks.layers(net, sample)
    weights = dict(net.named_parameters())
    scores = {layer.name: weights[layer.name].detach().abs() for layer in found}
    return Target(found, structure, locality, sparsity).select(scores)


def open_masks(net, sample):
    return {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in networks.layers(net, sample)}


def slim_cnn(net, masks):
    """The cnn built again with the filters that are left, by hand."""
    keep = [masks[f"conv{i}.weight"].flatten(1).any(1) for i in (1, 2, 3)]
    slim, read = copy.deepcopy(net), torch.tensor([True])
    for i, k in enumerate(keep, 1):
        conv, norm = getattr(net, f"conv{i}"), getattr(net, f"bn{i}")
        new = nn.Conv2d(int(read.sum()), int(k.sum()), 3, conv.stride, padding=1, bias=False)
        new.weight.data = (conv.weight * masks[f"conv{i}.weight"])[k][:, read].clone()
        batch = nn.BatchNorm2d(int(k.sum()))
        batch.load_state_dict({n: t[k] if t.ndim else t for n, t in norm.state_dict().items()})
        setattr(slim, f"conv{i}", new)
        setattr(slim, f"bn{i}", batch)
        read = k
    columns = read.repeat_interleave(4)
    slim.linear = nn.Linear(int(columns.sum()), 10)
    slim.linear.weight.data, slim.linear.bias.data = net.linear.weight[:, columns].clone(), net.linear.bias.clone()
    return slim.eval()


@pytest.mark.parametrize(("name", "macs"), [("resnet18", 555_422_720), ("vgg16", 313_788_928)])
def test_the_dense_networks_of_the_benchmark_cost_what_their_table_says(name, macs):
    net, sample = networks.build(name, channels=3, classes=10), torch.rand(1, 3, 32, 32)
    table = pd.read_csv(data_path("networks.csv"))
    table = table[table["network"] == name].set_index("layer")
    found = costs.count(net, sample)
    assert found.macs == found.macs_nonzero == found.macs_slim == table["macs"].sum() == macs
    assert found.parameters == found.parameters_nonzero == found.parameters_slim == sum(p.numel() for p in net.parameters())
    assert found.frame().set_index("layer")["macs"].to_dict() == table["macs"].to_dict()


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_a_cnn_slimmed_by_hand_is_as_large_as_counted(sparsity):
    net = made("cnn")
    masks = select(net, DIGITS, "filters", sparsity)
    slim, found = slim_cnn(net, masks), costs.count(net, DIGITS, masks)
    assert found.parameters_slim == sum(p.numel() for p in slim.parameters())
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        slim(DIGITS[:1])
    assert 2 * found.macs_slim == flops.get_total_flops()


def test_the_slimmed_network_equals_the_masked_one_where_nothing_constant_is_left_behind():
    net = made("cnn")
    masks = select(net, DIGITS, "filters", 0.5)
    pruned = copy.deepcopy(net)
    for name, mask in masks.items():
        pruned.get_parameter(name).data.mul_(mask)
    left = costs.count(net, DIGITS, masks).constants
    gone = [~masks[f"conv{i}.weight"].flatten(1).any(1) for i in (1, 2, 3)]
    shifts = [(g & ((b := getattr(net, f"bn{i}")).bias - b.weight * b.running_mean / (b.running_var + b.eps).sqrt() > 0)).sum()
              for i, g in enumerate(gone, 1)]  # fmt: skip
    assert left == sum(shifts) > 0
    with torch.no_grad():
        assert not torch.allclose(slim_cnn(pruned, masks)(DIGITS), pruned(DIGITS), atol=1e-4)
        for i, g in enumerate(gone, 1):
            norm = getattr(pruned, f"bn{i}")
            norm.bias[g], norm.running_mean[g] = 0, 0
        assert costs.count(pruned, DIGITS).constants == 0
        torch.testing.assert_close(slim_cnn(pruned, masks)(DIGITS), pruned(DIGITS))


def test_single_weights_save_no_map_unless_a_whole_one_goes():
    net = made("cnn")
    masks = select(net, DIGITS, "weights", 0.5)
    found = costs.count(net, DIGITS, masks)
    ones = sum(int(m.sum()) for m in masks.values())
    zeros = sum(m.numel() for m in masks.values()) - ones
    assert found.parameters_nonzero == found.parameters - zeros
    assert [c.macs_nonzero for c in found.layers] == [64 * c.weights_nonzero if c.layer == "conv1" else
                                                     c.weights_nonzero * {"conv2": 16, "conv3": 4, "linear": 1}[c.layer]
                                                     for c in found.layers]  # fmt: skip
    assert (found.parameters_slim, found.macs_slim) == (found.parameters, found.macs)


def test_without_masks_the_zeros_of_the_weights_count():
    net = made("cnn")
    masks = select(net, DIGITS, "filters", 0.5)
    pruned = copy.deepcopy(net)
    for name, mask in masks.items():
        pruned.get_parameter(name).data.mul_(mask)
    assert costs.count(pruned, DIGITS) == costs.count(net, DIGITS, masks)


def test_input_slices_take_the_filters_that_wrote_for_them():
    net = made("cnn")
    masks = open_masks(net, DIGITS)
    masks["conv2.weight"][:, :6] = False
    masks["linear.weight"][:, 4 * 10 : 4 * 13] = False  # three maps behind the flattening
    found = costs.count(net, DIGITS, masks)
    assert [c.maps_slim for c in found.layers] == [10, 32, 61, 10]
    assert found.layers[1].weights_slim == 32 * 10 * 9
    assert found.layers[3].weights_slim == 10 * 4 * 61
    assert found.constants == 0, "nobody reads what went"


def test_a_removed_map_takes_what_only_it_kept_alive():
    net = made("cnn")
    masks = open_masks(net, DIGITS)
    masks["conv2.weight"][5:] = False
    masks["conv2.weight"][:, 3:] = False
    masks["conv3.weight"][:, :2] = False  # filters 0 and 1 of conv2 have weights, and nobody reads them
    found = costs.count(net, DIGITS, masks)
    assert [c.maps_slim for c in found.layers] == [3, 3, 64, 10]


def test_a_map_of_a_residual_sum_goes_only_if_all_that_is_added_is_gone():
    net = made("resnet8")
    masks = open_masks(net, DIGITS)
    masks["layer1.0.conv2.weight"][3] = False
    assert costs.count(net, DIGITS, masks).parameters_slim == costs.count(net, DIGITS).parameters
    masks["conv1.weight"][3] = False
    found = costs.count(net, DIGITS, masks)
    maps = {c.layer: (c.maps, c.maps_slim) for c in found.layers}
    assert [n for n, (a, b) in maps.items() if a != b] == ["conv1", "layer1.0.conv2"]
    readers = 16 * 9 + 32 * 9 + 32  # layer1.0.conv1, layer2.0.conv1 and the shortcut
    assert found.parameters - found.parameters_slim == 9 + 16 * 9 + 2 * 2 + readers


def test_inside_a_residual_block_a_map_goes_alone():
    net = made("resnet8")
    masks = open_masks(net, DIGITS)
    masks["layer2.0.conv1.weight"][:8] = False
    found = costs.count(net, DIGITS, masks)
    assert found.parameters - found.parameters_slim == 8 * (16 * 9 + 2 + 32 * 9)
    assert found.macs - found.macs_slim == 8 * 16 * (16 * 9 + 32 * 9)


def test_in_a_plain_network_each_map_is_read_by_the_next_layer_at_its_place():
    net = networks.build("vgg16", channels=3, classes=10)
    sample = torch.rand(1, 3, 16, 16)
    read = costs.reads(net, sample)
    order = [costs.IMAGE, *(layer.module for layer in networks.layers(net, sample)), costs.OUTPUT]
    modules = dict(net.named_modules())
    seen = {(w, r): s for (w, r), s in read.items() if not isinstance(modules.get(r), nn.BatchNorm2d)}
    assert list(seen) == list(itertools.pairwise(order))
    for (_, reader), s in seen.items():
        wide = s.shape[1] // s.shape[0]
        assert torch.equal(s, torch.eye(len(s), dtype=torch.bool).repeat_interleave(wide, 1)), reader


class Mixed(nn.Module):
    """Two branches concatenated; a gate that looks at all maps; a grouped convolution; a branch that nobody reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 5, 3), nn.Conv2d(8, 6, 1)
        self.group, self.gate, self.unread = nn.Conv2d(6, 6, 1, groups=3), nn.Linear(6, 6), nn.Conv2d(1, 2, 1)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        self.unread(x)
        x = self.c(torch.cat([self.a(x), self.b(x)], dim=1))
        x = self.group(x)
        return self.linear((x * self.gate(x.mean((2, 3)))[:, :, None, None]).mean((2, 3)))


def test_branches_gates_groups_and_dead_ends_are_seen():
    net = Mixed()
    read = costs.reads(net, DIGITS)
    assert torch.equal(read["a", "c"], torch.eye(3, 8, dtype=torch.bool))
    assert torch.equal(read["b", "c"], torch.eye(8, dtype=torch.bool)[3:])
    assert torch.equal(read["group", "linear"], torch.eye(6, dtype=torch.bool))
    assert torch.equal(read["gate", "linear"], torch.eye(6, dtype=torch.bool))
    assert not any(writer == "unread" for writer, _ in read)
    masks = open_masks(net, DIGITS)
    masks["b.weight"][1] = False
    masks["c.weight"][2] = False  # what a grouped convolution reads stays
    found = {c.layer: c for c in costs.count(net, DIGITS, masks).layers}
    assert {n: c.maps_slim for n, c in found.items()} == {"unread": 0, "a": 3, "b": 4, "c": 6, "group": 6, "gate": 6, "linear": 4}
    assert found["c"].weights_slim == 6 * 7


def test_a_sum_over_all_maps_is_told_one_by_one():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 6, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = self.conv(x).mean((2, 3))
            return self.linear(x[:, :3] + x[:, 3:])  # inputs read maps i and i + 3, which a code alone cannot tell

    net = Summed()
    assert torch.equal(costs.reads(net, DIGITS)["conv", "linear"], torch.eye(3, dtype=torch.bool).repeat(2, 1))
    masks = open_masks(net, DIGITS)
    masks["conv.weight"][[0, 3, 4]] = False
    assert [c.maps_slim for c in costs.count(net, DIGITS, masks).layers] == [4, 2]


def test_counting_changes_neither_the_network_nor_the_random_state():
    net, state = made("resnet8").train(), torch.get_rng_state()
    before = copy.deepcopy(net.state_dict())
    costs.count(net, DIGITS, select(net, DIGITS, "channels", 0.5))
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net(DIGITS).isfinite().all()


def test_a_mask_of_another_network_is_refused():
    net = made("cnn")
    with pytest.raises(Invalid, match=r"mask for 'conv9.weight'.*it has conv1.weight"):
        costs.count(net, DIGITS, {"conv9.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(Invalid, match=r"shape \(1,\), its weight \(16, 1, 3, 3\)"):
        costs.count(net, DIGITS, {"conv1.weight": torch.ones(1, dtype=torch.bool)})


def test_the_table_names_what_is_counted_and_its_share():
    net = made("cnn")
    table = costs.count(net, DIGITS, select(net, DIGITS, "filters", 0.5)).table()
    assert list(table.index) == ["dense", "only non-zero weights", "slimmed"]
    assert list(table["MACs (%)"]) == [100.0, 50.8, 26.8]


class Residual(nn.Module):
    """Two pre-activation blocks, whose sum is made in place or not, and one activation of choice."""

    def __init__(self, in_place=False, activation=nn.functional.relu):
        super().__init__()
        self.in_place, self.activation = in_place, activation
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        for i in (2, 4):
            setattr(self, f"conv{i}", nn.Conv2d(8, 8, 3, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(8))
            setattr(self, f"conv{i + 1}", nn.Conv2d(8, 8, 3, padding=1, bias=False))
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv1(x)
        for i in (2, 4):
            out = getattr(self, f"conv{i + 1}")(self.activation(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))))
            if self.in_place:
                out += x
                x = out
            else:
                x = out + x
        return self.linear(x.mean((2, 3)))


def test_a_sum_in_place_is_read_as_any_other_sum():
    torch.manual_seed(0)
    plain = Residual().eval()
    with torch.no_grad():
        plain.conv2.weight[::2] = 0
    written = Residual(in_place=True).eval()
    written.load_state_dict(plain.state_dict())
    image, before = DIGITS.clone(), costs.count(plain, DIGITS)
    assert costs.count(written, image) == before and before.parameters_slim == before.parameters - 4 * (9 * 8 + 2 + 9 * 8)
    assert torch.equal(image, DIGITS)


@pytest.mark.parametrize(
    "activation",
    [lambda x: torch.where(x > 0, x, 0.0), lambda x: torch.where(x < 0, x, 0.0), torch.sign, lambda x: x.nan_to_num().relu()],
    ids=["a ReLU by hand", "its mirror image", "sign", "nan_to_num"],
)
def test_a_network_that_replaces_nan_by_numbers_is_refused(activation):
    with pytest.raises(Invalid, match=r"between \w+ and \w+ it replaces NaN"):
        costs.count(Residual(activation=activation).eval(), DIGITS)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Softshrink(), nn.Hardtanh(), nn.Hardswish(), nn.MaxPool2d(1)])
def test_the_activations_of_torch_are_followed(activation):
    assert costs.count(Residual(activation=activation).eval(), DIGITS).table()["parameters"].nunique() == 1
