"""Figures of the survey and its table show the numbers that they were given, and titles say what was computed."""

from __future__ import annotations

import pytest

import apnb
from apnb import benchmark, plots, taxonomy
from apnb.errors import Invalid
from apnb.plots import survey

BOARD = taxonomy.leaderboard()


def rows(**wanted):
    found = BOARD
    for name, value in wanted.items():
        found = found[found[name] == value]
    return found


US = {"data": "cifar10", "network": "resnet18", "structure_group": "unstructured"}


def test_a_crossing_counts_the_methods_that_have_both_words_and_its_title_the_empty_squares():
    figure = plots.crossing("pipeline", "criterion")
    (trace,) = figure.data
    for i, p in enumerate(taxonomy.Pipeline):
        for j, c in enumerate(taxonomy.Criterion):
            expected = [m.name for m in taxonomy.methods() if m.pipeline == p and m.criterion == c]
            assert trace.z[i][j] == len(expected)
            assert trace.customdata[i][j] == (", ".join(expected) or "nobody")
            assert trace.text[i][j] == (str(len(expected)) if expected else "–")
    assert f"{sum(n == 0 for line in trace.z for n in line)} of 18 squares are empty" in figure.layout.title.text


def test_a_crossing_has_a_place_for_what_the_survey_does_not_say_and_none_for_both():
    figure = plots.crossing("schedule", "locality")
    assert list(figure.data[0].y) == ["one-shot", "iterative", "not said"] and list(figure.data[0].x)[-1] == "not said"
    bnap = sum("BNAP" in names for line in figure.data[0].customdata for names in line)
    assert bnap == 2  # both schedules


def test_a_crossing_of_a_dimension_with_itself_is_refused():
    with pytest.raises(Invalid, match="both dimensions are 'pipeline'"):
        plots.crossing("pipeline", "pipeline")
    with pytest.raises(Invalid, match="no dimension 'colour'"):
        plots.crossing("colour", "pipeline")


def test_the_atlas_tells_inhabited_uncertain_empty_and_invalid_cells_apart():
    cells = apnb.grid()
    named = {c: [] for c in cells} | {cells[0]: ["A", "B"]}
    possible = named | {cells[1]: ["C"]}
    figure = plots.atlas(named, possible)
    z = [value for line in figure.data[0].z for value in line]
    assert len(z) == 288 and z.count(None) == 288 - len(cells) == 46 and z.count(0) == 240 and z.count(1) == z.count(2) == 1
    told = [t for line in figure.data[0].text for t in line]
    assert sorted(t for t in told if t) == ["2", "?"]
    assert figure.layout.title.text == "Nobody lives in 240 of the 242 cells"


def test_lines_of_the_published_table_hold_its_numbers_and_the_title_the_largest_loss():
    table = rows(**US)
    figure = plots.published_sparsity(table)
    assert {t.name for t in figure.data} == {taxonomy.method(m).name for m in table["method"]}
    for trace in figure.data:
        mine = table[table["method"] == taxonomy.method(trace.name).key].sort_values("sparsity")
        assert list(trace.y) == list(mine["robust"]) and trace.line.color == plots.PIPELINES[taxonomy.method(trace.name).pipeline]
    fall = benchmark.falls(table).set_index("method")["robust"]
    assert f"PwoA loses {-fall['pwoa']:.1f} points, RST gains {fall['rst']:.1f}" in figure.layout.title.text
    assert fall.idxmin() == "pwoa" and fall.idxmax() == "rst"


def test_labels_at_the_ends_of_lines_keep_their_distance_and_their_order():
    places = survey._spread([10.0, 30.0, 10.5, 10.2], 2.0)
    assert sorted(range(4), key=places.__getitem__) == [0, 3, 2, 1]
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) == pytest.approx(2, abs=0.01) and places[1] == 30 and survey._spread([1.0, 9.0], 2.0) == [1, 9]


def test_one_table_is_asked_for_and_one_column():
    with pytest.raises(Invalid, match="2 different network"):
        plots.published_sparsity(rows(data="cifar10", structure_group="unstructured"))
    with pytest.raises(Invalid, match="3 different sparsity"):
        plots.clean_robust(rows(**US))


def test_filled_markers_are_the_front():
    column = rows(**US, sparsity=0.9)
    figure = plots.clean_robust(column)
    points = [t for t in figure.data if t.mode == "markers"]
    filled = {taxonomy.method(t.name).key for t in points if not t.marker.symbol.endswith("-open")}
    assert filled == set(benchmark.pareto(column)["method"]) == {"harp", "flyingbird"}
    assert {(t.x[0], t.y[0]) for t in points} == set(zip(column["clean"], column["robust"], strict=True))
    assert "nobody beats HARP or FlyingBird on both" in figure.layout.title.text
    assert "HARP beats all others on both" in plots.clean_robust(rows(**US, sparsity=0.99)).layout.title.text


def test_the_picture_of_a_trait_has_a_dot_for_each_method_and_a_bar_for_each_word():
    figure = plots.by_trait("pipeline")
    level = benchmark.levels(BOARD[BOARD["structure_group"] == "unstructured"])
    assert {taxonomy.method(t.name).key: t.y[0] for t in figure.data} == pytest.approx(dict(level))
    means = level.groupby([str(taxonomy.method(m).pipeline) for m in level.index]).mean().sort_values(ascending=False)
    bars = [s.y0 for s in figure.layout.shapes if s.x1 != 1]
    assert bars == pytest.approx(list(means)) and [t.split("<br>")[0] for t in figure.layout.xaxis.ticktext] == list(means.index)
    test = benchmark.gap_by_chance("pipeline")
    assert (
        f"{test['gap']:.1f} points apart" in figure.layout.title.text
        and f"{test['share']:.0%} of 2,520" in figure.layout.title.text
    )


def test_white_bars_are_the_leads_within_their_bound():
    table = benchmark.separable()
    figure = plots.first_and_second(table)
    bar, ticks = figure.data
    assert sorted(bar.x) == pytest.approx(sorted(table["gap"])) and list(bar.x) == sorted(bar.x, reverse=True)
    for gap, bound, colour in zip(bar.x, ticks.x, bar.marker.color, strict=True):
        assert (colour == "#FFFFFF") == (gap <= bound)
    assert figure.layout.title.text.startswith(f"In {bar.marker.color.count('#FFFFFF')} of 24 columns")


def test_every_method_looks_the_same_in_every_figure_and_like_no_other_of_its_colour():
    keys = sorted(BOARD["method"].unique())
    looks = survey._look(keys)
    assert len({symbol for _, _, symbol in looks.values()}) == len(keys)
    assert all(survey._look([key])[key] == looks[key] for key in keys)
    assert survey._look(["HARP"])["HARP"] == looks["harp"]  # a name will do
