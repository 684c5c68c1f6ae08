"""The curve means something: over three seeds, on the same points, paired."""

import pytest

from tests.benchmarks.curve import measure, paired


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    return measure(str(tmp_path_factory.mktemp("curve")), seeds=(0, 1, 2), n=500, attacks="lite")


def mean(frame, who: str, sparsity: float) -> float:
    chosen = frame[(frame["who"] == who) & (frame["sparsity"] == sparsity)]
    assert len(chosen) == 3
    return chosen["robust"].mean()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["global", "local"])
def test_at_90_percent_magnitude_keeps_more_than_random(frame, who):
    found = paired(frame, who, "random", 0.9)
    assert all(only_magnitude > only_random for only_magnitude, only_random in found["seeds"]) and found["p"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("who", ["global", "local"])
def test_at_99_percent_robust_accuracy_falls_below_60_percent_of_the_dense(frame, who):
    assert mean(frame, who, 0.99) < 0.6 * mean(frame, "dense", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["global", "local"])
def test_fine_tuning_gives_back_most_of_what_the_cut_took(frame, who):
    dense, cut, tuned = mean(frame, "dense", 0.0), mean(frame, f"{who} cut", 0.9), mean(frame, who, 0.9)
    assert dense - cut > 0.1, "the cut took something"
    assert tuned - cut > 0.5 * (dense - cut)
