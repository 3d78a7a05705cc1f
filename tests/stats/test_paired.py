"""The gain against published examples, scipy and simulation with known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radin.stats import paired
from radin.stats.paired import mcnemar_mid_p, paired_difference, tango_interval, unpaired_difference


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
    monkeypatch.setattr(paired, "RESAMPLES", 20_000)
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
