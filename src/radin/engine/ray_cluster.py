"""Workers as actors of a Ray cluster: one that is there, or one that is started on this machine for the run."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from radin.checks import whole_number
from radin.engine.crew import Cluster, Crew, Plan
from radin.errors import RadinError, printable

_ANSWER = 5.0  # seconds in which whoever listens at an address must take a connection, and then speak
# How HTTP/2, which Ray speaks, starts: by this and an empty frame of settings; the other side sends its settings too.
_BEGIN, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 4
_SKIPPED = "RAY_DEDUP_LOGS_SKIP_REGEX"  # lines that a driver does not print; Ray reads it when it is imported
_MOST = 100_000  # workers: more is a slip

_ours: list[str] = []  # the address that this process connected to for a run; the user's own connection is not here


@dataclass(frozen=True)
class Ray(Cluster):
    """Workers on Ray, each with a model of its own.

    workers: how many; None: one for each GPU of the cluster (or for each share of one), without GPUs one for every
    ``cpus_per_worker`` processors. address: of a running cluster, "auto", "host:port" or "ray://host:port", which is
    left running; None: Ray is started on this machine and stopped after the run. gpus_per_worker: a share such as 0.5
    lets two workers use one; None: a whole one where there are enough, else an equal share. cpus_per_worker: also
    the number of threads that a worker computes with. patience: seconds that workers may take to start before the
    run says what is missing.

    Raises RadinError for settings that make no sense.
    """

    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0
    patience: float = 300.0

    name = "ray"

    def __post_init__(self) -> None:
        if self.workers is not None:
            whole_number("workers", self.workers, 1, _MOST)
        for what, number, least in (
            ("gpus_per_worker", self.gpus_per_worker, 0.0),
            ("cpus_per_worker", self.cpus_per_worker, 0.01),
            ("patience", self.patience, 0.1),
        ):
            if number is not None and not (isinstance(number, int | float) and least <= number < math.inf):
                raise RadinError(f"{what} must be a number from {least:g} on; got {number!r}")
        if (gpus := self.gpus_per_worker or 0) > 1 and gpus != int(gpus):
            raise RadinError(f"gpus_per_worker must be a whole number, or a share of one GPU; got {gpus!r}")

    def count(self) -> int:
        """How many workers there will be; asks the cluster where one is given. Raises RadinError if nobody answers."""
        ray = library()
        nodes = [_this_machine()]
        if self.address is not None or _is_users(ray):
            self._connect(ray)
            nodes = _nodes(ray)
        if self.workers is not None:
            return self.workers
        return max(1, sum(room(node, *self._shares(nodes)) for node in nodes))

    def crew(self, plan: Plan, folder: Path) -> Crew:
        """Start workers. Raises RadinError: no Ray, nobody at the address, no node that has what a worker asks for."""
        from radin.engine.ray_crew import RayCrew

        ray = library()
        size = self.count()
        self._connect(ray, size)
        try:
            nodes = _nodes(ray)
            cpus, gpus = self._shares(nodes)
            if not any(room(node, cpus, gpus) for node in nodes):
                raise RadinError(
                    f"a worker asks for {asked(cpus, gpus)}, and no node of the Ray cluster has as much: "
                    f"{there(nodes)}. Ask for less (--cpus-per-worker, --gpus-per-worker)"
                )
            return RayCrew(ray, plan, size, cpus, gpus, self.patience, close=lambda: disconnect(ray))
        except BaseException:
            disconnect(ray)
            raise

    def _shares(self, nodes: list[Mapping[str, float]]) -> tuple[float, float]:
        """Processors and GPUs of one worker."""
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        if self.gpus_per_worker is not None:
            return self.cpus_per_worker, self.gpus_per_worker
        if not gpus:
            return self.cpus_per_worker, 0.0
        return self.cpus_per_worker, 1.0 if self.workers is None else 1 / math.ceil(self.workers / gpus)

    def _connect(self, ray: Any, size: int = 1) -> None:
        """Unless this process is connected already. What the user connected to is used, whatever the address."""
        place = self.address or "local"
        if ray.is_initialized():
            if not _ours or _ours == [place]:
                return
            disconnect(ray)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is None:
            os.environ.setdefault("RAY_worker_niceness", "0")  # by its default of 15 workers yield to all else here
            # As many processors as the workers ask for, whether there are or not: that is for the user to say.
            processors = max(math.ceil(size * self.cpus_per_worker), _processors())
            settings |= {"include_dashboard": False, "num_cpus": processors}
        else:
            _require_somebody(self.address)
        with _signals_kept():
            try:
                ray.init(address=place, **settings)
            except Exception as error:  # of many classes: ConnectionError, RuntimeError, ValueError, grpc's
                raise RadinError(_not_connected(place, error)) from None
        _ours[:] = [place]


def library() -> Any:
    """The module. Raises RadinError with the command that installs it."""
    # Ray prints of each worker that died, on standard output, where --json has its own. The notes say who died.
    before = os.environ.get(_SKIPPED)
    os.environ[_SKIPPED] = "."
    try:
        import ray
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("", "ray"):
            raise RadinError(f"--engine ray needs Ray, which needs {error.name}: pip install {error.name}") from None
        raise RadinError("--engine ray needs Ray: pip install ray") from None
    finally:
        if before is None:
            del os.environ[_SKIPPED]
        else:
            os.environ[_SKIPPED] = before
    return ray


def disconnect(ray: Any) -> None:
    """End the connection made for a run, and with it the Ray that was started here. The user's own stays."""
    if _ours:
        _ours.clear()
        with _signals_kept():
            ray.shutdown()


def room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit on a node."""
    found = [math.floor(node.get("CPU", 0.0) / cpus + 1e-9)]
    if gpus:
        found.append(math.floor(node.get("GPU", 0.0) / gpus + 1e-9))
    return min(found)


def asked(cpus: float, gpus: float) -> str:
    """What one worker takes, in words."""
    return f"{_number(cpus, 'CPU')}" + (f" and {_number(gpus, 'GPU')}" if gpus else "")


def there(nodes: list[Mapping[str, float]]) -> str:
    """What nodes have, in words."""
    kinds = [asked(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return "; ".join(f"{_number(count, 'node')} with {kind}" for kind, count in counts.items()) or "it has no nodes"


def nodes_there(ray: Any) -> str:
    """What the cluster has, and how much of it is free, in words."""
    free = ray.available_resources()
    return f"{there(_nodes(ray))}; free are {asked(free.get('CPU', 0.0), free.get('GPU', 0.0))}"


def _number(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each node that is alive has, taken or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _is_users(ray: Any) -> bool:
    return bool(ray.is_initialized()) and not _ours


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _this_machine() -> Mapping[str, float]:
    return {"CPU": float(_processors()), "GPU": float(torch.cuda.device_count())}


def _require_somebody(address: str) -> None:
    """Raise RadinError where nobody listens, or something else: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise RadinError(
            f"{address!r} is no address of a Ray cluster: 'auto', 'host:port' as 'ray start' says it, or 'ray://host:port'"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(_BEGIN + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]))
            said = b""
            with suppress(TimeoutError):
                said = connection.recv(9)
            if said[3:4] != bytes([_SETTINGS]):
                raise RadinError(
                    f"what answers at {address} is no Ray cluster: 'ray start' there says its address, by default "
                    "with port 6379 (10001 after ray://)"
                )
    except OSError as error:
        raise RadinError(
            f"no Ray cluster at {address}: {error.strerror or error}. Is it running there (ray status), and can this "
            "machine reach it?"
        ) from None


def _not_connected(place: str, error: Exception) -> str:
    """What Ray says when it does not connect, in a sentence."""
    said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if place == "local":
        return f"Ray could not be started on this machine: {printable(said)[:600]}"
    if "ersion mismatch" in said:
        return (
            f"the Ray cluster at {place} runs another version: {printable(said)[:600]} Install the same version of Ray "
            "and Python here and there"
        )
    if place == "auto":
        return f"no running Ray cluster was found from here: {printable(said)[:300]} Start one (ray start --head)"
    return (
        f"no Ray cluster answers at {place}: {type(error).__name__}: {printable(said)[:600]}. If it asks for a token, "
        "that must be here too: RAY_AUTH_TOKEN, or ~/.ray/auth_token"
    )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in place, where the command line has some."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
