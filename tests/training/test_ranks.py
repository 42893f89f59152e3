"""Training on several ranks that torchrun starts gives what one process gives."""

import csv
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from foldserve.training import command, shared_norms
from foldserve.training.__main__ import words
from foldserve.training.config import Recipe
from foldserve.training.errors import ConfigError, DeviceError, RankError
from foldserve.training.fit import fit
from foldserve.training.model import build
from foldserve.training.ranks import ALONE, Ranks
from foldserve.training.weights import read_weights
from tests.support import launched_train, rank_trainings

CPU = torch.device("cpu")
RANKS = 3  # divides none of the batches, and two of them go on below


def torchrun(ranks, module, *arguments, **environment):
    """Return what `torchrun` with so many ranks on this machine ended with."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def of_one_process():
    torch.set_num_threads(1)
    return rank_trainings.trained()


def furthest(one, other):
    """Return the largest difference of a tensor, relative to its largest value, and its name."""
    return max(
        (float((other[name] - value).abs().max() / value.abs().max()), name)
        for name, value in one.items()
        if value.is_floating_point()
    )


def test_several_ranks_train_as_one_process_does(of_one_process, tmp_path):
    """Float64 weights, both sets of statistics, logits and figures lie within 1e-9 after two epochs.

    Muon is judged by the logits: it moves the biases in front of norms by Adam, whose steps have one size for gradients
    of any size, and those are what rounding leaves, since a norm takes its bias away.
    """
    out = tmp_path / "results.pt"
    done = torchrun(RANKS, "tests.support.rank_trainings", out)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    assert found["world_size"] == RANKS
    for name, expected in of_one_process.items():
        got = found["results"][name]
        for own, others in zip(expected["epochs"], got["epochs"], strict=True):
            assert own == pytest.approx(others, rel=1e-9), name
        assert furthest({"logits": expected["logits"]}, got)[0] < 1e-9, name
        for kind in ("running", "population") if "muon" not in name else ():
            worst, where = furthest(expected[kind], got[kind])
            assert worst < 1e-9, (name, kind, where)


def test_a_lost_rank_ends_the_run_which_goes_on_with_fewer(tmp_path):
    """Rank 2 of 3 is killed in the second epoch: exit 1, nothing published; 2 ranks resume, publish, and end as one."""
    run, flags = tmp_path / "run", ["--epochs", "2", "--batch-size", "32", "--lr", "0.1", "--seed", "5"]
    places = ["--models-dir", tmp_path / "models", "--name", "small", "--out", run]
    lost = torchrun(3, "tests.support.launched_train", *flags, *places, DIES="2")
    assert lost.returncode == 1, lost.stderr
    assert "go on with --resume" in lost.stderr
    assert "terminate called" not in lost.stderr
    assert not (tmp_path / "models").exists()
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    resumed = torchrun(2, "tests.support.launched_train", "train", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert "device cpu, 2 ranks" in resumed.stdout
    assert resumed.stdout.count("epoch 2/2") == 1, "only the first rank prints"
    assert (tmp_path / "models/small/1/model.onnx").is_file()
    with (run / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=0.1, seed=5)
    alone = build(recipe)
    fit(alone, launched_train.DATA, recipe, CPU)
    found = read_weights(run / "model.safetensors")
    assert found.recipe == recipe
    assert furthest(alone.state_dict(), found.network("running").state_dict())[0] < 1e-3


def test_every_row_of_a_batch_is_one_ranks():
    """Shares follow one another without gap or overlap, for fewer rows than ranks too."""
    for rows in (0, 1, 2, 3, 96, 257):
        for size in (1, 2, 3, 7):
            parts = [list(range(rows))[Ranks(rank, size).share(rows)] for rank in range(size)]
            assert [row for part in parts for row in part] == list(range(rows))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("recipe", "compiles", "reason"),
    [
        (Recipe(), True, "--compile on 3 ranks"),
        (Recipe(batch_size=2), False, "--batch-size 2 on 3 ranks: some would have no row"),
    ],
)
def test_what_ranks_cannot_do_is_refused(made_up, recipe, compiles, reason):
    """Before anything is trained, with the way out."""
    with pytest.raises(ConfigError, match=reason):
        fit(build(recipe), made_up, recipe, CPU, compiles=compiles, ranks=Ranks(0, 3))


def test_statistics_of_each_ranks_own_rows_are_refused(made_up):
    """DistributedDataParallel would train another network without a word."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(build(Recipe()))
        with pytest.raises(ConfigError, match="give `fit` the network itself"):
            fit(wrapped, made_up, Recipe(), CPU)
    finally:
        dist.destroy_process_group()


def test_torchrun_starts_train_alone(monkeypatch, capsys):
    """`train` may be left out; every other command would do its work once for each rank, in the same files."""
    assert words(["--epochs", "2"]) == ["--epochs", "2"]
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert words(["--epochs", "2"]) == ["train", "--epochs", "2"]
    assert words(["train", "--epochs", "2"]) == ["train", "--epochs", "2"]
    assert words([]) == ["train"]
    assert command.main(["best"]) == 2
    assert "torchrun starts train alone" in capsys.readouterr().err


def test_each_rank_takes_a_gpu_of_its_own(monkeypatch):
    """Its number on its machine is the GPU's; more ranks than GPUs are refused; a CPU is shared."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    cuda = torch.device("cuda")
    assert Ranks(3, 4, 1).device(cuda) == torch.device("cuda", 1)
    assert chosen == [1]
    assert ALONE.device(cuda) == cuda
    assert Ranks(2, 3, 2).device(CPU) == CPU
    with pytest.raises(DeviceError, match="this machine has 2 GPUs"):
        Ranks(2, 3, 2).device(cuda)


def test_a_collective_that_fails_is_a_lost_rank(monkeypatch):
    """Gloo raises RuntimeError where the other end has gone (gloo/transport/tcp/pair.cc, by its message)."""

    def closed(*_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1\nmore")

    monkeypatch.setattr(dist, "all_reduce", closed)
    with pytest.raises(RankError, match=r"another rank ended or does not answer .*Connection closed by peer"):
        Ranks(0, 2).summed(torch.ones(2))


def test_a_gpu_takes_pytorchs_shared_norm(monkeypatch):
    """nn.SyncBatchNorm, which takes no CPU tensor, gets the layer's own tensors, counter of batches included.

    What is faked is the forward pass alone: torch 2.13.0, torch/nn/modules/batchnorm.py, SyncBatchNorm.forward, which
    steps the counter in place and raises ValueError for a tensor that is not on a GPU.
    """
    norm, seen = nn.BatchNorm2d(3), []

    class OnGpu:
        is_cuda = True

    def forward(self, x):
        seen.append((self, x))
        self.num_batches_tracked.add_(1)
        return x

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    x = OnGpu()
    with shared_norms.shared_norms(norm.train(), Ranks(0, 2)):
        assert norm(x) is x
    layer, _ = seen[0]
    assert layer.weight is norm.weight
    assert layer.running_var is norm.running_var
    assert int(norm.num_batches_tracked) == 1
    assert "forward" not in vars(norm)
