import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from radin.data.batches import read
from radin.engine.batchnorm import reestimate, restore, statistics, statistics_layers


def network(dropout):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5)
    )


def data():
    torch.manual_seed(2)
    return [(torch.randn(16, 1, 8, 8) * 3 + 1, torch.zeros(16)) for _ in range(4)]


def test_statistics_equal_update_bn():
    ours, theirs = network(0.0), network(0.0)
    examples = reestimate(ours, read(data(), "calibration()"), torch.device("cpu"))
    update_bn([inputs for inputs, _ in data()], theirs)
    assert examples == 64
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert int(ours[1].num_batches_tracked) == 4


def test_dropout_stays_off_and_momentum_comes_back():
    with_dropout, without = network(0.5), network(0.0)
    for model in (with_dropout, without):
        reestimate(model, read(data(), "calibration()"), torch.device("cpu"))
    torch.testing.assert_close(with_dropout[5].running_var, without[5].running_var)
    assert [layer.momentum for layer in statistics_layers(with_dropout)] == [0.1, 0.1]
    assert not any(module.training for module in with_dropout.modules())


def test_layers_without_running_statistics_are_left_alone():
    assert statistics_layers(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))) == []


def test_mapping_batches_are_passed_by_keyword():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, values):
            return self.norm(values)

    model = Model()
    batches = [{"values": torch.tensor([[1.0, 10.0], [3.0, 30.0]]), "labels": torch.zeros(2)}]
    reestimate(model, read(batches, "calibration()"), torch.device("cpu"))
    assert model.norm.running_mean.tolist() == [2.0, 20.0]


def test_statistics_put_back_give_the_same_model():
    estimated, other = network(0.0), network(0.0)
    reestimate(estimated, read(data(), "calibration()"), torch.device("cpu"))
    kept = statistics(estimated)
    assert set(kept) == {
        f"{k}.{name}" for k in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    before = other.state_dict()["1.running_mean"].clone()
    restore(other, kept)
    assert not torch.equal(other[1].running_mean, before)
    assert all(torch.equal(value, estimated.state_dict()[name]) for name, value in other.state_dict().items())
    estimated[1].running_mean.zero_()
    assert kept["1.running_mean"].any()  # a copy
