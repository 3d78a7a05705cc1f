"""The numbers of a run against published examples, scipy, exact enumeration and simulation with known truth."""

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radin.errors import TaskError
from radin.stats import confidence
from radin.stats.confidence import (
    mcnemar_mid_p,
    optimism,
    paired_difference,
    sentences,
    split_halves,
    tango_interval,
    unpaired_difference,
)


def pairs(both: int, up: int, down: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    soup = np.repeat([1.0, 1.0, 0.0, 0.0], [both, up, down, neither])
    single = np.repeat([1.0, 0.0, 1.0, 0.0], [both, up, down, neither])
    return soup, single


def test_gain_agrees_with_published_paired_tables():
    # Fagerland, Lydersen and Laake 2013 and 2014: Cavo et al. 2012 and Bentur et al. 2009.
    cavo = paired_difference(*pairs(59, 6, 16, 80), True)
    assert cavo.method == "mcnemar"
    assert round(cavo.difference, 4) == -0.0621
    assert (round(cavo.low, 4), round(cavo.high, 4)) == (-0.1240, -0.0054)
    assert round(cavo.p_value, 6) == 0.034690
    bentur = paired_difference(*pairs(1, 1, 7, 12), True)
    assert (round(bentur.low, 3), round(bentur.high, 3)) == (-0.517, -0.026)
    assert round(bentur.p_value, 3) == 0.039
    # R: PropCIs::scoreci.mp(25, 28, 618, 0.90)
    assert tuple(round(x, 4) for x in tango_interval(28, 25, 618, 0.90)) == (-0.0148, 0.0247)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400))
def test_tango_interval_inverts_the_score_test(up, down, same):
    examples = up + down + same + 1
    low, high = tango_interval(up, down, examples)
    assert -1 <= low <= (up - down) / examples <= high <= 1
    mirrored = tango_interval(down, up, examples)
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)
    z = abs(up - down) / np.sqrt(max(up + down, 1))
    if abs(z - 1.959964) > 1e-3:
        assert (low > 0 or high < 0) == (z > 1.959964)
    assert low < high  # not empty even where the two models agree on every example


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 1), (3, 3), (7, 12), (0, 60), (2100, 2250), (9000, 9500)])
def test_mid_p_is_the_binomial_tail(up, down):
    k, n = min(up, down), up + down
    expected = 2 * stats.binom.cdf(k, n, 0.5) - stats.binom.pmf(k, n, 0.5)
    assert mcnemar_mid_p(up, down) == mcnemar_mid_p(down, up) == pytest.approx(min(expected, 1), rel=1e-8)


def test_directions_and_counts():
    soup, single = pairs(50, 9, 2, 39)
    found = paired_difference(soup, single, True)
    assert (found.better, found.worse, found.examples) == (9, 2, 100)
    assert found.difference == pytest.approx(0.07)
    assert found.stderr == pytest.approx(stats.sem(soup - single))
    errors = paired_difference(1 - soup, 1 - single, False)
    assert (errors.better, errors.worse) == (9, 2)
    assert (errors.low, errors.high) == pytest.approx((-found.high, -found.low))
    assert errors.p_value == found.p_value


def test_bootstrap_interval_and_p_value_agree_with_scipy(monkeypatch):
    monkeypatch.setattr(confidence, "_RESAMPLES", 20_000)
    rng = np.random.default_rng(3)
    single = rng.exponential(size=300)
    soup = single + 0.15 * (rng.exponential(size=300) ** 1.5 - 1.1)
    found = paired_difference(soup, single, False)
    reference = stats.bootstrap((soup - single,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found.method == "bootstrap"
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.03 * width)
    assert found.p_value == pytest.approx(stats.ttest_rel(soup, single).pvalue, abs=0.05)
    assert found == paired_difference(soup, single, False)


def test_bootstrap_p_value_is_where_the_interval_touches_zero():
    rng = np.random.default_rng(5)
    soup, single = rng.gamma(0.5, size=80) + 0.2, rng.gamma(0.5, size=80)
    p_value = paired_difference(soup, single, False).p_value
    assert 0.002 < p_value < 0.9
    at = paired_difference(soup, single, False, confidence=1 - p_value)
    assert min(abs(at.low), abs(at.high)) < 0.02 * (at.high - at.low)


def test_one_example_leaves_the_interval_unknown():
    found = paired_difference(np.array([0.3]), np.array([0.5]), False)
    assert found.difference == pytest.approx(-0.2)
    assert np.isnan(found.stderr)
    assert found.inside_noise


@pytest.mark.parametrize("bad", [np.zeros(0), np.zeros(3), np.zeros((2, 2)), np.array([1.0, np.nan])])
def test_paired_difference_refuses_what_is_not_paired(bad):
    with pytest.raises(ValueError, match="per example"):
        paired_difference(bad, np.zeros(0) if not bad.size else np.zeros(2), True)


def test_without_values_the_interval_is_normal():
    found = unpaired_difference((0.83, 0.006), (0.80, 0.008), 1000, True)
    assert (found.low, found.high) == pytest.approx((0.03 - 0.0196, 0.03 + 0.0196), abs=1e-5)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(3.0))
    assert not found.inside_noise
    assert unpaired_difference((0.8, np.nan), (0.7, 0.1), 1000, True).inside_noise


def test_examples_needed_give_the_power_promised():
    found = paired_difference(*pairs(800, 34, 22, 144), True)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(found.needed, [0.034, 0.022, 0.944], size=4000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])
    assert np.mean(z > 1.96) == pytest.approx(0.8, abs=0.03)
    assert paired_difference(*pairs(5, 2, 2, 5), True).needed is None


def test_optimism_equals_enumeration_of_all_resamples():
    values = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=float)
    excess, gains = [], []
    for indices in product(range(4), repeat=4):
        again = values[:, indices].mean(axis=1)
        over = again - values.mean(axis=1)
        excess.append(over[again.argmax()])
        gains.append(over[again.argmax()] - over[again[:2].argmax()])
    found = optimism(values, True, incumbents=2, resamples=40_000)
    assert found.optimism == pytest.approx(np.sqrt(2) * np.mean(excess), abs=5 * found.stderr)
    assert found.gain_optimism == pytest.approx(np.sqrt(2) * np.mean(gains), abs=5 * found.stderr)
    assert (found.score, found.candidates) == (0.75, 3)
    assert found.corrected == pytest.approx(0.75 - found.optimism)
    assert found.corrected_gain == pytest.approx(0.0 - found.gain_optimism)


def test_optimism_does_not_depend_on_kind_direction_or_examples_that_tell_nothing():
    rng = np.random.default_rng(2)
    right = (rng.random((6, 400)) < 0.7).astype(float)
    found = optimism(right, True)
    wrong = optimism(1 - right, False)
    assert wrong.optimism == pytest.approx(found.optimism)
    assert wrong.corrected == pytest.approx(1 - found.corrected)
    shifted = optimism(right + rng.normal(size=400), True)  # float64, and all columns tell
    assert shifted.optimism == pytest.approx(found.optimism, abs=6 * found.stderr)
    padded = optimism(np.concatenate([right, np.ones((6, 1200))], axis=1), True)
    assert padded.optimism * 4 == pytest.approx(found.optimism, abs=6 * found.stderr)


def test_nothing_to_choose_from_is_not_optimistic():
    one = optimism(np.array([[1.0, 0.0, 1.0]]), True)
    assert (one.optimism, one.corrected) == (0.0, pytest.approx(2 / 3))
    alike = optimism(np.ones((4, 10)), True, incumbents=4)
    assert (alike.optimism, alike.gain_optimism, alike.corrected_gain) == (0.0, 0.0, 0.0)
    for bad in (np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match=r"candidates|NaN"):
            optimism(bad, True)


@pytest.mark.parametrize(("spread", "tolerance"), [(0.0, 0.15), (0.01, 0.2), (0.03, 0.3)])
def test_optimism_agrees_with_the_truth_on_models_of_known_accuracy(spread, tolerance):
    """25 models around 85 %, errors correlated 0.8 in latent normals, 1,000 examples."""
    rng = np.random.default_rng(11)
    accuracies = 0.85 + spread * np.linspace(-1, 1, 25)
    cuts = np.array([NormalDist().inv_cdf(a) for a in accuracies])
    true, estimated, corrected, gain = [], [], [], []
    for run in range(250):
        latent = np.sqrt(0.8) * rng.normal(size=1000) + np.sqrt(0.2) * rng.normal(size=(25, 1000))
        values = (latent < cuts[:, None]).astype(float)
        scores = values.mean(axis=1)
        error = scores - accuracies
        order = rng.permutation(25)
        single = order[scores[order[:8]].argmax()]
        found = optimism(values[order], True, incumbents=8, seed=run, resamples=200)
        # What all models share has mean zero: taken off, the truth is known with fewer runs.
        true.append(error[scores.argmax()] - error.mean())
        gain.append(found.gain_optimism - (error[scores.argmax()] - error[single]))
        estimated.append(found.optimism)
        corrected.append(found.corrected - accuracies[scores.argmax()] - error.mean())
    truth = np.mean(true)
    assert truth > 0.003
    assert np.mean(estimated) == pytest.approx(truth, rel=tolerance)
    assert abs(np.mean(corrected)) < tolerance * truth
    assert abs(np.mean(gain)) < tolerance * truth


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(0, 3))
def test_halves_are_even_by_class_and_in_total(targets, seed):
    labels = np.array(targets)
    search, choose = split_halves(labels, seed)
    assert sorted([*search, *choose]) == list(range(len(labels)))
    assert 0 <= len(search) - len(choose) <= 1
    for label in range(6):
        assert abs(int((labels[search] == label).sum()) - int((labels[choose] == label).sum())) <= 1


def test_halves_are_random_seeded_and_sorted():
    search, choose = split_halves(1000, seed=1)
    again, _ = split_halves(1000, seed=1)
    other, _ = split_halves(1000, seed=2)
    assert (search == again).all()
    assert (search == np.sort(search)).all()
    assert 180 < len(np.intersect1d(search, other)) < 320
    assert (np.diff(choose) > 0).all()
    real, _ = split_halves(np.linspace(0, 1, 1000), seed=1)
    assert (real == search).all()
    with pytest.raises(TaskError, match="takes two"):
        split_halves(np.array([3]))


def test_sentences_say_gain_noise_and_optimism():
    noisy = paired_difference(*pairs(1850, 31, 20, 99), True)
    values = np.zeros((3, 100))
    values[0, :80] = values[1, :81] = values[2, 10:92] = 1
    lines = sentences(noisy, optimism(values, True, incumbents=1))
    assert len(lines) == 3
    assert lines[0].startswith(
        "gain over the best single on validation: +0.0055, 95% interval -0.0016 to +0.0129 (McNemar"
    )
    assert lines[0].endswith("better on 31 and worse on 20 of 2,000 examples")
    assert lines[1].startswith("inside the noise")
    assert f"about {round(noisy.needed - 2000, -2):,} more examples" in lines[1]
    assert lines[2].startswith("chosen as the best of 3 on these same examples")
    assert lines[2].endswith(("left", "0"))


def test_sentences_are_short_where_all_is_clear():
    clear = paired_difference(*pairs(900, 60, 5, 35), True)
    assert len(sentences(clear)) == 1
    lower = unpaired_difference((0.41, 0.001), (0.45, 0.001), 1000, False)
    (line,) = sentences(lower)
    assert "-0.0400 (lower is better), 95% interval -0.0428 to -0.0372 (two standard errors, unpaired, p = " in line
    gone = optimism(np.array([[1, 0, 1, 0.0], [0, 1, 1, 1]]), True, incumbents=2)
    assert "nothing of it is left" in sentences(clear, gone)[1]
    same = paired_difference(*pairs(5, 2, 2, 5), True)
    assert "more examples" not in sentences(same)[1]
