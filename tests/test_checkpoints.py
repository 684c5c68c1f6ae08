"""The survey's published networks by their keys, and files of weights as plain citizens: judged, drawn, trained on, compared."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apnb import checkpoints, curves, plots, taxonomy
from apnb.errors import Invalid
from apnb.mechanisms import FixedMasks
from apnb.networks import build, layers
from tests.helpers import same
from tests.layouts import Case, state, write

NET = build("cnn", channels=1, classes=10, seed=3)
STATE = NET.state_dict()
TWICE, LOST = "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_90", "HYDRA_Sehwag2020Hydra_V16_CIFAR10_US_99"
RST = "RST_Fu2021Drawing_R18_CIFAR10_US_99"
TWIN = Case("TwinRep", "V16", 90)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place for what is fetched and for runs."""
    monkeypatch.setenv("APNB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(folder: Path, case: Case, key: str = "", change=None) -> Path:
    """A published file, in the folder of fetched files, as if it had been put there by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / checkpoints.find(key or case.key).file
    tensors = state(case)
    if change:
        change(tensors)
    write(path, case, tensors)
    return path


# ------------------------------------------------------------------------------------------------------------------- what is listed


def test_all_83_keys_resolve_to_what_they_say():
    found = checkpoints.entries()
    assert len(found) == len({e.text for e in found}) == 83
    for e in found:
        _, architecture, data, group, share = e.text.rsplit("_", 4)
        assert (e.network, e.data) == ({"R18": "resnet18", "V16": "vgg16"}[architecture], data.lower())
        assert (e.structure, e.sparsity) == ({"US": "unstructured", "S": "structured"}[group], int(share) / 100)
        assert taxonomy.method(e.method).survey_key == e.text.split(f"_{architecture}_")[0]
        assert re.fullmatch(r"[-\w]{33}", e.id) and e.extension in (".pt", ".pth.tar", ".tar", ".pth", ".t7")
        assert checkpoints.find(e.text) == e and e.id in e.page
        assert 0 < e.robust < e.clean < 100
    assert len({e.id for e in found}) == 83
    assert len({e.distances_id for e in found if e.distances_id}) == 47  # the 48th belongs to the network that is not listed
    assert {e.method for e in found} == {
        "radmm", "hydra", "harp", "pwoa", "mad", "li20", "rst", "robustbird", "twinrep", "flyingbird",
    }  # fmt: skip
    assert {e.units for e in found if e.structure == "structured"} == {"filters", "channels"}
    assert len(checkpoints.frame()) == 83


def test_the_list_is_filtered_by_word():
    assert [e.sparsity for e in checkpoints.entries("HARP", "vgg16", "structured")] == [0.5, 0.75, 0.9]
    assert {e.method for e in checkpoints.entries(sparsity=0.99, network="resnet18")} >= {"hydra", "mad"}
    for wrong, sentence in (
        ({"network": "vgg"}, "did you mean 'vgg16'"), ({"sparsity": 90}, "no networks with sparsity 90; there are 0.5, 0.75"),
        ({"method": "dnr"}, "no networks with method 'dnr'; there are flyingbird"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=sentence):
            checkpoints.entries(**wrong)
    assert len(checkpoints.everything()) == 84 and len({e.distances_id for e in checkpoints.everything()} - {""}) == 48


def test_the_key_that_hydra_has_twice_and_the_one_it_lacks_are_told_apart():
    twice, lost = checkpoints.find(TWICE), checkpoints.find(LOST)
    assert (twice.id, lost.id) == ("1uHEhTIZdE4bzRY8HWw4SoQX5RhyCZgtP", "1VU99dNBhP2b1QeiPkT88f0RXmTzFKIOA")
    assert lost not in checkpoints.entries() and lost.network == "vgg16"
    assert "twice" in twice.note and "very likely" in lost.note


def test_the_names_under_which_distances_are_listed_are_understood():
    entry = checkpoints.find("RADMM_Ye2019Sparsity_V16_CIFAR10_S_75")
    assert entry.text == "RADMM_Ye2019Adversarial_V16_CIFAR10_S_75" and entry.distances_id
    listed = {e.distances_key for e in [*checkpoints.entries(), checkpoints.find(LOST)] if e.distances_id}
    assert len(listed) == 48 and all(checkpoints.find(key).distances_key == key for key in listed)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("HARP_Zhao2023Holistic_R18_SVHN_US_90", r"no network for SVHN.*clean 92.96 %, robust 45.39 %.*_R18_CIFAR10_US_90"),
        ("HYDRA_Sehwag2020Hydra_R18_CIFAR10_S_50", "published no HYDRA.*near it are HYDRA"),
        ("HARP_Zhao2023Holistic_R18_CIFAR10_S_99", "with S the survey has 50, 75, 90 per cent"),
        ("DNR_Kundu2021Dnr_R18_CIFAR10_US_90", "published no networks of 'DNR_Kundu2021Dnr'"),
        ("HARP_Zhao2023Holistic_R50_CIFAR10_US_90", "is no key of a published network.*such as HARP_Zhao2023Holistic_R18"),
        ("", "is no key of a published network"),
    ],
)
def test_a_key_under_which_nothing_was_published_is_answered_with_what_there_is(key, sentence):
    with pytest.raises(Invalid, match=sentence):
        checkpoints.find(key)


# ------------------------------------------------------------------------------------------------------------ files of one's own


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE},
        {"net": STATE, "acc": 91.2, "epoch": 7},
        {"model": {f"module.{k}": v for k, v in STATE.items()}},
    ],
    ids=["bare", "state_dict", "net", "data parallel"],
)
def test_weights_come_back_to_the_bit_however_they_are_wrapped(wrapped, tmp_path):
    torch.save(wrapped, tmp_path / "w.pt")
    net = checkpoints.load(tmp_path / "w.pt", "cnn", channels=1, classes=10)
    assert same(dict(net.state_dict()), dict(STATE))
    assert not net.training


def test_safetensors_are_read_too(tmp_path):
    save_file({k: v.contiguous() for k, v in STATE.items()}, tmp_path / "w.safetensors")
    assert same(checkpoints.read(tmp_path / "w.safetensors"), dict(STATE))


def test_weights_of_another_network_are_told_apart_key_by_key(tmp_path):
    changed = {k: v for k, v in STATE.items() if k != "bn1.weight"}
    changed["extra"] = torch.zeros(1)
    changed["linear.bias"] = torch.zeros(7)
    torch.save(changed, tmp_path / "w.pt")
    with pytest.raises(Invalid, match=r"1 missing \(bn1.weight\); 1 left over \(extra\); 1 of another shape \(linear.bias\)"):
        checkpoints.load(tmp_path / "w.pt", "cnn", channels=1, classes=10)


def test_a_file_that_two_words_describe_is_asked_for_one(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(Invalid, match="both a network"):
        checkpoints.load(tmp_path / "w.pt", "cnn", like=RST)
    with pytest.raises(Invalid, match="no network of the survey; name the network"):
        checkpoints.load(tmp_path / "w.pt")


# ----------------------------------------------------------------------------------------------------------- the survey's networks


def test_a_key_is_all_it_takes(home):
    put(checkpoints.cache_folder(), TWIN)
    found = checkpoints.open_checkpoint(TWIN.key)
    assert found.key.method == "twinrep" and found.doubts == found.notes == ()
    assert abs(found.sparsity.units - 0.9) < 1e-6
    assert json.loads((home / "checkpoints" / "seen.json").read_text())[found.path.name]["source"] == "put there by hand"
    assert checkpoints.load(TWIN.key)(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_another_sparsity_than_the_keys_is_said_aloud(tmp_path):
    path = put(tmp_path, replace(TWIN, sparsity=95), TWIN.key)
    with pytest.warns(
        UserWarning, match=r"the key says 90% of the weights, but 95.00% are gone in the layers that TwinRep prunes"
    ):
        checkpoints.load(path)


def test_the_file_of_the_doubled_key_may_be_the_other_network_and_is_read_as_what_it_is(tmp_path):
    """Which of the two ids is which cannot be told from the list: the file decides."""
    path = put(tmp_path, Case("HYDRA", "V16", 99), TWICE)
    with pytest.raises(Invalid, match=r"does not fit resnet18 of HYDRA.*looks like the vgg16 of HYDRA or HARP.*listed twice"):
        checkpoints.load(path)
    found = checkpoints.open_checkpoint(path, like=LOST)
    assert found.key.sparsity == 0.99 and abs(found.sparsity.units - 0.99) < 1e-6
    assert any("very likely" in note for note in found.notes) and not found.doubts  # the file settles it


def test_at_99_per_cent_twice_the_weights_are_told_apart(tmp_path):
    path = put(tmp_path, Case("HYDRA", "R18", 99), "HYDRA_Sehwag2020Hydra_R18_CIFAR10_US_99")
    assert not checkpoints.open_checkpoint(path).doubts
    state = checkpoints.read(path)
    weight = state["layer4.1.conv2.weight"]
    weight.view(-1)[weight.view(-1).eq(0).nonzero()[:20_000, 0]] = 0.01
    torch.save(state, path)
    assert "98.8" in checkpoints.open_checkpoint(path).doubts[0]


def test_scores_that_are_missing_everywhere_do_not_leave_a_random_network(tmp_path):
    def strip(tensors):
        for name in [n for n in tensors if n.endswith(".scores")]:
            del tensors[name]

    path = put(tmp_path, Case("RST", "R18", 99, "scores"), change=strip)
    with pytest.raises(Invalid, match=r"plain weights of which 0.0% are zero where RST .* no masks or scores"):
        checkpoints.load(path)


def test_a_file_says_what_it_is_and_what_it_does_not_say(tmp_path):
    path = put(tmp_path, Case("RST", "R18", 99, "scores", prefix="module."), RST)
    shutil.move(path, path := tmp_path / "best.pth")
    told = str(checkpoints.layout(path))
    assert "102 tensors under 'state_dict' with the prefix 'module.'" in told and "the resnet18 of RST" in told
    assert "does not say the share of weights kept nor how the images are normalised" in told
    with pytest.raises(Invalid, match=r"does not say .* such as RST_Fu2021Drawing_R18_CIFAR10_US_90"):
        checkpoints.load(path)
    found = checkpoints.open_checkpoint(path, like=RST.replace("CIFAR10", "SVHN"))  # a reader's own, for other data
    assert found.key.data == "svhn" and not isinstance(found.key, checkpoints.Entry)
    assert found.network.normalize.mean.flatten().tolist() == [0.5] * 3
    assert len(found.notes) == 2 and abs(found.sparsity.units - 0.99) < 1e-3


class CosineDecay:
    """A schedule with an optimizer of its own, as the Flying Bird code may keep it beside the weights."""

    def __init__(self):
        self.sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def test_a_schedule_saved_whole_beside_the_weights_stays_what_it_is_bytes(tmp_path):
    torch.save({"state_dict": STATE, "mask_info": {"decay": CosineDecay()}}, tmp_path / "w.tar")
    assert same(checkpoints.read(tmp_path / "w.tar"), dict(STATE))


def test_a_plain_file_of_unknown_origin_needs_no_word(tmp_path):
    torch.save(build("resnet18", channels=3, classes=10).state_dict(), tmp_path / "w.pt")
    found = checkpoints.open_checkpoint(tmp_path / "w.pt")
    assert "RADMM, HYDRA, HARP, PwoA, Li20 or TwinRep" in found.notes[0] and found.doubts == () and found.key is None
    assert "linear.weight" in found.masks  # of all layers: no method was named that would leave one dense


def test_names_of_modules_that_look_like_prefixes_are_left_where_they_belong(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = build("cnn", channels=1, classes=10, seed=4)

        def forward(self, x):
            return self.module(x)

    own = Wrapped()
    torch.save(own.state_dict(), tmp_path / "w.pt")
    assert same(dict(checkpoints.load(tmp_path / "w.pt", Wrapped(), channels=1).state_dict()), dict(own.state_dict()))


def test_a_file_whose_name_only_resembles_a_key_is_read_like_any_other(tmp_path):
    net = build("resnet18", channels=3, classes=10)
    torch.save(net.state_dict(), tmp_path / "mine_Me2026Own_R18_CIFAR10_US_90.pt")
    assert checkpoints.open_checkpoint(tmp_path / "mine_Me2026Own_R18_CIFAR10_US_90.pt").key is None
    torch.save(net.state_dict(), tmp_path / f"{TWICE} (1).pth.tar")
    assert checkpoints.open_checkpoint(tmp_path / f"{TWICE} (1).pth.tar").key.text == TWICE


# ------------------------------------------------------------------------------------------------------------------ plain citizens


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return checkpoints.open_checkpoint(put(tmp_path_factory.mktemp("twin"), TWIN))


def test_a_loaded_network_is_trained_on_without_reviving_what_was_pruned(twin):
    from apnb.training import bake_

    net = build(twin.network, channels=3, classes=10)  # a copy
    fixed = FixedMasks(twin.masks)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    net.train()
    for _ in range(2):
        effective = fixed.effective({n: p for n, p in net.named_parameters()})
        loss = torch.nn.functional.cross_entropy(
            torch.func.functional_call(net, effective, (torch.rand(4, 3, 32, 32),)), torch.arange(4)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bake_(net, fixed)
    after = dict(net.named_parameters())
    assert not any((after[n][~mask] != 0).any() for n, mask in twin.masks.items())
    assert any(not torch.equal(after[n], before[n]) for n in twin.masks)


def test_a_loaded_network_has_prunable_layers_like_any_other(twin):
    found = layers(twin.network, torch.zeros(2, 3, 32, 32), 10)
    assert [layer.name for layer in found][-1] == "classifier.weight" and len(found) == 14
    assert set(twin.masks) == {layer.name for layer in found}


def test_its_security_curve_stands_beside_the_published_distances(twin, tmp_path, home):
    key = "RADMM_Ye2019Sparsity_R18_CIFAR10_US_90"
    folder = checkpoints.cache_folder()
    folder.mkdir(parents=True)
    published = [torch.tensor(d) for d in (0.0, 0.01, 0.05, 0.2)]
    (folder / f"{checkpoints.find(key).text}.pickle").write_bytes(pickle.dumps(published))
    theirs = checkpoints.distances(key)
    assert theirs.name == "RADMM_Ye2019Adversarial_R18_CIFAR10_US_90" and theirs.data == "cifar10" and theirs.n == 4
    ours = curves.Distances(torch.tensor([0.0, 0.02, 0.03]), "ours", "FMN", data="cifar10", eps=8 / 255)
    figure = plots.security_curve([theirs, ours])
    assert {trace.name for trace in figure.data} >= {"ours", theirs.name}
    with pytest.raises(Invalid, match="lists no distances of MAD_Lee2022Masking_R18_CIFAR10_US_90; it has them for"):
        checkpoints.fetch_distances("MAD_Lee2022Masking_R18_CIFAR10_US_90")


# ----------------------------------------------------------------------------------------------------------------- the command line


def test_the_list_is_printed_with_the_tables_numbers_and_the_anomaly(cli, home):
    code, out, err = cli("checkpoints", "list", "--method", "hydra")
    assert code == 0 and "5 of 83 published networks" in out and "43.34" in out and "listed twice" in err
    code, out, _ = cli("checkpoints", "list", "--json")
    assert code == 0 and len(json.loads(out)) == 83


def test_fetch_tells_the_file_that_is_there_and_refuses_a_wrong_key_before_anything_else(cli, home):
    path = put(checkpoints.cache_folder(), TWIN)
    code, out, _ = cli("checkpoints", "fetch", TWIN.key)
    assert (code, out.strip()) == (0, str(path))
    code, out, err = cli("checkpoints", "fetch", TWIN.key, "HARP_Zhao2023Holistic_R18_SVHN_US_90")
    assert code == 2 and "no network for SVHN" in err and not out


def test_a_layout_is_told_and_a_misfit_refused_in_a_sentence(cli, tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    code, out, _ = cli("checkpoints", "layout", str(tmp_path / "w.pt"))
    assert code == 0 and "none of the survey's networks" in out
    code, out, err = cli("checkpoints", "evaluate", str(tmp_path / "w.pt"))
    assert code == 2 and "name the network that they belong to" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_published_network_is_judged_like_any_other(cli, home, tmp_path):
    """On images of 32x32 made up here: the path, not the number, is under test."""
    import numpy as np

    put(checkpoints.cache_folder(), TWIN)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "d.npz", x=x, y=y)
    code, out, err = cli(
        "checkpoints", "evaluate", TWIN.key, "--data", f"npz:{tmp_path / 'd.npz'}", "--attacks", "pgd", "--n", "4",
    )  # fmt: skip
    assert code == 0, err
    assert "n = 4" in out and "90.00% of the weights removed" in err
    assert "the survey's table" not in out  # its figures are for other images
