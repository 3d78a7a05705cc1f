"""The page of a run: its values against plain computations, and the file in headless Chromium."""

import base64
import json
import re
import shutil
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import vl_convert
from benchmarks.report import chromium, drawn, errors, opened
from click.testing import CliRunner

import toy
from radin import Recipe, RunError, cook
from radin.cli.report import report
from radin.errors import RadinError
from radin.report.page import outcome, soups, write_page
from radin.report.page import pool as members_of
from radin.report.page.content import content, weighed
from radin.report.page.render import _bundle, render
from radin.run.record import RunRecord
from radin.run.result import Result
from radin.stats.paired import paired_difference

HOSTILE = "</script><img src=x onerror=alert(1)>&\x1b[31m"
needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no Chromium or no driver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run over the toy pool."""
    place = tmp_path_factory.mktemp("page")
    toy.build(place / "pool")
    paths = sorted((place / "pool").glob("*.safetensors"))
    cook(paths, place / "pool" / "task.py", budget=6, strategy="paper", out=place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def record(run):
    return RunRecord.read(run)


@pytest.fixture(scope="module")
def page(run):
    return write_page(run)


@pytest.fixture(scope="module")
def browser(page):
    with opened(page) as driver:
        yield driver


class Tags(HTMLParser):
    """The elements, their attributes, and what scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._in = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag == "script"
        if self._in:
            self.scripts.append("")

    def handle_data(self, data):
        if self._in:
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self._in = False


# -- values


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3, 0, 0, 0), (1 / 3, 0, 1 / 3, 0, 0, 1 / 3)])
def test_a_recipe_s_code_says_its_members_and_ratios(weights):
    found = soups.code(Recipe(weights))
    if found[0] == "u":
        assert [k for k in range(6) if int(found[1:], 16) >> k & 1] == [0, 2, 5]
    else:
        assert {int(k): float(p) for k, p in (part.split(":") for part in found[1:].split(","))} == {
            0: 0.2,
            1: 0.5,
            2: 0.3,
        }


def test_the_map_keeps_distances_that_a_plane_can_hold():
    rng = np.random.default_rng(3)
    flat = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 40))
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    places, share = members_of.scaled(apart)
    np.testing.assert_allclose(np.linalg.norm(places[:, None] - places[None], axis=-1), apart, atol=1e-9)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(places.mean(0), 0, atol=1e-9)
    full = rng.normal(size=(9, 40))
    apart = np.linalg.norm(full[:, None] - full[None], axis=-1)
    variances = np.linalg.svd(full - full.mean(0), compute_uv=False) ** 2
    assert members_of.scaled(apart)[1] == pytest.approx(variances[:2].sum() / variances.sum())


def test_importance_is_what_the_estimate_loses(record):
    winner = Recipe.normalized([1, 2, 0, 1, 0, 0])
    found = members_of.importance(record, winner)
    assert sorted(found) == [0, 1, 3]
    outputs = _outputs(record)
    for left in found:
        kept = np.array([0.0 if k == left else p for k, p in enumerate(winner.weights)])
        rest = _accuracy(outputs, kept / kept.sum())
        assert found[left] == pytest.approx(_accuracy(outputs, np.array(winner.weights)) - rest, abs=1e-12)


def _outputs(record):
    from radin.outputs.files import open_array, open_targets

    folder = record.path / "outputs"
    arrays = [np.asarray(open_array(folder / f"{f[:32]}.safetensors", f), float) for f in record.fingerprints]
    return np.array(arrays), np.asarray(open_targets(folder / "targets.safetensors"))


def _accuracy(outputs, ratios):
    return float((np.tensordot(ratios, outputs[0], 1).argmax(1) == outputs[1]).mean())


def test_agreement_is_counted_over_examples(record):
    rows, what = members_of.agreement(record)
    assert "both are right or both wrong" in what
    assert len(rows) == 6 * 5 // 2
    outputs, targets = _outputs(record)
    right = outputs.argmax(2) == targets
    for row in rows:
        one, other = record.order[row["a"] - 1], record.order[row["b"] - 1]
        assert row["v"] == pytest.approx((right[one] == right[other]).mean(), abs=1e-3)


def test_won_and_lost_add_up_to_the_gain(record):
    winner = soups.known(record)[0][0]
    rows = outcome.by_class(record, winner)
    won = sum(row["count"] for row in rows if row["what"] == "won")
    lost = sum(row["count"] for row in rows if row["what"] == "lost")
    gain = record.scores[winner].score - record.reference[1].score
    assert won - lost == round(gain * record.rates.examples)
    assert won + lost > 0
    targets = _outputs(record)[1]
    assert {(row["class"], row["of"]) for row in rows} == {(str(c), int((targets == c).sum())) for c in range(10)}


def test_tiers_begin_where_a_soup_can_be_told_from_the_best_of_the_tier(record):
    rows = outcome.tiers(record)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert sum(row["what"] == "best single member" for row in rows) == 1
    answers = {soups.code(r): a for r, a in [*soups.known(record), record.reference]}
    leader = rows[0]
    for row in rows[1:]:
        apart = not paired_difference(
            answers[row["recipe"]].values, answers[leader["recipe"]].values, True
        ).inside_noise
        assert apart == (row["tier"] != leader["tier"])
        leader = row if apart else leader


def test_the_ranking_holds_every_candidate_or_says_how_many(record, monkeypatch):
    rows, count = soups.ranking(record)
    assert len(rows) == count >= len(record.candidates)
    assert [row["rank"] for row in rows] == list(range(1, count + 1))
    monkeypatch.setattr(soups, "FIRST", 5)
    monkeypatch.setattr(soups, "FURTHER", 4)
    fewer, same = soups.ranking(record)
    assert same == count
    assert len(fewer) < count
    assert [row["rank"] for row in fewer[:5]] == [1, 2, 3, 4, 5]
    assert fewer[-1]["rank"] == count
    assert sum("truth" in row for row in fewer) == sum("truth" in row for row in rows) == len(soups.known(record))


# -- the page


def test_the_verdict_and_the_closing_table_are_those_of_the_result(run):
    found, result = content(run), Result.load(run)
    if result.paired is not None:
        assert f"{result.paired.low:+.4f} to {result.paired.high:+.4f}" in found.verdict
        assert f"{result.best.score:.4f}" in found.verdict
    assert any("chosen" in row[0] for row in found.closing.rows)
    assert any("weights were not read" in line for line in found.missing)


def test_every_figure_is_valid_vega_lite(run):
    found = content(run, weighed(run))
    keys = [figure.key for figure in found.figures]
    assert len(keys) == len(set(keys)) >= 10
    assert "map" in keys
    for figure in found.figures:
        compiled = vl_convert.vegalite_to_vega(figure.spec)
        assert compiled["marks"], figure.key


def test_the_page_needs_no_network_and_says_so_to_the_browser(page):
    text = page.read_text()
    assert page.stat().st_size < 3_000_000
    tags = Tags(text).tags
    assert not [tag for tag, given in tags if {"src", "href"} & set(given) or tag in ("link", "iframe")]
    policy = next(given["content"] for _, given in tags if given.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_names_end_no_element_and_are_no_markup(run, tmp_path):
    hostile = _renamed(run, tmp_path / "run")
    text = render(content(hostile, weighed(hostile)))
    own = text.replace(_bundle(), "")  # Vega's tooltip, which is not used, knows of images
    assert "<img" not in own
    assert "\x1b" not in own
    tags = Tags(text)
    assert not [tag for tag, given in tags.tags if tag == "img" or any(name.startswith("on") for name in given)]
    data = json.loads(tags.scripts[0])
    assert data["names"][0].startswith("</script><img src=x")


def _renamed(run, place):
    """The run with a member whose name is markup."""
    from radin.checksums import opened as unsealed
    from radin.checksums import sealed

    shutil.copytree(run, place)
    value = unsealed(json.loads((place / "run.json").read_text()))
    first = next(iter(value["identity"]["members"]))
    value["identity"]["members"][first] = HOSTILE
    (place / "run.json").write_text(json.dumps(sealed(value)))
    return place


def test_an_unfinished_run_has_a_page_that_loads_itself_again(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("result.json", "recipe.json", "soup.safetensors"):
        (tmp_path / "run" / name).unlink()
    page = write_page(tmp_path / "run", weights=False, refresh=7)
    tags = Tags(page.read_text()).tags
    assert {"http-equiv": "refresh", "content": "7"} in [given for _, given in tags]
    found = content(tmp_path / "run")
    assert found.verdict.startswith("The run has not finished: ")
    assert len(found.figures) >= 8
    (tmp_path / "run" / "ledger.sqlite").unlink()
    found = content(tmp_path / "run")
    assert "0 of 6 members are evaluated so far" in found.verdict


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        write_page(tmp_path)


def test_the_command_writes_the_page_and_watches_to_the_end(run, tmp_path, radin_command):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    alone = CliRunner().invoke(report, [str(tmp_path / "run"), "--no-page"])
    assert (alone.exit_code, "chosen" in alone.output) == (0, True)
    assert not (tmp_path / "run" / "report.html").exists()
    shown = radin_command("report", tmp_path / "run", "--watch", "--no-weights").stdout
    assert f"page: {tmp_path / 'run' / 'report.html'}" in shown.replace("\n", "")
    assert "<title>run: model soup</title>" in (tmp_path / "run" / "report.html").read_text()


def test_a_watched_page_changes_while_the_run_goes_on_and_is_whole_at_its_end(run, tmp_path, radin_command):
    place = tmp_path / "run"
    watching, seen = [], []

    def wait_for_the_page(event):
        """Hold the run until the page tells of one more soup, three times."""
        if event.kind != "question_answered" or len(seen) == 3:
            return
        if not watching:
            words = ("report", place, "--watch", "--every", 1, "--no-weights")
            watching.append(threading.Thread(target=lambda: seen.append(radin_command(*words))))
            watching[0].start()
        until = time.monotonic() + 100
        known = _evaluated(seen[-1]) if seen else 0
        while time.monotonic() < until and _evaluated(text := _text(place / "report.html")) <= known:
            time.sleep(0.05)
        seen.append(text)

    paths, task = sorted((run.parent / "pool").glob("*.safetensors")), run.parent / "pool" / "task.py"
    result = cook(paths, task, budget=6, strategy="paper", out=place, on_event=wait_for_the_page)
    watching[0].join(100)
    *pages, done = seen
    assert done.returncode == 0, done.stderr
    assert "Ctrl-C ends this" in done.stderr
    counts = [_evaluated(page) for page in pages]
    assert counts == sorted(set(counts))
    assert len(counts) == 3
    assert all("has not finished" in page and 'http-equiv="refresh"' in page for page in pages)
    last = _text(place / "report.html")
    assert "has not finished" not in last
    assert 'http-equiv="refresh"' not in last
    assert f"{result.best.score:.4f}" in last


def _evaluated(page):
    """How many soups the page of an unfinished run tells of; 0 where it tells of none."""
    found = re.search(r"The run has not finished: (\d+) soup", page)
    return int(found[1]) if found else 0


def _text(path):
    return path.read_text() if path.is_file() else ""


def test_what_there_is_to_show_of_no_run_or_an_unfinished_one_is_said(run, tmp_path):
    none = CliRunner().invoke(report, [str(tmp_path / "none"), "--watch"])
    assert "holds no run, or none yet" in str(none.exception)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    said = CliRunner().invoke(report, [str(tmp_path / "run"), "--no-page"])
    assert f"has not finished: there is no result.json. 'radin status {tmp_path / 'run'}' says" in str(said.exception)


def test_without_the_libraries_the_table_is_shown_and_the_way_to_get_the_page(run, monkeypatch, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    shown = CliRunner().invoke(report, [str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert not (tmp_path / "run" / "report.html").exists()
    with pytest.raises(RadinError, match=r"pip install 'radin\[figures\]'"):
        write_page(run)


# -- in the browser


@pytest.mark.long
@needs_chromium
def test_every_figure_draws_its_points(browser, run):
    assert errors(browser) == []
    marks = drawn(browser)
    found = {figure.key: figure for figure in content(run, weighed(run)).figures}
    assert set(marks) == set(found)
    for key in ("sizes", "truth", "map", "agreement", "classes", "importance"):
        least = len([row for row in found[key].spec["datasets"]["points"] if row.get("count") != 0])
        assert marks[key] >= least > 0, key
    assert all(count > 0 for count in marks.values())


@pytest.mark.long
@needs_chromium
def test_a_click_or_the_keyboard_sorts_a_table(browser):
    def column():
        cells = browser.execute_script(
            "return [...document.querySelectorAll('#members-table tbody tr')].map(r => r.cells[1].textContent)"
        )
        return [float(cell.split()[0]) for cell in cells]

    button = browser.find_elements("css selector", "#members-table th button")[1]
    button.click()
    assert column() == sorted(column(), reverse=True)
    button.send_keys("\n")
    assert column() == sorted(column())
    assert len(set(column())) > 1
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"


@pytest.mark.long
@needs_chromium
def test_pointing_at_a_point_shows_its_recipe(browser, record):
    from selenium.webdriver.common.action_chains import ActionChains

    point = browser.find_elements("css selector", "#chart-sizes .mark-symbol path")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    text = browser.find_element("id", "tip").text
    assert "true score" in text
    assert sum(name in text for name in record.names) >= 2


@pytest.mark.long
@needs_chromium
def test_the_arrow_keys_read_the_points(browser, record):
    chart = browser.find_element("id", "chart-truth")
    chart.send_keys("\ue014")
    text = browser.find_element("css selector", "#figure-truth .told").text
    best = soups.known(record)[0]
    assert text.startswith("1 of ")
    assert all(record.names[k] in text for k in best[0].members)


@pytest.mark.long
@needs_chromium
def test_the_switch_leaves_the_best(browser):
    lines = "return document.querySelectorAll('#chart-parallel .mark-line path').length"
    before = browser.execute_script(lines)
    browser.execute_script(
        "const s = document.querySelector('select'); s.value = s.options[2].value; s.dispatchEvent(new Event('change'))"
    )
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 5).until(lambda d: d.execute_script(lines) < before)
    assert browser.execute_script(lines) == 1


@pytest.mark.long
@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1200, True)])
def test_it_fits_the_width_and_follows_the_theme(page, width, dark):
    with opened(page, width=width, dark=dark) as driver:
        assert errors(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        ink, paper = driver.execute_script(
            "const s = getComputedStyle(document.body);"
            "const t = getComputedStyle(document.querySelector('.chart .role-axis-label text'));"
            "return [t.fill, s.backgroundColor]"
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (light[0] > light[1] + 300) if dark else (light[1] > light[0] + 300)
        shot = base64.b64decode(driver.get_screenshot_as_base64())
        assert shot[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
@needs_chromium
def test_a_hostile_name_stays_text(run, tmp_path):
    hostile = _renamed(run, tmp_path / "run")
    with opened(write_page(hostile)) as driver:
        assert errors(driver) == []
        assert driver.execute_script("return document.images.length") == 0
        assert all(count > 0 for count in drawn(driver).values())
        chart = driver.find_element("id", "chart-members-figure")
        for _ in range(6):
            chart.send_keys("\ue014")
            if "<img src=x" in driver.find_element("css selector", "#figure-members-figure .told").text:
                break
        else:
            pytest.fail("the member's name is not shown")
        assert driver.execute_script("return document.images.length") == 0


def test_the_browser_s_place_is_known():
    found = chromium()
    assert found is None or all(Path(part).is_file() for part in found)
