"""The figures that the notebooks on robustness and on pruning draw."""

import pandas as pd
import pytest
import torch

from apnb import plots
from apnb.errors import Invalid


def points(*numbers):
    return torch.tensor(numbers, dtype=torch.bool)


def test_all_attacks_together_leave_the_points_that_stand_against_each():
    stands = {
        "net": {"a": points(1, 1, 0, 0), "b": points(1, 0, 1, 0)},
        "other": {"a": points(1, 1, 1, 1), "b": points(1, 1, 1, 1)},
    }
    figure = plots.attacks(stands)
    assert [list(dots.y) for dots in figure.data] == [[50, 50, 25], [100, 100, 100]]
    assert list(figure.layout.xaxis.ticktext) == ["a", "b", "<b>all of them</b>"]
    assert all(y - low >= 0 and y + up <= 100 for bar in figure.data
               for y, low, up in zip(bar.y, bar.error_y.arrayminus, bar.error_y.array, strict=True))  # fmt: skip


def test_networks_that_were_attacked_otherwise_share_no_figure():
    with pytest.raises(Invalid, match="same attacks on the same points"):
        plots.attacks({"a": {"x": points(1, 0)}, "b": {"x": points(1, 0, 1)}})
    with pytest.raises(Invalid, match="got 0 networks"):
        plots.attacks({})


@pytest.mark.parametrize("channels", [1, 3])
def test_an_attacked_image_is_shown_with_what_was_added_and_what_the_network_says(channels):
    image = torch.full((channels, 4, 5), 0.5)
    attacked = image.clone()
    attacked[:, 0, 0] += 0.1
    figure = plots.under_attack(image, attacked, torch.tensor([0.2, 0.8]), 0, eps=0.2)
    assert figure.layout.title.text == "A 0, and the network says 1: broken"
    assert [a.text for a in figure.layout.annotations][1] == "added, up to 0.1"
    bars = figure.data[3]
    assert list(bars.y) == [20, 80] and list(bars.marker.color) == [plots.BLUE, plots.ORANGE]
    if channels == 1:
        assert figure.data[1].z[0][0] == pytest.approx(0.1, abs=1e-3) and figure.data[1].z[1][1] == 0


def test_each_small_square_is_one_weight_and_kernels_are_told_apart():
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    mask[1] = False
    figure = plots.units({"filters": mask}, inputs=2)
    z = torch.tensor(figure.data[0].z)
    assert z.shape == (2 * 4 - 1, 2 * 4 - 1)
    assert (z == 2).sum() == 2 * 9 and (z == 0).sum() == 2 * 9  # two kernels of each of two filters
    assert "first 2 of 3 inputs" in figure.layout.title.subtitle.text
    with pytest.raises(Invalid, match="one convolution"):
        plots.units({"weights": torch.ones(2, 3)})


def test_a_cut_has_one_line_for_each_structure_and_locality_in_both_panels():
    rows = [{"structure": s, "locality": l, "sparsity": p, "clean": 1 - p, "robust": 0.5 - p / 2, "n": 100}
            for s in ("weights", "filters") for l in ("local", "global") for p in (0.9, 0.5)]  # fmt: skip
    figure = plots.after_cut(pd.DataFrame(rows))
    assert len(figure.data) == 8
    assert list(figure.data[0].x) == [50, 90] and list(figure.data[0].y) == [50, 10] and list(figure.data[1].y) == [25, 5]
    assert figure.data[0].line.dash != figure.data[2].line.dash and figure.data[0].line.color == figure.data[2].line.color
    assert "n = 100" in figure.layout.title.subtitle.text
    with pytest.raises(Invalid, match="no cut"):
        plots.after_cut(pd.DataFrame(rows)[:0])
