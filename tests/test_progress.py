"""Progress in Python's logging: one INFO line for each stage that ends, and nothing where nobody listens."""

import logging
import subprocess
import sys

import pytest

import radin
from radin.progress import LoggedProgress, logged

STEPS = [("reading", 0, 10), ("reading", 10, 10), ("reading", 10, 10), ("scoring", 1, None), ("scoring", 2, None)]


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name == "radin"]


def test_a_stage_ends_with_its_total_with_the_next_or_with_close(caplog):
    caplog.set_level(logging.DEBUG, logger="radin")
    progress = LoggedProgress()
    for step in STEPS:
        progress(*step)
    assert messages(caplog, logging.INFO) == ["reading: 0.0 s"]
    progress("saving", 0, 3)
    assert messages(caplog, logging.INFO) == ["reading: 0.0 s", "scoring: 0.0 s"]
    progress.close()
    progress.close()
    assert messages(caplog, logging.INFO)[2:] == ["saving: 0.0 s"]
    debug = messages(caplog, logging.DEBUG)
    assert debug == ["reading: 0 of 10", "reading: 10 of 10", "scoring: 1 of ?", "scoring: 2 of ?", "saving: 0 of 3"]


def test_a_stage_that_begins_again_is_one_of_its_own(caplog):
    caplog.set_level(logging.INFO, logger="radin")
    progress = LoggedProgress()
    for step in (("a", 1, 1), ("b", 1, 1), ("a", 1, 1)):
        progress(*step)
    assert messages(caplog, logging.INFO) == ["a: 0.0 s", "b: 0.0 s", "a: 0.0 s"]


def test_it_is_passed_on_and_wrapped_once():
    told = []
    progress = logged(lambda *step: told.append(step))
    assert logged(progress) is progress
    for step in STEPS:
        progress(*step)
    assert told == STEPS


def test_the_doctor_logs_its_stages(caplog, toy_folder):
    caplog.set_level(logging.INFO, logger="radin")
    radin.doctor(toy_folder)
    stages = [message.rsplit(": ", 1)[0] for message in messages(caplog, logging.INFO)]
    assert stages == ["reading checkpoints", "distances between members"]


@pytest.mark.parametrize(("level", "lines"), [("WARNING", 0), ("INFO", 1)])
def test_no_handler_is_installed(level, lines):
    code = (
        "from radin.progress import logged; logged(None)('a', 1, 1); import logging; assert not logging.root.handlers"
    )
    if level == "INFO":
        code = f"import logging; logging.basicConfig(level=logging.{level}); " + code.split("; import")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == lines
    assert not done.stdout
