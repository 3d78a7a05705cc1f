"""make release-check: what is published is built, looked into, installed into an empty environment, its demo run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["build==1.6.1", "twine==7.0.0"]
NOTHING_OF = {"__pycache__", ".git", ".github", ".ci", ".venv", ".venv-oldest", ".pools", "demo-run", "dist"}


def main() -> None:
    """Run every check; exits with one message at the first that fails."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tools = environment(folder / "tools", *TOOLS)
        run(tools, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT))
        (wheel,), (source,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
        run(tools, "-m", "twine", "check", "--strict", str(wheel), str(source))
        check_wheel(wheel)
        check_source(source)
        check_use(folder, wheel)


def check_wheel(wheel: Path) -> None:
    """It holds the package as it is in the repository, what describes it, and nothing else; its page leads on."""
    tracked = git("ls-files", "src/radin")
    described = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]
    name = "-".join(wheel.name.split("-")[:2])
    wanted = {path.removeprefix("src/") for path in tracked} | {f"{name}.dist-info/{file}" for file in described}
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
        metadata = archive.read(f"{name}.dist-info/METADATA").decode()
    require(found >= wanted, f"the wheel lacks {sorted(wanted - found)}")
    require(found <= wanted, f"the wheel holds what it should not: {sorted(found - wanted)}")
    relative = re.findall(r"\]\((?!https?:|#|mailto:)[^)\s]+\)", metadata)
    require(not relative, f"the page on the package index has links that lead nowhere: {relative}")
    require("Project-URL: " in metadata, "the metadata name no address")
    print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1000:,.0f} kB")


def check_source(source: Path) -> None:
    """The source archive holds the package and its tests, and nothing that is not the repository's."""
    tracked = set(git("ls-files"))
    with tarfile.open(source) as archive:
        found = {"/".join(Path(entry.name).parts[1:]) for entry in archive.getmembers() if entry.isfile()}
    more = found - tracked - {"PKG-INFO"}
    require(not more, f"the source archive holds files that are not in the repository: {sorted(more)}")
    require(not any(NOTHING_OF & set(Path(name).parts) for name in found), "the source archive holds working files")
    lacking = {name for name in tracked if name.startswith(("src/", "tests/"))} - found
    require(not lacking, f"the source archive lacks {sorted(lacking)}")
    print(f"{source.name}: {len(found)} files, {source.stat().st_size / 1000:,.0f} kB")


def check_use(folder: Path, wheel: Path) -> None:
    """In an empty environment: the wheel alone starts and has its public names, and with its extra runs the demo."""
    constraints = ["-c", str(ROOT / "constraints.txt"), "torch==2.13.0"]
    python = environment(folder / "user", str(wheel), *constraints)
    home = {"HOME": str(folder), "RADIN_CACHE": str(folder / "cache")}
    said = run(
        python,
        "-c",
        "import radin; print(*(getattr(radin, name) for name in radin.__all__)); import radin.testing",
        **home,
    )
    require("radin" in said, "the wheel's public names cannot be imported")
    command = python.parent / "radin"
    version = run(command, "--version", **home).split()[-1]
    require(version == wheel.name.split("-")[1], f"radin --version says {version}")
    listed = json.loads(run(command, "strategies", "--json", **home))
    require("adaptive" in listed, "radin strategies lists no adaptive")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[demo]", *constraints)
    found = json.loads(run(command, "demo", "--out", str(folder / "demo"), "--json", **home))
    print(f"radin {version}, demo: {json.dumps(found)[:300]}")
    require((folder / "demo" / "run" / "soup.safetensors").stat().st_size > 0, "the demo left no soup")
    print("the release is as it must be")


def environment(place: Path, *packages: str) -> Path:
    """A new environment with these packages alone; its Python."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def run(program: Path, *arguments: str, **more: str) -> str:
    """What a program prints. It sees nothing of the checkout. Exits with what it said where it fails."""
    seen = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        env=seen | more,
        cwd=tempfile.gettempdir(),
        check=False,
    )
    require(done.returncode == 0, f"{program.name} {' '.join(arguments)[:200]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def git(*arguments: str) -> list[str]:
    """Lines that git prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def require(holds: bool, message: str) -> None:
    """Exit with the message unless it holds."""
    if not holds:
        sys.exit(f"release check: {message}")


if __name__ == "__main__":
    main()
