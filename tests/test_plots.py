"""Figures carry the numbers they were given: values, intervals, medians, and refusals. Looks are checked by eye."""

from __future__ import annotations

import math

import pandas as pd
import plotly.io as pio
import pytest
import torch

from apnb import plots
from apnb.errors import Invalid
from apnb.evaluation import Evaluation, wilson
from apnb.masks import Sparsity
from apnb.recipes import CRITERIA, PIPELINES, STRUCTURES
from apnb.store import ROW


def row(sparsity=0.9, robust=0.5, clean=0.8, *, pipeline="after", criterion="lwm", seed=0, n=100, **changes) -> dict:
    label = "dense" if sparsity == 0 else f"{pipeline}/weights/global/{criterion.upper()}"
    low, high = wilson(round(robust * n), n)
    return {
        "key": f"{label}-{sparsity}-{seed}-{changes}", "label": label, "pipeline": pipeline, "schedule": "one_shot",
        "structure": "weights", "locality": "global", "criterion": criterion, "variant": None, "seed": seed,
        "budget": "quick", "network": "cnn", "data": "digits",
        "train_eps": 0.15, "sparsity": sparsity, "units": sparsity, "weights": sparsity, "parameters": sparsity,
        "collapsed": 0, "seconds": 1.0, "clean": clean, "robust": robust, "low": low, "high": high, "n": n,
        "attacks": "standard", "eps": 0.15,
        "subset": "stratified", "attack_seconds": 1.0, **changes,
    }  # fmt: skip


def frame(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(ROW))


def named(figure, name: str, what: str = "robust"):
    (trace,) = [t for t in figure.data if t.legendgroup == name and t.meta == what]
    return trace


LWM = "after/weights/global/LWM"


def test_a_single_seed_has_the_wilson_interval_as_its_bar():
    figure = plots.robustness_sparsity(frame(row(0.9, 0.5, 0.8), row(0.5, 0.7, 0.9)))
    robust, clean = named(figure, LWM), named(figure, LWM, "clean")
    assert [key.split("-")[1] for key in robust.customdata] == ["0.5", "0.9"]  # of the runs, for whoever is clicked on
    assert list(robust.x) == [50, 90] and list(robust.y) == pytest.approx([70, 50]) and list(clean.y) == pytest.approx([90, 80])
    for trace, shares in ((robust, (0.7, 0.5)), (clean, (0.9, 0.8))):
        for share, up, down in zip(shares, trace.error_y.array, trace.error_y.arrayminus, strict=True):
            low, high = wilson(round(share * 100), 100)
            assert (up, down) == pytest.approx((100 * (high - share), 100 * (share - low)))


def test_several_seeds_are_a_median_with_a_range_and_the_legend_says_so():
    figure = plots.robustness_sparsity(frame(*(row(0.9, r, seed=i) for i, r in enumerate((0.2, 0.5, 0.6)))))
    (trace,) = [t for t in figure.data if t.meta == "robust"]
    assert list(trace.y) == pytest.approx([50])
    assert (trace.error_y.array[0], trace.error_y.arrayminus[0]) == pytest.approx((10, 30))
    assert trace.name == f"{LWM}, median of 3 seeds, bars lowest to highest"
    assert "interval" not in figure.layout.title.subtitle.text


def test_the_dense_network_is_a_horizontal_line_and_no_point():
    figure = plots.robustness_sparsity(frame(row(0, 0.75, 0.99), row(0.9)))
    robust, clean = named(figure, "dense"), named(figure, "dense", "clean")
    assert list(robust.y) == [75, 75] and list(clean.y) == [99, 99] and robust.mode == "lines"
    assert tuple(robust.x) == tuple(figure.layout.xaxis.range)


def test_the_dense_network_alone_is_a_figure():
    assert list(named(plots.robustness_sparsity(frame(row(0, 0.75))), "dense").y) == [75, 75]


@pytest.mark.parametrize(("column", "other"), [("eps", 8 / 255), ("attacks", "lite"), ("data", "cifar10")])
def test_what_cannot_be_compared_is_refused(column, other):
    with pytest.raises(Invalid, match=f"different {column}"):
        plots.robustness_sparsity(frame(row(0.5), row(0.9, **{column: other})))


def test_an_empty_frame_and_one_without_evaluations_are_refused():
    for nothing in (frame(), frame(row(0.9, clean=None, robust=0.5) | {"robust": None})):
        with pytest.raises(Invalid, match="no evaluated run to show"):
            plots.robustness_sparsity(nothing)
    with pytest.raises(Invalid, match=r"lacks the columns .*sparsity"):
        plots.robustness_sparsity(pd.DataFrame({"label": ["a"]}))


def test_of_several_evaluations_of_a_run_the_largest_counts():
    small = row(0.9, 0.4, n=20)
    figure = plots.robustness_sparsity(frame(row(0.9, 0.5, n=100), small))
    assert list(named(figure, LWM).y) == [50] and "median" not in named(figure, LWM).name


def test_the_words_say_what_was_found_and_on_how_many_images():
    figure = plots.robustness_sparsity(frame(row(0.5, n=64), row(0.9, n=128)))
    said = figure.layout.title.subtitle.text
    assert "upper bound, found by AutoAttack<br>eps = 0.15, n = 64 to 128 test images" in said and "95 % interval" in said
    text = named(figure, LWM).text[0]
    for part in ("n = 64", "AutoAttack", "eps 0.15", "50.00%", "run after"):
        assert part in text
    assert tuple(figure.layout.yaxis.range) == (-1, 101)


def test_every_way_of_pruning_looks_different_and_always_the_same():
    rows = [
        row(0.9, pipeline=p, criterion=c, structure=u, locality=l, schedule=s, label=f"{p}{u}{l}{c}{s}", key=f"{p}{u}{l}{c}{s}")
        for p in PIPELINES for c in CRITERIA for u in STRUCTURES for l in ("local", "global") for s in ("one_shot", "iterative")
    ]  # fmt: skip
    figure = plots.robustness_sparsity(frame(*rows))
    looks = {t.name: (t.line.color, t.marker.symbol, t.line.dash) for t in figure.data if t.meta == "robust"}
    assert len(set(looks.values())) == len(rows)
    alone = plots.robustness_sparsity(frame(rows[37]))
    (line,) = [t for t in alone.data if t.meta == "robust"]
    assert (line.line.color, line.marker.symbol, line.line.dash) == looks[line.name]
    assert plots.CLEAN not in plots.CRITERIA.values()


def test_published_results_are_open_points_of_their_own_with_their_protocol():
    from apnb import taxonomy

    table = taxonomy.leaderboard()
    some = table[(table.network == "vgg16") & (table.data == "cifar10") & (table.structure_group == "structured")]
    figure = plots.robustness_sparsity(frame(row(0.9)), published=some)
    found = {t.name: t for t in figure.data if t.meta == "published"}
    assert len(found) == some.method.nunique() and all("open" in t.marker.symbol and t.mode == "markers" for t in found.values())
    harp = found["HARP (published)"]
    assert list(zip(harp.x, harp.y, strict=True)) == [(50, 40.01), (75, 39.14), (90, 35.62)] and "eps 0.031" in harp.hovertemplate


def test_masks_are_drawn_filter_by_filter_and_large_ones_as_shares():
    from types import SimpleNamespace

    small = torch.zeros(4, 3, 1, 2, dtype=torch.bool)
    small[1, 2, 0, 1] = True
    large = torch.ones(200, 500, dtype=torch.bool)
    large[100:] = False
    run = SimpleNamespace(masks={"a.weight": small, "b.weight": large}, recipe=SimpleNamespace(label="x", sparsity=0.5))
    one, two = plots.masks(run).data
    assert len(one.z) == 4 and one.z[1][5] == 1 and sum(map(sum, one.z)) == 1
    assert len(two.z) == len(two.z[0]) == 96 and min(two.z[0]) == 1 and max(two.z[-1]) == 0
    assert len(plots.masks(SimpleNamespace(masks={f"{i}.weight": small for i in range(20)}, recipe=run.recipe)).data) == 12


def test_two_networks_are_two_lines_of_different_colour():
    figure = plots.robustness_sparsity(frame(row(0.9), row(0.9, network="resnet8")))
    one, two = named(figure, f"{LWM}, cnn"), named(figure, f"{LWM}, resnet8")
    assert one.line.color != two.line.color


def test_drawing_leaves_plotlys_defaults_alone():
    before = pio.templates.default, pio.renderers.default
    figure = plots.robustness_sparsity(frame(row()))
    assert (pio.templates.default, pio.renderers.default) == before and figure.layout.template.layout.margin.l == 64


# --- one run ------------------------------------------------------------------------------------------------------------------


def log(*rows: tuple) -> pd.DataFrame:
    names = ("stage", "kind", "step", "of", "loss", "accuracy", "val_clean", "val_pgd", "clean", "pgd", "asked")
    return pd.DataFrame([dict(zip(names, r, strict=True)) for r in rows])


NONE = math.nan
TRAINED = log(
    ("pretraining", "epoch", 1, 2, 2.0, 0.3, 0.4, NONE, NONE, NONE, NONE),
    ("pretraining", "epoch", 2, 2, 1.0, 0.6, 0.9, 0.7, NONE, NONE, NONE),
    ("round 1: prune", "pruned", 1, 1, NONE, NONE, NONE, NONE, 0.5, 0.2, 0.9),
    ("round 1: finetuning", "epoch", 1, 1, 0.9, 0.7, 0.95, 0.6, NONE, NONE, NONE),
)


def test_a_history_counts_epochs_over_all_stages_and_marks_the_cut():
    figure = plots.history(TRAINED)
    by_name = {t.name: t for t in figure.data}
    assert list(by_name["training loss"].x) == [1, 2, 3] and list(by_name["training loss"].y) == [2.0, 1.0, 0.9]
    assert list(by_name["validation images under PGD, end of a stage"].x) == [2, 3]
    cut = by_name["validation images under PGD, right after a cut"]
    assert list(cut.x) == [2.5] and list(cut.y) == pytest.approx([20])
    assert [s.x0 for s in figure.layout.shapes if s.type == "line"] == [2.5, 2.5]  # the mark crosses both panels
    assert {"pretraining", " sparsity 0.9"} <= {a.text for a in figure.layout.annotations}


def test_a_history_without_cuts_or_checks_is_drawn_and_one_without_epochs_refused():
    bare = TRAINED[TRAINED["kind"] == "epoch"][["stage", "kind", "step", "of", "loss", "accuracy"]]
    assert [t.name for t in plots.history(bare).data] == ["training loss", "training batches, as trained on"]
    with pytest.raises(Invalid, match="no epoch to draw"):
        plots.history(TRAINED[TRAINED["kind"] == "pruned"])
    with pytest.raises(Invalid, match="no epoch to draw"):
        plots.history(pd.DataFrame())


def kept(**per_layer: float) -> Sparsity:
    names = {f"{k}.weight": v for k, v in per_layer.items()}
    return Sparsity(0.9, 0.9, 0.9, 0.9, 1, 10, names, ("b.weight",), ("c.weight",) if per_layer.get("c") == 0 else ())


def test_layers_stand_in_network_order_with_the_first_on_top():
    (bars,) = plots.layers(kept(a=0.5, b=0.1)).data
    figure = plots.layers(kept(a=0.5, b=0.1))
    assert list(bars.y) == ["a", "b"] and list(bars.x) == [50, 10] and figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.xaxis.type != "log"
    assert bars.text == ("50 %", "10 %, one unit left") and bars.marker.pattern.shape == ("", "/")


def test_layers_kept_below_two_percent_get_a_logarithmic_axis_and_empty_ones_a_word():
    figure = plots.layers(kept(a=0.5, b=0.001, c=0.0))
    assert figure.layout.xaxis.type == "log" and figure.layout.xaxis.range[0] <= -1
    assert figure.data[0].text == ("50 %", "0.1 %, one unit left", "0 %, empty")


def evaluation(found: int, channels: int = 1) -> Evaluation:
    x = torch.full((found, channels, 4, 4), 0.5)
    x_adv = x.clone()
    x_adv[:, :, 0, 0] += 0.1
    numbers = torch.arange(found)
    examples = {"x": x, "x_adv": x_adv, "label": numbers, "before": numbers, "after": numbers + 1, "index": numbers + 40}
    zeros = torch.zeros(found)
    return Evaluation(
        numbers, numbers, numbers, ("",) * found, zeros, zeros, zeros, zeros, zeros, "standard", 0.1, "first", 0,
        examples=examples if found else {},
    )  # fmt: skip


def test_examples_show_image_perturbation_and_attacked_image_side_by_side():
    figure = plots.examples(evaluation(4), k=3)
    assert len(figure.data) == 9
    image, delta, attacked = figure.data[:3]
    assert image.z[0, 0] == 0.5 and delta.z[0, 0] == pytest.approx(0.1) and attacked.z[0, 0] == pytest.approx(0.6)
    assert (delta.zmin, delta.zmax) == (-0.1, 0.1) and delta.z[1, 1] == 0
    said = {a.text for a in figure.layout.annotations}
    assert {"label 0<br>0 → 1", "label 2<br>2 → 3"} <= said and "0.1" in figure.layout.title.subtitle.text


def test_colour_examples_are_pictures_and_no_change_is_mid_grey():
    figure = plots.examples(evaluation(2, channels=3))
    assert [t.type for t in figure.data] == ["image"] * 6
    assert list(figure.data[1].z[1][1]) == [128, 128, 128] and list(figure.data[1].z[0][0]) == [255, 255, 255]


def test_no_broken_point_is_a_sentence_not_an_error():
    figure = plots.examples(evaluation(0))
    assert not figure.data and "No point was broken" in figure.layout.annotations[0].text
    with pytest.raises(Invalid, match="at least 1"):
        plots.examples(evaluation(1), k=0)


# --- files --------------------------------------------------------------------------------------------------------------------


def test_html_needs_no_network_or_shares_one_script(tmp_path):
    figure = plots.layers(kept(a=0.5, b=0.1))
    page = plots.save(figure, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script src=" not in page and len(page) > 1e6
    small = plots.save(figure, tmp_path / "b.html", plotlyjs="directory").read_text(encoding="utf-8")
    assert len(small) < 1e5 and (tmp_path / "plotly.min.js").exists()


def test_what_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    figure = plots.layers(kept(a=0.5, b=0.1))
    with pytest.raises(Invalid, match=r"ends in \.html, \.png or \.svg"):
        plots.save(figure, tmp_path / "a.gif")
    with pytest.raises(Invalid, match="no folder"):
        plots.save(figure, tmp_path / "none" / "a.html")
    monkeypatch.setattr(plots.show, "_browser", lambda: False)
    with pytest.raises(Invalid, match="Chromium"):
        plots.save(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_a_browser_draws_pictures(tmp_path):
    if not plots.show._browser():
        pytest.skip("no Chromium found")
    figure = plots.layers(kept(a=0.5, b=0.1))
    assert plots.save(figure, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in plots.save(figure, tmp_path / "a.svg").read_bytes()


def test_the_renderer_is_interactive_with_a_picture_where_one_can_be_drawn(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)
    monkeypatch.setattr(plots.show, "_browser", lambda: False)
    plots.renderer()
    assert pio.renderers.default == "plotly_mimetype"
