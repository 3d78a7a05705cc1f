"""The README's examples run as they stand, on the toy pool laid out as they expect it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from radin import Pool

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def sweep(toy_folder, tmp_path, monkeypatch):
    """runs/*/best.safetensors and task.py in the working directory."""
    for path in toy_folder.glob("*.safetensors"):
        (tmp_path / "runs" / path.stem).mkdir(parents=True)
        shutil.copy(path, tmp_path / "runs" / path.stem / "best.safetensors")
    shutil.copy(toy_folder / "task.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_task_file_defines_what_radin_looks_for():
    names = set(compile(BLOCKS[0], "task.py", "exec").co_names)
    assert {"model", "validation", "test", "calibration", "metric"} <= names


def test_cooking_from_python(sweep, capsys):
    found = {}
    exec(BLOCKS[1], found)
    assert (sweep / "soup.safetensors").exists()
    assert set(found["weights"]) == set(toy.model().state_dict())
    passes = found["result"].passes
    assert 4 < passes.soups <= 5
    assert passes.total == pytest.approx(6 + passes.reestimated + passes.soups)
    assert str(found["result"].best.score) in capsys.readouterr().out


def test_searching_with_evaluations_made_elsewhere(sweep):
    pool = Pool.open("runs/*/best.safetensors")
    (sweep / "outputs").mkdir()
    for k in range(6):
        model = toy.model().eval()
        model.load_state_dict(pool.tensors(k))
        with torch.no_grad():
            np.save(f"outputs/{k}.npy", torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)]).numpy())
    np.save("outputs/targets.npy", torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).numpy())
    asked = []

    def my_own_evaluation(weights):
        asked.append(weights)
        return 0.99 if len(asked) == 3 else 0.5

    found = {"my_own_evaluation": my_own_evaluation}
    exec(BLOCKS[2], found)
    assert len(asked) == 5
    assert found["search"].best[0].weights == asked[2]
    assert found["search"].best[1] == 0.99
