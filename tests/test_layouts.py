"""The surveyed checkpoints in all their layouts: what is loaded computes what was published, by a second opinion (`tests.layouts`).

Files have full size and random weights. Logits are compared within 1e-4 of their scale, which float32 needs because the loaded
network multiplies factors and normalises in another order. The last tests show that small misreadings exceed it: the nearest other
normalisation always, one weight less in most places; so the places of the zeros are compared too, and exactly.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apnb import checkpoints
from apnb.errors import Invalid
from tests.layouts import KEYS, NORMALISATION, Case, effective, forward, images, logits, state, write

IMAGES = images(2, seed=5)
ENDINGS = {key: ending for key, ending in KEYS.values()}

ONCE = {
    ("RADMM", "plain"): (("", "module.basic_model."), ("net", "")),
    ("HYDRA", "plain"): (("state_dict", ""), ("state_dict", "module.")),
    ("HARP", "plain"): (("state_dict", ""), ("state_dict", "module.")),
    ("PwoA", "plain"): (("", ""), ("net", "")),
    ("MAD", "mask_weight"): (("net", ""), ("net", "module.")),
    ("Li20", "plain"): (("state_dict", ""), ("net", "")),
    ("RobustBird", "plain"): (("state_dict", ""), ("state_dict", "module.")),
    ("RobustBird", "weight_orig"): (("state_dict", "module."), ("state_dict", "")),
    ("TwinRep", "plain"): (("", ""), ("net", "module.")),
    ("TwinRep", "factors"): (("", "module."), ("state_dict", "")),
    ("FlyingBird", "plain"): (("state_dict", ""), ("state_dict", "module.")),
}
"""Method and form -> top-level key and prefix of a ResNet18's and of a VGG16's file, where the mask does not depend on the sparsity."""
SCORES = [("HYDRA", "popup_scores", ""), ("HARP", "k_score", "module."), ("RST", "scores", "module.")]
STRUCTURED = [
    ("RADMM", "plain"),
    ("HARP", "plain"),
    ("HARP", "k_score"),
    ("PwoA", "plain"),
    ("TwinRep", "plain"),
    ("TwinRep", "factors"),
]
QUICK = [
    *(Case(m, a, 90, f, "US", *w) for (m, f), ws in ONCE.items() for a, w in zip(("R18", "V16"), ws, strict=True)),
    *(Case(m, a, 99, f, prefix=p) for m, f, p in SCORES for a in ("R18", "V16")),
    *(Case(m, "R18", 50, f, "S") for m, f in STRUCTURED),
]
MORE = [
    *(Case(m, a, s, f, prefix=p) for m, f, p in SCORES for a in ("R18", "V16") for s in (90, 95)),
    *(Case(m, "V16", 50, f, "S") for m, f in STRUCTURED),
]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]
NAMES = {
    ("RADMM", "plain"): (122, 93),
    ("HYDRA", "plain"): (122, 84),
    ("HYDRA", "popup_scores"): (143, 100),
    ("HARP", "plain"): (122, 84),
    ("HARP", "k_score"): (164, 116),
    ("PwoA", "plain"): (122, 97),
    ("MAD", "mask_weight"): (144, 95),
    ("Li20", "plain"): (122, 174),
    ("RST", "scores"): (102, 67),
    ("RobustBird", "plain"): (107, 93),
    ("RobustBird", "weight_orig"): (130, 109),
    ("TwinRep", "plain"): (122, 80),
    ("TwinRep", "factors"): (164, 108),
    ("FlyingBird", "plain"): (109, 95),
}
"""Tensors in the state_dict of a ResNet18 and of a VGG16, by the authors' code."""
KEPT = {
    ("RADMM", "R18", 90): 1_115_933 + 5_120,
    ("RADMM", "V16", 90): 1_471_052 + 5_120,
    ("PwoA", "R18", 90): 1_115_933 + 5_120,
    ("PwoA", "V16", 90): 1_471_052 + 592_384,
    ("HYDRA", "R18", 99): 111_653,
    ("HYDRA", "V16", 99): 153_035,
    ("Li20", "R18", 90): 1_116_436,
    ("Li20", "V16", 90): 1_497_773,
    ("RST", "R18", 90): 1_116_445,
    ("RST", "R18", 95): 558_228,
    ("RST", "R18", 99): 111_653,
    ("RST", "V16", 90): 1_471_564,
    ("RST", "V16", 95): 735_785,
    ("RST", "V16", 99): 147_162,
    ("RobustBird", "R18", 90): 11_164_352 - 10_047_917,
    ("RobustBird", "V16", 90): 14_715_584 - 13_244_026,
    ("TwinRep", "R18", 90): 11_164_352 - 10_047_917,
    ("TwinRep", "V16", 90): 14_715_584 - 13_244_026,
}
"""Weights of convolutions and linear layers that unstructured pruning leaves, by the authors' code."""


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def predicted(net: nn.Module) -> Tensor:
    assert not net.training
    with torch.inference_mode():
        return net(IMAGES)


def weights(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Of convolutions and linear layers, flat and in the order of the layers; names and axes differ between networks."""
    return [t.detach().flatten() for t in tensors.values() if t.ndim > 1]


@pytest.fixture(scope="module", params=CASES, ids=str)
def published(request, tmp_path_factory):
    """A case, its tensors, and the file that holds them."""
    case = request.param
    tensors = state(case)
    path = tmp_path_factory.mktemp("published") / (case.key + ENDINGS[KEYS[case.method][0]])
    write(path, case, tensors)
    yield case, tensors, path
    path.unlink()


def test_a_state_has_as_many_tensors_as_the_authors_networks(published):
    case, tensors, _ = published
    assert len(tensors) == NAMES[case.method, case.form][case.arch == "V16"]


def test_the_loaded_network_has_the_published_weights_and_logits(published):
    case, tensors, path = published
    plain = effective(case, tensors)
    expected = forward(case, plain, IMAGES)
    assert expected.isfinite().all() and (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()
    found = checkpoints.open_checkpoint(path)
    pairs = list(zip(weights(dict(found.network.named_parameters())), weights(plain), strict=True))
    assert all(torch.equal(a != 0, b != 0) for a, b in pairs)
    assert close(predicted(found.network), expected)
    left = sum(int(b.count_nonzero()) for _, b in pairs)
    assert found.sparsity.weights == pytest.approx(1 - left / sum(len(b) for _, b in pairs), abs=1e-9)
    if case.structure == "US":
        assert left == KEPT.get((case.method, case.arch, case.sparsity), left)


def test_the_layout_tells_what_the_file_holds(published):
    case, _, path = published
    layout = checkpoints.layout(path)
    assert (layout.wrapper, layout.prefix, layout.form) == (case.wrapper, case.prefix, case.form)
    assert case.method.lower() in layout.methods


@pytest.mark.parametrize(("method", "sparsity"), [("HYDRA", 99), ("HARP", 95), ("RST", 90)])
def test_under_another_name_scores_need_to_be_told_what_they_are(method, sparsity, tmp_path):
    case = Case(method, "R18", sparsity, next(f for m, f, _ in SCORES if m == method))
    tensors, path = state(case), tmp_path / "checkpoint.pth"
    write(path, case, tensors)
    with pytest.raises(Invalid, match="like"):
        checkpoints.load(path)
    assert close(predicted(checkpoints.load(path, like=case.key)), logits(case, tensors, IMAGES))


def test_masks_of_mad_count_before_they_are_settled(tmp_path):
    case = Case("MAD", "R18", 90, "mask_weight", wrapper="net")
    g = torch.Generator().manual_seed(1)
    tensors = {n: torch.rand(t.shape, generator=g) - 0.5 if ".mask_" in n else t for n, t in state(case).items()}
    write(tmp_path / f"{case.key}.t7", case, tensors)
    assert close(predicted(checkpoints.load(tmp_path / f"{case.key}.t7")), logits(case, tensors, IMAGES))


def test_files_in_the_format_of_old_torch_are_read(tmp_path):
    case = Case("RADMM", "R18", 90, wrapper="", prefix="module.basic_model.")
    tensors, path = state(case), tmp_path / f"{case.key}.pt"
    write(path, case, tensors, zipped=False)
    assert close(predicted(checkpoints.load(path)), logits(case, tensors, IMAGES))


@pytest.mark.parametrize("case", [Case("HYDRA", "R18", 90, "popup_scores"), Case("RST", "R18", 90, "scores")], ids=str)
def test_one_weight_less_shows_in_the_logits_unless_it_ends_in_a_dead_channel(case):
    plain = effective(case, state(case))
    expected = forward(case, plain, IMAGES)
    layers = [name for name, t in plain.items() if t.ndim > 1]
    shown = 0
    for name in layers:
        fewer = plain[name].clone()
        fewer.view(-1)[fewer.abs().argmax()] = 0
        shown += not close(forward(case, plain | {name: fewer}, IMAGES), expected)
    assert shown >= 0.8 * len(layers)


@pytest.mark.parametrize("method", NORMALISATION)
def test_another_normalisation_would_show(method):
    case = Case(method, "R18", 90, {"MAD": "mask_weight", "RST": "scores"}.get(method, "plain"))
    plain = effective(case, state(case))
    expected = forward(case, plain, IMAGES)
    others = {constants for m, constants in NORMALISATION.items() if m != method} | {((0.0,) * 3, (1.0,) * 3)}
    for mean, std in others - {NORMALISATION[method]}:
        constants = {"normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}
        assert not close(forward(case, plain | constants, IMAGES), expected), (mean, std)
