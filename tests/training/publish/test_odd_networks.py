"""Networks of kinds that nobody tunes for, published from examples and asked over HTTP beside their originals."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from foldserve.training.errors import VerifyError
from tests.support.live import serve

GENERATOR = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


class Attention(nn.Module):
    """Tokens, attention, and a norm over the features of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(50, 8), nn.BatchNorm1d(8)
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.tokens(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.norm, self.head = nn.GRU(6, 5, batch_first=True), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cells(x)[0][:, -1]))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Pair(nn.Module):
    """Two inputs through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 4, 9, stride=4), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(2))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(self.body(left).flatten(1), self.body(right).flatten(1))


class Bag(nn.Module):
    """Numbers of rows of a table, beside floats."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.norm, self.head = nn.EmbeddingBag(20, 4), nn.BatchNorm1d(6), nn.Linear(6, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.bag(ids), dense], 1)))[:, 0]


class Found(NamedTuple):
    embedding: Tensor
    score: Tensor


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9))

    def forward(self, x: Tensor) -> Found:
        found = self.body(x)
        return Found(F.normalize(found), found.sum(1, keepdim=True))


ODD: dict[str, tuple[type[nn.Module], dict[str, np.ndarray], str, str]] = {
    "attention": (Attention, {"tokens": GENERATOR.integers(0, 50, (3, 4))}, "classify", "probabilities"),
    "recurrent": (Recurrent, {"x": floats(3, 3, 6)}, "classify", "probabilities"),
    "volume": (Volume, {"x": floats(3, 1, 4, 4, 4)}, "classify", "probabilities"),
    "pair": (Pair, {"left": floats(3, 1, 32), "right": floats(3, 1, 32)}, "regress", "values"),
    "bag": (Bag, {"ids": GENERATOR.integers(0, 20, (3, 3)), "dense": floats(3, 2)}, "regress", "values"),
    "embedder": (Embedder, {"x": floats(4, 5)}, "embed", "embedding"),
}


def made(kind: type[nn.Module]) -> nn.Module:
    """Return the network with norms that do something."""
    torch.manual_seed(0)
    network = kind().eval()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service of all of them."""
    models = tmp_path_factory.mktemp("odd")
    for name, (kind, rows, task, _) in ODD.items():
        published = publish(made(kind), name=name, task=task, examples=rows, models_dir=models)
        assert published.report is None or not published.report.refused or name == "attention", str(published)
    with serve(create_app(Settings(models_dir=models, provider="cpu", buckets=(1, 4), canary_seconds=0))) as address:
        yield address


@pytest.mark.parametrize("name", ODD)
def test_an_odd_network_answers_as_its_original(name: str, url: str) -> None:
    """Tokens, sequences, volumes, two inputs, integers beside floats, a named tuple: the same numbers over HTTP."""
    kind, rows, task, key = ODD[name]
    instances = [{key: values[number].tolist() for key, values in rows.items()} for number in range(2)]
    answer = httpx.post(f"{url}/predict?model={name}", json={"instances": instances}, timeout=60).json()
    with torch.no_grad():
        expected = made(kind)(*(torch.from_numpy(values[:2]) for values in rows.values()))
    expected = expected.embedding if isinstance(expected, Found) else expected
    expected = torch.softmax(expected, 1) if task == "classify" else expected
    got = np.array([np.atleast_1d(row[key]) for row in answer["predictions"]])
    assert np.abs(got - expected.numpy().reshape(got.shape)).max() < 2e-5


class Narrow(torch.autograd.Function):
    """An operation that knows float32 alone, as a kernel of somebody's own does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32:
            raise RuntimeError("expected scalar type Float")
        return x * 2


class OwnKernel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Narrow.apply(x)


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(5, 2)).eval(), {nn.Linear})


@pytest.mark.parametrize("make", [quantised, OwnKernel])
@pytest.mark.filterwarnings("ignore")
def test_what_knows_no_float64_is_refused_in_a_line(make: Any, tmp_path: Path) -> None:
    """Quantised weights and kernels of one's own cannot be compared with a float64 run."""
    with pytest.raises(VerifyError, match=r"does not run in float64.*publish NETWORK\.onnx"):
        publish(make().eval(), name="odd", examples=floats(4, 5), models_dir=tmp_path)
    assert not list(tmp_path.iterdir())


class Tied(nn.Module):
    """Two classes that always score the same, as a head that starts at zero gives them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.sum(1), x.sum(1), x.sum(1) - 1], 1)


class WholeSums(nn.Module):
    """Whole numbers of sums that float32 cannot hold, with or without the sums."""

    def __init__(self, gives_sums: bool) -> None:
        super().__init__()
        self.gives_sums = gives_sums

    def forward(self, x: Tensor) -> Any:
        sums = x.sum(1) * 1e9
        return {"sums": sums, "whole": sums.long()} if self.gives_sums else sums.long()


def test_what_rounding_decides_is_served_and_not_held_to(tmp_path: Path) -> None:
    """A version whose classes all tie starts, answers, and shows its samples; so does one with whole numbers."""
    rows = {"tied": floats(6, 5), "half": GENERATOR.random((6, 40)).astype(np.float32)}
    publish(Tied().eval(), name="tied", labels=["a", "b", "c"], examples=rows["tied"], models_dir=tmp_path)
    publish(WholeSums(True).eval(), name="half", examples=rows["half"], models_dir=tmp_path)
    with serve(create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 8)))) as url:
        for name, given in rows.items():
            answer = httpx.post(f"{url}/predict?model={name}", json={"instances": given.tolist()})
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["predictions"]) == len(given)
            samples = httpx.get(f"{url}/v2/models/{name}/versions/1/samples")
            assert samples.status_code == 200
            assert samples.json()["samples"]
        tied = httpx.post(f"{url}/predict?model=tied", json={"instances": rows["tied"].tolist()}).json()["predictions"]
        assert {prediction["class_id"] for prediction in tied} <= {0, 1}


def test_what_rounding_decides_alone_is_refused(tmp_path: Path) -> None:
    """Nothing would be proved of it; the sentence says what to return as well."""
    given = GENERATOR.random((6, 40)).astype(np.float32)
    with pytest.raises(VerifyError, match="let it return the scores too"):
        publish(WholeSums(False).eval(), name="half", examples=given, models_dir=tmp_path)
