"""Programs as evaluators: real ones, written here, that load soups, fail, hang, flood and leave children behind."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import forking
import radin
import toy
from radin import Command, Pool, RadinError, Recipe
from radin.engine import process
from radin.engine.command import CommandEngine
from radin.errors import CheckpointError
from radin.question import Answer, Failure, Question
from radin.weights import average, read_recipe

# No torch in the programs: they start ten times a second.
SCORE = """
import json, os, sys
import numpy as np
from safetensors.numpy import load_file

path, data = sys.argv[1], np.load(sys.argv[2])
tensors = load_file(os.path.join(path, "model.safetensors") if os.path.isdir(path) else path)
chosen = np.loadtxt(sys.argv[3], dtype=int, ndmin=1) if sys.argv[3:] and sys.argv[3] else np.arange(len(data["y"]))
x, y = data["x"][chosen], data["y"][chosen]
x = x @ tensors["0.weight"].T + tensors["0.bias"]
x = (x - tensors["1.running_mean"]) / np.sqrt(tensors["1.running_var"] + 1e-5) * tensors["1.weight"] + tensors["1.bias"]
right = (np.maximum(x, 0) @ tensors["4.weight"].T + tensors["4.bias"]).argmax(1) == y
print("loaded", path)
further = {"half": float(right[::2].mean())}
print(json.dumps({"score": float(right.mean()), "values": right.astype(int).tolist(), "further": further}))
"""


@pytest.fixture
def script(tmp_path):
    """Write a program and return the command that runs it: a shell script unless it is said to be Python."""

    def write(text: str, name: str = "score.sh") -> str:
        path = tmp_path / name
        path.write_text(text if name.endswith(".py") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return f"{sys.executable} {path}" if name.endswith(".py") else str(path)

    return write


@pytest.fixture
def toy_command(tmp_path, script):
    inputs, targets = (torch.cat(part).numpy() for part in zip(*toy.batches(toy.VALIDATION), strict=True))
    np.savez(tmp_path / "data.npz", x=inputs, y=targets)
    return script(SCORE, "score.py") + f" {{soup}} {tmp_path / 'data.npz'}"


@pytest.fixture
def engine(toy_pool, tmp_path):
    """Engines that are closed when the test ends: engine("command", timeout=...)."""
    made = []

    def make(command: str, pool: Pool | None = None, **settings: object) -> CommandEngine:
        made.append(CommandEngine(pool or toy_pool, Command(command, **settings), tmp_path / "scratch"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(engine: CommandEngine, recipe: Recipe, examples: np.ndarray | None = None) -> Answer | Failure:
    question = Question(recipe, examples)
    engine.submit(question)
    [(asked, answer)] = engine.wait()
    assert asked is question
    return answer


def failure(engine: CommandEngine, pool: Pool) -> str:
    answer = ask(engine, Recipe.uniform([0, 1], len(pool)))
    assert isinstance(answer, Failure)
    return answer.message


def expected_values(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    model = toy.model().eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        found = [(model(x).argmax(1) == y).double().numpy() for x, y in toy.batches(toy.VALIDATION)]
    return np.concatenate(found)


def is_gone(pid_file: Path) -> bool:
    """Whether the process whose number a program wrote has ended; a signal may take a moment on a busy machine."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.01)


def test_a_program_scores_members_soups_and_parts_of_the_examples(engine, toy_pool, toy_command, tmp_path):
    made = engine(toy_command + " {examples}")
    assert (made.slots, made.parts, made.splits, made.examples) == (1, True, (), 0)
    single = ask(made, Recipe.single(2, 6))
    values = expected_values(toy_pool.tensors(2))
    assert np.array_equal(single.values, values)
    assert single.score == values.mean()
    assert single.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(600))
    assert single.examples == made.examples == 600
    assert dict(single.further) == {"half": (pytest.approx(values[::2].mean()), pytest.approx(np.nan, nan_ok=True))}
    recipe = Recipe.normalized([3, 1, 0, 1, 0, 0])
    values = expected_values(average(toy_pool, recipe))
    assert np.array_equal(ask(made, recipe).values, values)
    chosen = np.array([0, 5, 6, 300, 599])
    part = ask(made, recipe, chosen)
    assert np.array_equal(part.values, values[chosen])
    assert part.examples == 5
    made.close()
    assert not (tmp_path / "scratch").exists()


def test_a_member_is_scored_on_its_own_file_and_a_soup_on_a_new_one(engine, toy_pool, script, tmp_path):
    made = engine(script(f'echo "$1" >> {tmp_path}/seen; echo 0.5') + " {soup}")
    for recipe in (Recipe.single(1, 6), Recipe.uniform([0, 1], 6), Recipe.uniform([0, 2], 6)):
        assert ask(made, recipe).score == 0.5
    single, first, second = map(Path, (tmp_path / "seen").read_text().split())
    assert single == toy_pool[1].path
    # A program may remember files by their path, so no two soups share one.
    assert first != second
    assert first.suffix == ".safetensors"
    assert not first.exists()
    assert not second.exists()


def test_a_file_of_scores_needs_no_values_and_then_there_are_no_parts(engine, script):
    made = engine(script("echo the score is; echo 0.25") + " {soup} {examples}")
    answer = ask(made, Recipe.uniform([0, 1], 6))
    assert (answer.score, answer.values, answer.examples, answer.data) == (0.25, None, 0, "")
    assert np.isnan(answer.stderr)
    assert not made.parts
    assert made.examples == 0
    part = ask(made, Recipe.uniform([0, 1], 6), np.arange(3))
    assert 'it was asked about 3 examples and gave no "values"' in part.message


def test_nan_is_an_answer_that_never_wins(engine, script):
    made = engine(script("echo nan") + " {soup}")
    answer = ask(made, Recipe.single(0, 6))
    assert isinstance(answer, Answer)
    assert np.isnan(answer.score)
    assert made.command.utility(answer.score) == -np.inf
    assert Command("x {soup}", higher_is_better=False).utility(0.3) == -0.3


def test_the_placeholders_and_the_environment_say_the_same(engine, script, tmp_path):
    made = engine(
        script('[ -d "$RADIN_OUT" ] && [ -z "$(ls "$RADIN_OUT")" ] && echo made > "$3/file"\n'
               'printf "%s\\n" "$1" "$2" "$3" "$4" > seen; env | grep ^RADIN_ | grep -v CACHE | sort > env; echo 1')
        + ' "{soup}" {slot} {out} \'{examples}\'; mv seen env ' + str(tmp_path)
    )  # fmt: skip
    answer = ask(made, Recipe.uniform([0, 1], 6), np.array([4, 7]))
    assert "gave no" in answer.message
    soup, slot, out, examples = (tmp_path / "seen").read_text().splitlines()
    assert (tmp_path / "env").read_text().splitlines() == [
        f"RADIN_EXAMPLES={examples}", f"RADIN_OUT={out}", f"RADIN_SLOT={slot}", f"RADIN_SOUP={soup}"
    ]  # fmt: skip
    assert slot == "0"
    # What a failed program wrote is kept, and the message says where.
    assert (tmp_path / "scratch/failed/file").read_text() == "made\n"
    assert f"what it wrote is kept in {tmp_path / 'scratch/failed'}" in answer.message
    assert not Path(out).exists()
    made.close()
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["failed"]
    again = engine("echo 1 # {soup}")
    assert ask(again, Recipe.uniform([0, 1], 6)).score == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_examples_are_written_one_in_each_line(engine, script):
    made = engine(
        "[ \"$(tr '\\n' ' ' < {examples})\" = '4 7 11 ' ] && printf '{{\"score\": 1, \"values\": [1, 1, 1]}}' # {soup}"
    )
    assert ask(made, Recipe.uniform([0, 1], 6), np.array([4, 7, 11])).score == 1


def test_paths_with_spaces_and_quotes_reach_the_program_whole(toy_pool, tmp_path):
    folder = tmp_path / 'it\'s a $HOME; "odd" folder'
    with CommandEngine(
        toy_pool, Command("test -f {soup} && test -f '{soup}' && test -f \"{soup}\" && echo 2"), folder
    ) as made:
        assert ask(made, Recipe.uniform([0, 1], 6)).score == 2


def test_a_failing_program_is_shown_with_its_exit_code_and_the_end_of_stderr(engine, toy_pool, script):
    command = script('for k in $(seq 40); do printf "line %s \\033[31mred\\033[0m\\n" $k >&2; done; echo 0.9; exit 3')
    message = failure(engine(command + " {soup}"), toy_pool)
    lines = message.splitlines()
    assert lines[0] == "the command failed: exit code 3"
    assert lines[1].startswith(f"    {command} /")
    assert lines[2] == "the last lines of its stderr:"
    assert lines[3:] == [f"    line {k} red" for k in range(26, 41)]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("./no-such-program {soup}", "exit code 127 (no such program)"),
        ("sh -c 'kill -9 $$' {soup}; exit $?", "exit code 137 (a program that it ran was ended by SIGKILL, as"),
        ("kill -TERM $$ # {soup}", "ended by SIGTERM\n"),
        ("true {soup}", "gave no answer: it printed nothing"),
        ("echo hello {soup} >&2; exit 1", "exit code 1\n"),
    ],
)  # fmt: skip
def test_how_a_program_ended_is_said(engine, toy_pool, command, said):
    assert said in failure(engine(command), toy_pool)


def test_a_program_that_kills_itself(engine, toy_pool, script):
    message = failure(engine(script("echo going >&2; kill -9 $$") + " {soup}"), toy_pool)
    assert "SIGKILL, as the system does when memory runs out" in message
    assert "the last lines of its stderr:\n    going" in message


def test_nonsense_is_shown_with_what_was_expected(engine, toy_pool, script):
    message = failure(engine(script("echo starting; echo accuracy: 91.2%; echo a warning >&2") + " {soup}"), toy_pool)
    lines = message.splitlines()
    assert lines[0] == "the command gave no answer: its last line 'accuracy: 91.2%' is not a number"
    assert lines[2].startswith("expected, as the last line of its standard output, one number (0.912) or a JSON object")
    assert lines[3:] == [
        "the last lines of its stdout:", "    starting", "    accuracy: 91.2%",
        "the last lines of its stderr:", "    a warning",
    ]  # fmt: skip


@pytest.mark.clock
def test_a_program_that_hangs_is_ended_at_its_time(engine, toy_pool, script, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 60.0)  # which nothing here waits for
    command = script(f"sleep 100 & echo $! > {tmp_path}/pid; echo waiting >&2; wait") + " {soup}"
    started = time.monotonic()
    message = failure(engine(command, timeout=2), toy_pool)
    assert 2 < time.monotonic() - started < 30
    assert message.startswith("the command gave no answer within 2 s and was ended\n")
    assert message.endswith("    waiting")
    assert is_gone(tmp_path / "pid")


@pytest.mark.clock
def test_a_program_deaf_to_sigterm_is_killed(engine, toy_pool, script, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.5)
    deaf = f"trap '' TERM; echo $$ > {tmp_path}/pid; while true; do sleep 0.2; done"
    started = time.monotonic()
    assert "within 1 s" in failure(engine(script(deaf) + " {soup}", timeout=1), toy_pool)
    assert 1.5 <= time.monotonic() - started < 30
    assert is_gone(tmp_path / "pid")


def test_a_program_that_fails_every_third_time_needs_retries(engine, script, tmp_path):
    flaky = script(
        f"n=$(($(cat {tmp_path}/n 2>/dev/null || echo 0) + 1))\n"
        f"echo $n > {tmp_path}/n; [ $((n % 3)) != 0 ] && echo 0.$n"
    )
    made = engine(flaky + " {soup}", retries=1)
    assert [ask(made, Recipe.uniform([0, k], 6)).score for k in (1, 2, 3, 4, 5)] == [0.1, 0.2, 0.4, 0.5, 0.7]
    (tmp_path / "n").write_text("2")
    first, second = (ask(engine(flaky + " {soup}"), Recipe.single(0, 6)) for _ in range(2))
    assert first.message.startswith("the command failed: exit code 1")
    assert second.score == 0.4
    always = ask(engine("exit 7 # {soup}", retries=2), Recipe.single(0, 6))
    assert always.message.endswith("that was the last of 3 attempts")


@pytest.mark.clock
@pytest.mark.parametrize("stream", [1, 2])
def test_a_hundred_megabytes_of_output_take_no_memory(engine, stream):
    line = "x" * 199
    command = f"yes {line} | head -n 500000 >&{stream}; echo the end >&{stream}; echo 0.75 # {{soup}}"
    made = engine(command)
    assert ask(made, Recipe.single(0, 6)).score == 0.75
    tracker = psutil.Process()
    before, peak, done = tracker.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], tracker.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert ask(made, Recipe.single(1, 6)).score == 0.75
    done.set()
    watcher.join()
    # The end of stdout is kept for answers with many values, 32 MB of it; decoding takes it once or twice more.
    assert peak[0] - before < (8 << 20 if stream == 2 else 120 << 20)


@pytest.mark.clock
def test_what_a_finished_program_leaves_running_is_ended(engine, script, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 60.0)  # which nothing here waits for
    made = engine(script(f"sleep 100 > /dev/null 2>&1 & echo $! > {tmp_path}/pid; echo 0.5") + " {soup}")
    assert ask(made, Recipe.single(0, 6)).score == 0.5
    assert is_gone(tmp_path / "pid")
    # Even one that holds the pipes open does not keep the answer back for long.
    made = engine(script(f"sleep 100 & echo $! > {tmp_path}/pid; echo 0.5", "holding.sh") + " {soup}")
    started = time.monotonic()
    assert ask(made, Recipe.single(0, 6)).score == 0.5
    assert time.monotonic() - started < 30
    assert is_gone(tmp_path / "pid")


@pytest.mark.clock
def test_closing_ends_what_runs_with_its_grandchildren(engine, script, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 60.0)  # which nothing here waits for
    tree = script(f"sh -c 'sleep 100 & echo $! > {tmp_path}/grandchild; wait' & echo $$ > {tmp_path}/child; wait")
    made = engine(tree + " {soup}", retries=5)
    made.submit(Question(Recipe.uniform([0, 1], 6)))
    wait_for(tmp_path / "grandchild")
    assert made.wait(timeout=0.05) == []
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 30
    assert is_gone(tmp_path / "child")
    assert is_gone(tmp_path / "grandchild")
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(RadinError, match="the engine is closed"):
        made.submit(Question(Recipe.single(0, 6)))


@pytest.mark.clock
def test_an_interrupt_leaves_nothing_running(toy_folder, script, tmp_path):
    command = script(f"echo $$ > {tmp_path}/pid; exec sleep 100") + " {soup}"
    program = f"""
import radin
from pathlib import Path
from radin.engine.command import CommandEngine
from radin.question import Question
pool = radin.Pool.open({str(toy_folder)!r})
with CommandEngine(pool, radin.Command({command!r}), Path({str(tmp_path / "scratch")!r})) as engine:
    engine.submit(Question(radin.Recipe.uniform([0, 1], 6)))
    engine.wait()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, preexec_fn=forking.heard
    )
    wait_for(tmp_path / "pid")
    child.send_signal(2)
    _, stderr = child.communicate(timeout=60)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert is_gone(tmp_path / "pid")
    assert not (tmp_path / "scratch").exists()


def test_two_jobs_answer_out_of_order_and_keep_to_their_slots(engine, script, tmp_path):
    # The first to start waits for the others to have answered.
    command = script(
        f"mkdir {tmp_path}/first 2>/dev/null && first=yes\n"
        f"ls -d {tmp_path}/scratch/slot-*/soup-* | wc -l >> {tmp_path}/soups; echo $2 >> {tmp_path}/slots\n"
        f'if [ "$first" ]; then while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo 0.1; else echo 0.2; fi'
    )
    made = engine(command + " {soup} {slot}", jobs=2)
    questions = [Question(Recipe.uniform([0, k], 6)) for k in (1, 2, 3, 4)]
    made.submit(questions[0])
    wait_for(tmp_path / "slots")
    made.submit(questions[1])
    with pytest.raises(RadinError, match="all 2 slots are in work"):
        made.submit(questions[2])
    [(question, answer)] = made.wait()
    assert question is questions[1]
    assert answer.score == 0.2
    made.submit(questions[2])
    [(question, answer)] = made.wait()
    assert (question, answer.score) == (questions[2], 0.2)
    (tmp_path / "go").touch()
    [(question, answer)] = made.wait()
    assert (question, answer.score) == (questions[0], 0.1)
    assert made.wait() == []
    assert (tmp_path / "slots").read_text().split() == ["0", "1", "1"]
    assert max(map(int, (tmp_path / "soups").read_text().split())) == 2


def test_one_failure_loses_no_other_answer(engine, script, tmp_path):
    made = engine(script("[ $1 = 1 ] && exit 5; sleep 0.3; echo 0.$1") + " {slot} # {soup}", jobs=3)
    for k in range(3):
        made.submit(Question(Recipe.single(k, 6)))
    found = []
    while answers := made.wait():
        found += [
            answer.message.splitlines()[0] if isinstance(answer, Failure) else answer.score for _, answer in answers
        ]
    assert sorted(found, key=str) == [0.0, 0.2, "the command failed: exit code 5"]


def test_a_member_that_changed_makes_every_question_pointless(tmp_path, script, engine):
    paths = toy.build(tmp_path / "own", 3)
    made = engine(script("echo 0.5") + " {soup}", Pool.open(paths))
    save_file({name: tensor + 1 for name, tensor in load_file(paths[1]).items()}, paths[1])
    made.submit(Question(Recipe.uniform([0, 1], 3)))
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        made.wait()


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(toy_pool, tmp_path):
    scratch = tmp_path / "scratch"
    for name in ("slot-0/soup-1.safetensors", "slot-3/out/deep/file", "failed/log", "mine/notes.txt"):
        (scratch / name).parent.mkdir(parents=True)
        (scratch / name).write_text("left")
    with CommandEngine(toy_pool, Command("echo 1 # {soup}"), scratch) as made:
        # Not before: until it is asked, another process may be at work there.
        assert (scratch / "slot-0/soup-1.safetensors").exists()
        assert ask(made, Recipe.uniform([0, 1], 6)).score == 1
    assert sorted(str(p.relative_to(scratch)) for p in scratch.rglob("*")) == ["mine", "mine/notes.txt"]


def test_no_room_on_the_disk_is_said_before_anything_runs(toy_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3000}))
    with pytest.raises(RadinError, match=r"2 soups at a time need 0\.0 GB on disk; 0\.0 GB are free"):
        ask(CommandEngine(toy_pool, Command("true {soup}", jobs=2), tmp_path / "scratch"), Recipe.single(0, 6))


def test_folders_as_members(toy_pool, toy_command, engine, tmp_path):
    for k in range(3):
        folder = tmp_path / "folders" / f"checkpoint-{k}"
        folder.mkdir(parents=True)
        save_file(dict(toy_pool.tensors(k)), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(f'{{"seed": {k}}}')
        torch.save({"step": torch.ones(3)}, folder / "optimizer.pt")
    pool = Pool.open(tmp_path / "folders")
    listing = tmp_path / "listing"
    made = engine(f"ls {{soup}} > {listing}; cat {{soup}}/config.json >> {listing}; {toy_command}", pool)
    assert made.soup_name == "soup"
    recipe = Recipe.normalized([1, 3, 0])
    values = expected_values(average(pool, recipe))
    assert np.array_equal(ask(made, recipe).values, values)
    assert listing.read_text().split("\n") == ["config.json", "model.safetensors", "radin.json", '{"seed": 1}']
    for _ in range(2):  # the second replaces the first
        made.write(recipe, tmp_path / "soup")
    assert Recipe.from_json(read_recipe(tmp_path / "soup"), pool.fingerprints) == recipe
    found = radin.Pool.open([tmp_path / "folders/checkpoint-0", tmp_path / "soup"])
    tensors = average(pool, recipe)
    assert all(torch.equal(found.tensors(1)[name], tensors[name]) for name in tensors)
    with pytest.raises(CheckpointError, match="is there already and no soup of radin's"):
        made.write(recipe, tmp_path / "folders/checkpoint-0")


def test_torch_files_as_members_keep_their_nesting(toy_pool, engine, tmp_path, script):
    for k in range(2):
        state = {f"module.{name}": tensor for name, tensor in toy_pool.tensors(k).items()}
        torch.save({"epoch": k, "state_dict": state, "optimizer": {0: torch.ones(3)}}, tmp_path / f"run-{k}.pth")
    load = script(
        "import sys, torch\n"
        "found = torch.load(sys.argv[1], weights_only=True)\n"
        "print(found['epoch'] + float(found['state_dict']['module.4.bias'].sum()))",
        "load.py",
    )
    pool = Pool.open(tmp_path / "run-*.pth")
    made = engine(load + " {soup}", pool)
    recipe = Recipe.normalized([1, 3])
    assert ask(made, recipe).score == pytest.approx(1 + float(average(pool, recipe)["4.bias"].sum()), rel=1e-6)
    assert made.soup_name == "soup.pth"
    made.write(recipe, tmp_path / made.soup_name)
    assert sorted(torch.load(tmp_path / "soup.pth", weights_only=True)) == ["epoch", "state_dict"]
    made.write(recipe, tmp_path / "soup.safetensors")
    for name in ("soup.pth", "soup.safetensors"):
        assert Recipe.from_json(read_recipe(tmp_path / name), pool.fingerprints) == recipe
    assert sorted(load_file(tmp_path / "soup.safetensors")) == sorted(pool.names)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"command": "./score.sh"}, r"goes: add \{soup\}\. Known: \{soup\}, \{slot\}, \{examples\}, \{out\}"),
        ({"command": "./score.sh {soup} {gpu}"}, r"unknown placeholder \{gpu\}\. Known: \{soup\}, \{slot\}"),
        ({"command": "awk '{print $1}' {soup}"}, r"unknown placeholder \{print \$1\}.*Double the braces"),
        ({"command": "./score.sh {soup:>9}"}, r"unknown placeholder \{soup:>9\}"),
        ({"command": "./score.sh {soup} }"}, "a brace that belongs to nothing"),
        ({"command": "  "}, "a command is text such as"),
        ({"command": "a {soup}", "jobs": 0}, "jobs must be at least 1; got 0"),
        ({"command": "a {soup}", "jobs": True}, "jobs must be a whole number; got True"),
        ({"command": "a {soup}", "retries": -1}, "retries must be at least 0; got -1"),
        ({"command": "a {soup}", "timeout": 0}, "timeout must be a number of seconds above 0; got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(settings, said):
    with pytest.raises(RadinError, match=said):
        Command(**settings)


def test_questions_that_a_command_cannot_answer_are_refused(engine):
    made = engine("echo 1 {soup}")
    with pytest.raises(RadinError, match="cannot be asked about 'test'"):
        made.submit(Question(Recipe.single(0, 6), split="test"))
    with pytest.raises(RadinError, match=r"it has no \{examples\}"):
        made.submit(Question(Recipe.single(0, 6), np.arange(3)))
    assert made.wait() == []


def test_the_identity_notices_a_script_that_changed(engine, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script("echo 1")
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "results.log").write_text("old")
    command = f"{sys.executable} score.sh --config=settings.json {{soup}} --log results.log 2> errors.txt"
    before = dict(engine(command).identity())
    assert {k: v if len(str(v)) < 60 else "hash" for k, v in before.items()} == {
        "the command": command if len(command) < 60 else "hash",
        "better scores": "higher",
        "integers from": "the member with the largest ratio",
        "the file score.sh": "hash",
        "the file settings.json": "hash",
    }
    (tmp_path / "results.log").write_text("new")
    (tmp_path / "errors.txt").write_text("new")
    assert engine(command).identity() == before
    script("echo 2")
    after = engine(command).identity()
    assert [k for k in before if before[k] != after[k]] == ["the file score.sh"]
    assert engine(command, higher_is_better=False).identity()["better scores"] == "lower"


def test_batchnorm_is_noted(engine):
    assert "1 BatchNorm layer," in engine("true {soup}").notes[0]


def test_importing_the_library_starts_no_torch_for_a_command():
    code = "import sys, radin; assert 'torch' not in sys.modules; radin.Command('x {soup}')"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
