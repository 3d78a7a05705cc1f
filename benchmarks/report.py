"""The page of a run with 72 members and 100,000 ranked candidates, opened by headless Chromium.

    python benchmarks/report.py [--quick] [--json] [--keep FOLDER]

The members are made up: tables of outputs on 2,000 examples of 50 classes (--quick: 500 of 10) around a shared truth,
with a part that is not linear in the weights.
``cook`` ranks the candidates and evaluates 60 soups as it would of any model.
Chromium and its driver must be installed (apt-get install chromium chromium-driver), and selenium.

--json ends with {"bytes", "load_ms", "console_errors", "figures"}: of the file; from navigation to the last figure
drawn, the median of three; messages of the console that are errors; figures that have a mark in them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MEMBERS, CANDIDATES, SOUPS = 72, 100_000, 60


def chromium() -> tuple[str, str] | None:
    """Chromium and its driver, where both are installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def opened(page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A driver of headless Chromium that has loaded a page from disk, its figures drawn. No network is asked for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.wait import WebDriverWait

    found = chromium()
    if found is None:
        sys.exit("headless Chromium is needed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.resolve().as_uri())
        WebDriverWait(driver, 60, 0.05).until(lambda d: d.execute_script("return window.radin && window.radin.ready"))
        yield driver
    finally:
        driver.quit()


def errors(driver: Any) -> list[str]:
    """What the console called an error."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def drawn(driver: Any) -> dict[str, int]:
    """Marks by figure."""
    script = (
        "return Object.fromEntries([...document.querySelectorAll('.chart')].map(c => [c.id.slice(6), "
        "c.querySelectorAll('.role-mark path, .role-mark line, .role-mark rect').length]))"
    )
    return dict(driver.execute_script(script))


def made_up(folder: Path, examples: int, classes: int, seed: int = 0) -> Path:
    """A finished run whose outputs are made up, as files; its directory."""
    import torch

    import radin
    from radin.data.task import Task

    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, examples)
    shared = rng.normal(size=(examples, classes)) + 2.2 * np.eye(classes)[targets]
    pool = folder / "pool"
    pool.mkdir(parents=True)
    from safetensors.numpy import save_file

    # A model that looks its outputs up: outputs of a soup are then averages of outputs, up to one curved part.
    for k in range(MEMBERS):
        skill = rng.uniform(0.6, 1.4)
        table = skill * shared + rng.normal(size=shared.shape) * rng.uniform(0.8, 1.6)
        tensors = {"table": table.astype(np.float32), "bend": rng.normal(size=classes).astype(np.float32)}
        save_file(tensors, pool / f"model-{k:02d}-lr{rng.uniform(1, 9):.1f}e-4.safetensors")

    class Looked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.zeros(examples, classes))
            self.bend = torch.nn.Parameter(torch.zeros(classes))

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            found = self.table[index]
            return found + 0.1 * self.bend * found.abs()

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        index = torch.arange(examples)
        return list(zip(index.split(500), torch.tensor(targets).split(500), strict=True))

    task = Task(model=Looked, validation=batches, metric="accuracy")
    radin.cook(
        sorted(pool.glob("*.safetensors")),
        task,
        strategy="paper",
        options={"candidates": CANDIDATES},
        budget=SOUPS,
        out=folder / "run",
    )
    return folder / "run"


def main() -> None:
    """Make the run, write its page, open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--keep", type=Path, help="Keep the run and its page in this folder.")
    given = parser.parse_args()
    from radin.report.page import write_page

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        began = time.monotonic()
        run = made_up(folder, *((500, 10) if given.quick else (2000, 50)))
        cooked = time.monotonic() - began
        began = time.monotonic()
        page = write_page(run)
        written = time.monotonic() - began
        times, wrong, marks = [], [], {}
        for _ in range(3):
            with opened(page) as driver:
                times.append(driver.execute_script("return window.radin.took"))
                wrong += errors(driver)
                marks = drawn(driver)
        found = {
            "bytes": page.stat().st_size,
            "load_ms": round(statistics.median(times)),
            "console_errors": len(wrong),
            "figures": sum(count > 0 for count in marks.values()),
        }
    print(f"{MEMBERS} members, {CANDIDATES:,} candidates ranked; cooked in {cooked:.1f} s, page in {written:.1f} s")
    print(
        f"{found['bytes']:,} bytes; drawn {found['load_ms']} ms after navigation "
        f"({', '.join(f'{t:.0f}' for t in times)})"
    )
    print("marks: " + ", ".join(f"{name} {count}" for name, count in marks.items()))
    for message in wrong:
        print(f"console: {message}")
    if given.as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
