"""Runs on one Ray cluster of a head without processors and two nodes with one each, and what came of them, as JSON.

    python ray_runs.py FOLDER [NAME ...]      FOLDER: a toy pool, and where runs go; by default all runs

In a process of its own, so that it can have a network of its own. Nodes are processes of this machine, and die alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import radin
from radin import interrupts
from radin.engine.ray_cluster import Ray, library

HEALTH = {"initial_delay_ms": 1000, "period_ms": 500, "failure_threshold": 4}  # a dead node is noticed soon

# Says which weights ran where, once a pass; dies in the stages that the file "plan" names, once in each.
TASK = """
import os, signal, time
import torch, toy
from pathlib import Path
model = toy.model
PLACE = Path({folder!r})
HERE = os.getpid() == int((PLACE / "driver").read_text())
SLOW = float({slow!r})
def once(stage):
    if HERE or stage not in {stages!r}.split():
        return
    import ray
    try:
        with open(PLACE / f"was-{{stage}}", "x") as file:
            file.write(ray.get_runtime_context().get_node_id())
    except FileExistsError:
        return
    if {whole_node!r}:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)
def validation():
    return toy.batches(toy.VALIDATION)
def test():
    once("test")
    return toy.batches(toy.TEST)
def calibration():
    once("soups")
    return toy.batches(toy.TRAINING)
def outputs(model, inputs):
    if not HERE:
        time.sleep(SLOW)
        if abs(float(inputs.sum()) - {first!r}) < 1e-3:
            with open(PLACE / "passes", "a") as file:
                file.write(f"{{float(sum(p.double().sum() for p in model.state_dict().values())):.12g}}\\n")
            if len((PLACE / "passes").read_text().split()) == 3:
                once("outputs")
    return model(inputs)
"""


def task(folder: Path, stages: str = "", *, whole_node: bool = False, slow: float = 0.0) -> Path:
    """A task file in ``folder``; it dies once in each of the stages."""
    import toy

    folder.mkdir()
    first = float(toy.batches(toy.VALIDATION)[0][0].sum())
    text = TASK.format(folder=str(folder), stages=stages, whole_node=whole_node, slow=slow, first=first)
    (folder / "task.py").write_text(text)
    (folder / "driver").write_text(str(os.getpid()))
    return folder / "task.py"


def found(result: radin.Result, folder: Path) -> dict[str, Any]:
    """What is compared with the local engine's."""
    passes = (folder / "passes").read_text().split() if (folder / "passes").exists() else []
    return {
        "recipe": result.best.recipe.weights,
        "score": result.best.score,
        "splits": {split: score for split, (score, _) in result.best.splits.items()},
        "evaluations": sorted([list(map(float, e.recipe.weights)), e.score] for e in result.evaluations),
        "soup": (Path(result.soup)).read_bytes().hex()[-64:],
        "notes": list(result.notes),
        "passes": len(passes),
        "models": len(set(passes)),
    }


class Runs:
    """The cluster, and a method for each run."""

    def __init__(self, folder: Path) -> None:
        self.ray, self.folder = library(), folder
        from ray.cluster_utils import Cluster  # once it is known not to print

        self.pool = radin.Pool.open(folder / "pool")
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        }
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, wait=False) for _ in range(2)]
        self.cluster.wait_for_nodes(timeout=120)
        self.on = Ray(address=self.cluster.address)

    def cook(self, name: str, source: Any, engine: Any = None, **more: Any) -> dict[str, Any]:
        out = self.folder / name / "run"
        given = {"budget": 3, "strategy": "paper"} | more
        return found(radin.cook(self.pool, source, out=out, engine=engine or self.on, **given), self.folder / name)

    def same(self) -> dict[str, Any]:
        """A whole run, as it is."""
        return self.cook("same", task(self.folder / "same"))

    def program(self) -> dict[str, Any]:
        """A program evaluates."""
        (self.folder / "program").mkdir()
        script = self.folder / "program" / "score.py"
        script.write_text(
            "import os, sys\n"
            f"open({str(self.folder / 'program' / 'passes')!r}, 'a').write(os.environ.get('RAY_JOB_ID', '?') + '\\n')\n"
            "print(os.path.getsize(sys.argv[1]) % 1000 / 1000)\n"
        )
        return self.cook("program", radin.Command(f"{sys.executable} {script} {{soup}}"), budget=2, strategy="random")

    def workers_die(self) -> dict[str, Any]:
        """A worker is killed in each stage."""
        return self.cook("workers_die", task(self.folder / "workers_die", "outputs soups test"))

    def nodes_die(self) -> dict[str, Any]:
        """A node is killed in each stage, with what runs on it; another one comes."""
        stages = ["outputs", "soups", "test"]
        source = task(self.folder / "nodes_die", " ".join(stages), whole_node=True)
        came: list[Any] = []
        driver = threading.Thread(target=lambda: came.append(self.cook("nodes_die", source)), daemon=True)
        driver.start()
        killed = []
        for stage in stages:  # in the main thread, the only one in which Ray starts a node
            mark = self.folder / "nodes_die" / f"was-{stage}"
            while driver.is_alive() and not (mark.exists() and mark.read_text()):
                time.sleep(0.05)
            dead = next(node for node in self.nodes if node.node_id == mark.read_text())
            self.nodes.remove(dead)
            self.cluster.remove_node(dead, allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1, wait=False))
            killed.append(stage)
        driver.join()
        self.cluster.wait_for_nodes(timeout=120)
        return came[0] | {"killed": killed}

    def _driver(self, name: str, until: int) -> subprocess.Popen[bytes]:
        """A driver in a process of its own, once so many members have been evaluated."""
        driver = subprocess.Popen([sys.executable, __file__, str(self.folder), "--driver", self.cluster.address])
        (self.folder / name / "driver").write_text(str(driver.pid))
        outputs = self.folder / name / "run" / "outputs"
        while driver.poll() is None and len(list(outputs.glob("*.safetensors"))) < until:
            time.sleep(0.02)
        return driver

    def driver_dies(self) -> dict[str, Any]:
        """The driver is stopped, then killed, while members are evaluated; the run goes on here, without a cluster."""
        name = "driver_dies"
        source = task(self.folder / name, slow=0.05)
        driver = self._driver(name, 1)
        driver.terminate()
        started = time.monotonic()
        driver.wait(60)
        stopping = time.monotonic() - started
        driver = self._driver(name, 3)
        driver.kill()
        driver.wait()
        outputs = self.folder / name / "run" / "outputs"
        before = {path: path.stat().st_ino for path in outputs.glob("*.safetensors")}
        (self.folder / name / "driver").write_text(str(os.getpid()))
        result = radin.cook(self.pool, source, budget=3, strategy="paper", out=self.folder / name / "run")
        return found(result, self.folder / name) | {
            "before": len(before),
            "kept": sum(path.stat().st_ino == inode for path, inode in before.items()),
            "stopping": stopping,
        }

    def _refused(self, source: Any, engine: Any, name: str) -> str:
        with contextlib.suppress(FileExistsError):
            (self.folder / name).mkdir()
        try:
            self.cook(name, source, engine)
        except radin.RadinError as error:
            return str(error)
        return "no error"

    def refusals(self) -> dict[str, str]:
        """What is refused, with which words."""
        from radin.engine import hello

        said = {}
        bad = task(self.folder / "does_not_import")
        bad.write_text(bad.read_text() + "\nif not HERE:\n    import a_library_that_only_the_driver_has\n")
        said["import"] = self._refused(bad, replace(self.on, workers=1), "does_not_import")
        here = hello.Hello.here

        def elsewhere(plan: Any) -> Any:
            one = here(plan)
            return replace(one, files={**one.files, "/home/only/here.safetensors": (1, 1)})

        hello.Hello.here = elsewhere
        said["path"] = self._refused(task(self.folder / "path"), replace(self.on, workers=1), "path")
        hello.Hello.here = here
        large = replace(self.on, workers=1, cpus_per_worker=64)
        said["room"] = self._refused(task(self.folder / "room"), large, "room")
        hog = self.ray_hog()
        busy = replace(self.on, workers=1, patience=2.0)
        said["busy"] = self._refused(task(self.folder / "busy"), busy, "busy")
        del hog
        version, self.ray.__version__ = self.ray.__version__, "1.0.0"
        said["version"] = self._refused(task(self.folder / "version"), self.on, "version")
        self.ray.__version__ = version
        return said

    def ray_hog(self) -> Any:
        """Something else that takes all processors, for as long as it is kept."""
        script = (
            "import ray, sys, time\n"
            "ray.init(address=sys.argv[1], log_to_driver=False)\n"
            "class A:\n    def ping(self): return 1\n"
            "them = [ray.remote(A).options(num_cpus=1).remote() for _ in range(2)]\n"
            "ray.get([one.ping.remote() for one in them])\n"
            "print('there', flush=True)\ntime.sleep(600)\n"
        )
        return _Held([sys.executable, "-c", script, self.cluster.address])

    def close(self) -> None:
        self.cluster.shutdown()


class _Held:
    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    if names[:1] == ["--driver"]:
        source = folder / "driver_dies" / "task.py"
        while (folder / "driver_dies" / "driver").read_text() != str(os.getpid()):
            time.sleep(0.01)
        engine = Ray(address=names[1])
        out = folder / "driver_dies" / "run"
        with interrupts.handled():
            interrupts.running()
            try:
                radin.cook(radin.Pool.open(folder / "pool"), source, budget=3, strategy="paper", out=out, engine=engine)
            except interrupts.Stopped:
                print("stopped", file=sys.stderr)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    started = time.monotonic()
    runs = Runs(folder)
    came: dict[str, Any] = {"start": time.monotonic() - started}
    try:
        for name in names or ["same", "program", "workers_die", "nodes_die", "driver_dies", "refusals"]:
            started = time.monotonic()
            try:
                came[name] = getattr(runs, name)()
            except BaseException:
                came[name] = {"error": traceback.format_exc()}
            came[name]["seconds"] = time.monotonic() - started
            (folder / "came.json").write_text(json.dumps(came))
    finally:
        runs.close()


if __name__ == "__main__":
    main()
