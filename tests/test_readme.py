"""The README's examples run as they stand, on the toy pool laid out as they expect it."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from radin import Pool, Task

pytestmark = pytest.mark.long

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


def test_the_task_file_is_one(sweep, monkeypatch):
    pytest.importorskip("torchvision")
    (sweep / "my_project.py").write_text("def loader(split, **how):\n    return [(split, how)]\n")
    (sweep / "task.py").write_text(BLOCKS[0])
    monkeypatch.syspath_prepend(sweep)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    task = Task.load("task.py")
    assert task.metric == "accuracy"
    assert [task.validation(), task.test()] == [[(split, {"shuffle": False})] for split in ("validation", "test")]
    assert task.calibration() == [("train", {"batches": 50})]
    assert task.model().fc.out_features == 10
    sys.modules.pop("my_project", None)


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
