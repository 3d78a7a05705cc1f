"""Signals: whenever one comes, a command ends at once or with the batch in flight, and says how to go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import forking
import toy
from radin import interrupts

# A start is three seconds of work: on a machine that does much else, several of them take minutes.
pytestmark = [pytest.mark.clock, pytest.mark.timeout(900)]

READY = "import radin.__main__, sys\nfrom radin import interrupts\n"
READY += "with interrupts.handled():\n    print('ready', flush=True)\n"
SEVERAL = 6  # moments of a start, a third of them for each signal
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def start(tmp_path):
    """Start the command line in a process of its own, once its signals are handled: start("check", ...)."""
    begun = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}

    def run(*arguments: object, before: str = "pass") -> subprocess.Popen[str]:
        code = READY + f"    {before}\n    sys.argv = {['radin', *map(str, arguments)]!r}\n    radin.__main__.run()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=forking.heard,
        )
        begun.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.long
def test_at_any_moment_of_a_start_it_is_one_line(start, toy_folder):
    chance = random.Random(0)
    arguments = ("check", toy_folder, "--task", toy_folder / "task.py")
    started = time.monotonic()
    whole, _ = start(*arguments).communicate(timeout=240)
    lasts = time.monotonic() - started
    ended = 0
    for place in range(SEVERAL):
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[place % 3]
        delay = lasts * (place + chance.random()) / SEVERAL
        started = time.monotonic()
        process = start(*arguments)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
            lasts = time.monotonic() - started  # it was over before: the machine is quicker now
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, (delay, err)
        assert process.returncode in (0, -number, CODES[number]), (delay, err)
        if process.returncode == CODES[number]:
            ended += 1
            assert out in ("", whole)
            *stages, last = err.splitlines()
            assert last.startswith("radin: "), (delay, err)
            assert all(line.endswith(" s") for line in stages), err  # such as "distances: 2.1 s"
            assert f"the same command starts again: radin check {toy_folder}" in last
        else:
            assert (out, "radin: " in err) == (whole, False)
    assert ended > 0  # the first moments are early ones, however quick the machine has become


SLOW = (
    toy.TASK
    + """
import time
class Slow(toy.nn.Sequential):
    def forward(self, x):
        with open(r"{mark}", "a") as file: file.write("x")
        {how}
        return super().forward(x)
def model(): return Slow(*toy.model())
"""
)


def marked(tmp_path: Path, toy_folder: Path, how: str) -> tuple[list[object], Path]:
    """A command whose forward takes its time, and the file that shows that it is in it."""
    mark = tmp_path / "mark"
    (tmp_path / "task.py").write_text(SLOW.replace("{mark}", str(mark)).replace("{how}", how))
    return ["cook", toy_folder, "--task", tmp_path / "task.py", "--budget", 4, "--out", tmp_path / "run"], mark


def wait_for(condition, process, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_batch_in_flight_and_gives_the_whole_command(start, toy_folder, tmp_path, number):
    how = (
        "import os\n        if os.stat(file.name).st_size > 3: time.sleep(300)"  # the fourth batch is the one in flight
    )
    arguments, mark = marked(tmp_path, toy_folder, how)
    process = start(*arguments)
    wait_for(lambda: mark.exists() and mark.stat().st_size > 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)  # and not when the sleep is over
    assert mark.stat().st_size == 4
    assert process.returncode == CODES[number]
    command = " ".join(map(str, ["radin", *arguments]))
    assert err.strip().splitlines()[-1].endswith(f"the same command continues from here: {command}")
    assert "Traceback" not in err


@pytest.mark.long
def test_a_second_signal_ends_at_once(start, toy_folder, tmp_path):
    # It takes the first interrupt for its own affair.
    how = f"""
        try: time.sleep(300)
        except BaseException:
            open(r"{tmp_path / "taken"}", "w").close()
            time.sleep(300)"""
    arguments, mark = marked(tmp_path, toy_folder, how)
    process = start(*arguments)
    wait_for(mark.exists, process)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "taken").exists, process)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)  # and not when the sleep is over
    assert process.returncode == 130
    assert "continues from here" in err


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "spawn_main" in str(p.cmdline())]


@pytest.mark.long
@pytest.mark.parametrize("signals", [1, 2])
def test_workers_end_with_it(start, toy_folder, tmp_path, signals):
    arguments, _ = marked(tmp_path, toy_folder, "time.sleep(0.2)")
    process = start(*arguments, "--jobs", 2)
    wait_for(lambda: len(workers(process)) == 2, process)
    time.sleep(0.3 if signals == 1 else 2)  # while they import, and while they work
    found = psutil.Process(process.pid).children(recursive=True)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(found, timeout=30)
    assert not alive


@pytest.mark.long
def test_the_terminals_interrupt_reaches_workers_without_a_word(toy_folder, tmp_path):
    """Ctrl-C goes to the whole group; workers that are still importing must not answer it with tracebacks."""
    arguments, _ = marked(tmp_path, toy_folder, "time.sleep(0.2)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-m", "radin", *map(str, arguments), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=forking.heard,
    )
    wait_for(lambda: len(workers(process)) == 2, process)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err, err
    assert len([line for line in err.splitlines() if line.startswith("radin: ")]) == 1


@pytest.mark.long
@pytest.mark.parametrize("signals", [1, 2])
def test_programs_end_with_it_even_those_that_do_not_listen(start, toy_folder, tmp_path, signals):
    script = tmp_path / "score.sh"
    script.write_text(f"trap '' TERM\necho x >> {tmp_path / 'mark'}\nsleep 300 & wait\necho 0.5\n")
    arguments = ["cook", toy_folder, "--eval", f"sh {script} {{soup}}", "--budget", 2, "--out", tmp_path / "run"]
    # The time that a program has to end once its own is over, which nothing here is to wait for.
    process = start(*arguments, before="from radin.engine import process; process.GRACE = 300.0")
    wait_for((tmp_path / "mark").exists, process)
    found = psutil.Process(process.pid).children(recursive=True)
    assert found
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.25)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(found, timeout=30)
    assert not alive


@pytest.mark.long
def test_importing_and_using_the_library_installs_nothing(toy_folder, tmp_path):
    code = f"""
import signal
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
import radin, radin.cli, radin.run, radin.report.progress, sys
hook = sys.unraisablehook
radin.cook({str(toy_folder)!r}, {str(toy_folder / "task.py")!r}, budget=1, out={str(tmp_path / "run")!r}, workers=2)
assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
assert sys.unraisablehook is hook
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    script = tmp_path / "use.py"
    script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines()))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_program_ignores_stays_ignored_and_all_is_put_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kept = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with interrupts.handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert interrupts.installed()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == kept
        assert not interrupts.installed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_raised_in_a_destructor_is_not_lost():
    class Dies:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def use() -> None:
        with interrupts.handled():
            interrupts.running()
            thing = Dies()
            del thing
            time.sleep(5)

    with pytest.raises(interrupts.Stopped):
        use()


def test_in_another_thread_signals_are_left_alone():
    found = []

    def use() -> None:
        with interrupts.handled():
            found.append(interrupts.installed())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/usr/bin/radin", "cook", "a b.pt", "--out", "run"], "continues from here: radin cook 'a b.pt' --out run"),
        (["/x/radin/__main__.py", "demo"], "continues from here: python -m radin demo"),
        (["radin", "cook", "a\x1b.pt"], "continues from here."),
        (["radin", "cook", *["member.pt"] * 300], "continues from here."),
        (["radin", "--json", "check", "a.pt"], "Nothing was left half done; the same command starts again"),
        ([], "starts again: radin"),
    ],
)
def test_words(argv, words):
    said = interrupts.words(signal.SIGTERM, argv)
    assert said.startswith("radin: terminated. ")
    assert words in said
    assert said.isprintable()
