"""What is said of a run, from typed values."""

import email.message
from dataclasses import replace

import numpy as np
import pytest

from made import result, scored
from radin.recipe import Recipe
from radin.report import doctor, sentences
from radin.run.reasons import Outlier, Reasons, TrainingRun
from radin.run.result import Passes
from radin.stats.optimism import optimism
from radin.stats.paired import paired_difference, unpaired_difference


def pairs(both: int, up: int, down: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    soup = np.repeat([1.0, 1.0, 0.0, 0.0], [both, up, down, neither])
    single = np.repeat([1.0, 0.0, 1.0, 0.0], [both, up, down, neither])
    return soup, single


def test_the_gain_and_that_it_is_noise():
    noisy = paired_difference(*pairs(1850, 31, 20, 99), True)
    gain, noise = sentences.gain_sentences(noisy)
    assert gain.startswith("gain over the best single on validation: +0.0055, 95% interval -0.0016 to +0.0129 (McNemar")
    assert gain.endswith("better on 31 and worse on 20 of 2,000 examples")
    assert noise.startswith("inside the noise")
    assert f"about {round(noisy.needed - 2000, -2):,} more examples" in noise
    same = paired_difference(*pairs(5, 2, 2, 5), True)
    assert "more examples" not in sentences.gain_sentences(same)[1]


def test_one_sentence_where_all_is_clear():
    clear = paired_difference(*pairs(900, 60, 5, 35), True)
    assert len(sentences.gain_sentences(clear)) == 1
    lower = unpaired_difference((0.41, 0.001), (0.45, 0.001), 1000, False)
    (line,) = sentences.gain_sentences(lower)
    assert "-0.0400 (lower is better), 95% interval -0.0428 to -0.0372 (two standard errors, unpaired, p = " in line


def test_what_to_expect_on_new_data():
    values = np.zeros((3, 100))
    values[0, :80] = values[1, :81] = values[2, 10:92] = 1
    found = optimism(values, True, incumbents=1)
    gain = paired_difference(values[2], values[0], True)
    (line,) = sentences.bias_sentences(found, gain)
    assert line.startswith(f"expected on new data: score {found.corrected:.4f}, gain {found.corrected_gain:+.4f} (95% ")
    assert "Chosen as the best of 3 on these same examples, the score has a selection bias of about 0.0" in line
    assert f"and the gain one of {found.gain_optimism:.4f}" in line
    assert "gain" not in sentences.bias_sentences(found)[0]
    gone = replace(found, gain_optimism=0.03)
    assert sentences.bias_sentences(gone, gain)[0].endswith("nothing of it is left")
    assert sentences.bias_sentences(optimism(values[:1], True)) == ()


def test_a_gain_is_never_corrected_upwards():
    """Choosing the best of many members may owe more to luck than choosing the soup; the two then say the same."""
    gain = paired_difference(*pairs(1880, 31, 11, 78), True)
    found = replace(optimism(np.array([[1, 0, 1, 0.0], [0, 1, 1, 1]]), True, incumbents=1), gain_optimism=-0.0011)
    (line,) = sentences.bias_sentences(found, gain)
    assert f"gain {gain.difference:+.4f} (95% interval {gain.low:+.4f} to {gain.high:+.4f})" in line
    assert line.endswith("the gain has none, since the single member was chosen by its score on them too")
    careful = sentences.bias_sentences(replace(found, gain_optimism=gain.low + 1e-4), gain)
    assert careful[1].startswith("inside the noise once the choice is counted")


SINGLE = Recipe.single(1, 4, reestimated=True)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (
            0.83,
            "of +0.0400 over the best single as it is, +0.0300 comes from estimating BatchNorm statistics again, as",
        ),
        (0.83, "(b alone: 0.8300), and +0.0100 from averaging"),
        (0.79, "with that, b alone scores 0.7900, -0.0100 against the best single as it is"),
        (float("nan"), "gives b alone outputs that are not finite"),
    ],
)
def test_where_a_gain_comes_from(again, words):
    found = result(reestimated=scored("best single re-estimated (b)", SINGLE, again))
    told = sentences.confidence(found)
    assert words in told[1]
    assert ("gain over b re-estimated on validation" in told[0]) == (again == 0.83)


def test_a_member_re_estimated_as_the_result():
    again = scored("best single re-estimated (b)", SINGLE, 0.9)
    change = paired_difference(*pairs(900, 60, 5, 35), True)
    found = result(best=again, reestimated=again, reestimation=change, paired=None)
    assert found.reference is again
    told = sentences.confidence(found)
    assert told[0].startswith("gain of estimating its BatchNorm statistics again, over the best single as it is: +0.05")
    assert told[-1] == "averaging gave nothing beyond that"
    assert sentences.no_soup(found).startswith("no soup beat b with its BatchNorm statistics re-estimated")


def test_confidence_of_a_result():
    found = sentences.confidence(result())
    assert found == result().confidence
    assert [line.split(" ")[0] for line in found] == ["gain", "expected"]
    assert len(sentences.confidence(result(searched=50))) == 1
    assert sentences.confidence(result(optimism=None)) == found[:1]
    assert sentences.confidence(result(paired=None)) == ()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            Reasons(unrelated=1.4, soups=1),
            "two members lie 1.40 times the norm of their mean (biases and scales aside) apart",
        ),
        (
            Reasons(runs=(TrainingRun(("a", "b"), 0.1), TrainingRun(("c",), 0.9)), soups=1),
            "2 training runs with different initialisations. Apart from the largest group of 2, whose members lie 0.10 "
            "apart: c (0.90 from the largest group)",
        ),
        (Reasons(outliers=(Outlier("x", 4.25),), soups=1), "median distance to the members' mean: x (4.2 times)"),
        (Reasons(averaged_statistics=7, soups=1), "7 BatchNorm layers kept averaged statistics: give calibration()"),
        (Reasons(soups=2, compared=2, shortfall=0.03, noise=0.01), "scored 0.0300 worse than their averaged outputs"),
        (Reasons(soups=2, compared=2, shortfall=0.01, noise=0.01), "scored about as their averaged outputs promised"),
        (Reasons(), "no soup was fully evaluated; give a larger budget"),
        (Reasons(soups=3), "none of the 3 soups evaluated was better"),
    ],
)
def test_each_reason_has_its_sentence(facts, words):
    (found,) = sentences.reasons(facts)
    assert words in found


def test_reasons_come_likeliest_first():
    found = sentences.reasons(Reasons(outliers=(Outlier("x", 3.0),), averaged_statistics=2, shortfall=0.5, noise=0.1))
    assert [text.split(" ")[0] for text in found] == ["outliers,", "2", "soups"]


def test_many_names_are_cut():
    assert sentences.named(list("abcde")) == "a, b, c, d, e"
    assert sentences.named(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    ("passes", "full", "text"),
    [
        (Passes(6, 2.5, 3, 5), 2, "8.5 (6 for the members, 2.5 of 3 for soups: 5 started, 2 fully evaluated)"),
        (Passes(0, 3.0, 3, 3), 3, "3 (none for the members, 3 of 3 for soups)"),
        (
            Passes(6, 2.0, 2, 2, reestimated=2),
            2,
            "10 (6 for the members, 2 for members re-estimated, 2 of 2 for soups)",
        ),
        (Passes(6, 10.0, 1, 10), 10, "16 (6 for the members, 10 for soups, by an earlier budget: it is 1 now)"),
        (Passes(0, 3.0, 3, 3, failed=2), 3, "3 (none for the members, 3 of 3 for soups; 2 got no answer)"),
    ],
)
def test_passes(passes, full, text):
    assert sentences.passes(passes, full) == f"passes over validation: {text}"


def test_numbers():
    assert sentences.number(None) == sentences.number(float("nan")) == "–"
    assert sentences.number(0.25) == sentences.number(0.25, float("nan")) == "0.2500"
    assert sentences.number(0.25, 0.125) == "0.2500 ± 0.1250"
    assert [sentences.size(n) for n in (5, 1500, 2.5e6, 3e9, 4e12)] == ["5 B", "1.5 kB", "2.5 MB", "3.0 GB", "4.0 TB"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["Paper, https://x.org/p", "Documentation, https://x.org/tree/v1/docs"], "https://x.org/tree/v1/docs"),
        (["Paper, https://x.org/p"], "docs"),
        (None, "docs"),
    ],
)
def test_the_documentation_is_where_the_package_says(monkeypatch, entries, said):
    about = email.message.Message()
    for entry in entries or ():
        about["Project-URL"] = entry
    monkeypatch.setattr(doctor, "metadata", lambda name: about)
    assert doctor._documentation() == said
