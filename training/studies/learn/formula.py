"""The lessons `formula` and `softmax`: what the book and its commentaries print, computed anew."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...batchnorm import batch_norm_book
from ...model import mlp
from .lesson import Figures, Finding, Lesson, Reading, Setting

EPS = 1e-5
SMALL = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
SMALL_PRINTED = [-1.2247, 0.0, 1.2247]
LONG_PRINTED = [[-1.2865, -0.9649, -0.6433], [0.6433, 0.9649, 1.2865]]
ROUNDED = 5.1e-5  # a number printed with four decimals
HIDDEN_ROWS = 32


def measure_formula(_setting: Setting) -> dict[str, Any]:
    """Return tables and rules of the text as PyTorch's layers and the book's function give them."""
    torch.manual_seed(0)
    x = torch.randn(HIDDEN_ROWS, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 5.0
    return {
        "small": nn.BatchNorm1d(3)(torch.tensor(SMALL)).tolist(),
        "long": nn.BatchNorm1d(2)(torch.arange(12.0).view(2, 2, 3)).tolist(),
        "by_hand": _difference_by_hand(x),
        "undone": _difference_undone(x),
        "one_row": _book(x[:1], 1.0, 0.25).tolist(),
        "moving_mean": _moving_means(x),
        "hidden": _hidden_moments(),
        "arguments": _arguments(x),
    }


def read_formula(figures: Figures) -> Reading:
    """Return the printed numbers beside the text's, and what each argument of `nn.BatchNorm1d` does."""
    small = max(abs(value - SMALL_PRINTED[row]) for row, line in enumerate(figures["small"]) for value in line)
    long = max(
        abs(value - printed)
        for rows, printed_row in zip(figures["long"], LONG_PRINTED, strict=True)
        for line in rows
        for value, printed in zip(line, printed_row, strict=True)
    )
    by_book, by_torch = figures["moving_mean"]["book"], figures["moving_mean"]["torch"]
    expected = figures["moving_mean"]["batch"] * (1 - 0.9**3)
    mean, variance = figures["hidden"]["mean"], figures["hidden"]["variance"]
    findings = [
        Finding("3 x 3 table", _shown(figures["small"][0]), "-1.2247 in each column", small < ROUNDED),
        Finding("2 x 2 x 3 table, first row", _shown(figures["long"][0][0]), _shown(LONG_PRINTED[0]), long < ROUNDED),
        Finding("book's function against PyTorch's layer, largest difference", f"{figures['by_hand']:.1e}",
                "0 but for rounding", figures["by_hand"] < 1e-5),
        Finding("gamma = sqrt(variance + eps), beta = mean: largest distance from the input",
                f"{figures['undone']:.1e}", "the normalization is undone", figures["undone"] < 1e-5),
        Finding("one row, gamma 1, beta 0.25", _shown(figures["one_row"][0]), "0, so that beta is left",
                all(value == 0.25 for value in figures["one_row"][0])),
        Finding("moving mean after 3 equal batches: book's momentum 0.9, PyTorch's 0.1",
                f"{by_book:.6f}, {by_torch:.6f}", f"(1 - 0.9^3) of the batch's mean, {expected:.6f}",
                max(abs(by_book - expected), abs(by_torch - expected)) < 1e-5),
        Finding("10-20-10 on 32 random rows: hidden means, largest; variances, least",
                f"{mean:.1e}; {variance:.4f}", "0; v/(v + eps), just under 1",
                mean < 1e-6 and 0.999 < variance < 1.0),
    ]  # fmt: skip
    return Reading(findings, ("BatchNorm1d(4, ...)", "learned", "kept", "evaluates with"), figures["arguments"])


def _difference_by_hand(x: torch.Tensor) -> float:
    return float((_book(x, 1.0, 0.0) - nn.BatchNorm1d(4)(x)).detach().abs().max())


def _difference_undone(x: torch.Tensor) -> float:
    variance, mean = torch.var_mean(x, 0, correction=0)
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_((variance + EPS).sqrt())
        norm.bias.copy_(mean)
    return float((norm(x) - x).detach().abs().max())


def _book(x: torch.Tensor, gamma: float, beta: float) -> torch.Tensor:
    ones = torch.ones(1, 4)
    return batch_norm_book(x, gamma * ones, beta * ones, 0 * ones, ones, EPS, 0.9)[0].detach()


def _moving_means(x: torch.Tensor) -> dict[str, float]:
    """Return the first feature's moving mean after three times the same batch, both ways, and the batch's own."""
    norm, mean, variance = nn.BatchNorm1d(4), torch.zeros(1, 4), torch.ones(1, 4)
    for _ in range(3):
        norm(x)
        _, mean, variance = batch_norm_book(x, torch.ones(1, 4), torch.zeros(1, 4), mean, variance, EPS, 0.9)
    assert norm.running_mean is not None
    return {"book": mean[0, 0].item(), "torch": norm.running_mean[0].item(), "batch": x[:, 0].mean().item()}


def _hidden_moments() -> dict[str, float]:
    """Return of the 10-20-10 network's normalised features the largest |mean| and the least variance."""
    network = mlp((10, 20, 10), xavier=False)
    hidden = network[:3](torch.randn(HIDDEN_ROWS, 10)).detach()  # flatten, linear, norm
    return {"mean": hidden.mean(0).abs().max().item(), "variance": hidden.var(0, correction=0).min().item()}


def _arguments(x: torch.Tensor) -> list[list[object]]:
    """Return for each choice of arguments: learned values, kept statistics, and which of them evaluation takes."""
    rows: list[list[object]] = []
    for chosen in ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 1.0}):
        norm = nn.BatchNorm1d(4, **chosen)
        norm(x)
        by_batch = torch.equal(norm.eval()(x[:8]), F.batch_norm(x[:8], None, None, training=True))
        kept = sum(buffer.numel() for name, buffer in norm.named_buffers() if name.startswith("running"))
        name = ", ".join(f"{key}={value}" for key, value in chosen.items()) or "the defaults"
        learned = sum(parameter.numel() for parameter in norm.parameters())
        rows.append([name, learned, kept, "the batch itself" if by_batch else "what was kept"])
    return rows


def measure_softmax(_setting: Setting) -> dict[str, Any]:
    """Return the commentary's softmax and cross-entropy, and the gradient of the latter."""
    logits, label = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True), torch.tensor([0])
    loss = F.cross_entropy(logits, label)
    (gradient,) = torch.autograd.grad(loss, logits)
    return {
        "softmax": F.softmax(torch.tensor([0.0, 1.0, 1.0]), 0).tolist(),
        "cross_entropy": loss.item(),
        "negative_log_likelihood": F.nll_loss(F.log_softmax(logits, 1), label).item(),
        "by_hand": math.log(math.e + math.e**2 + math.e**3) - 1.0,
        "gradient": gradient[0].tolist(),
        "probabilities": F.softmax(logits.detach(), 1)[0].tolist(),
    }


def read_softmax(figures: Figures) -> Reading:
    """Return the printed numbers beside the commentary's, and the gradient beside softmax minus the right class."""
    loss, other = figures["cross_entropy"], figures["negative_log_likelihood"]
    softmax = figures["softmax"]
    expected = [value - (at == 0) for at, value in enumerate(figures["probabilities"])]
    away = max(abs(one - two) for one, two in zip(figures["gradient"], expected, strict=True))
    printed = zip(softmax, (0.1554, 0.4223, 0.4223), strict=True)
    return Reading(
        [
            Finding("softmax of [0, 1, 1]", _shown(softmax), "0.1554 0.4223 0.4223",
                    all(abs(value - said) < ROUNDED for value, said in printed)),
            Finding("cross-entropy of [1, 2, 3], class 0", f"{loss:.4f}", "2.4076", abs(loss - 2.4076) < ROUNDED),
            Finding("negative log-likelihood of its log-softmax", f"{other:.4f}", "the same number", other == loss),
            Finding("log(e + e^2 + e^3) - 1", f"{figures['by_hand']:.4f}", "the same number",
                    abs(figures["by_hand"] - loss) < 1e-6),
            Finding("gradient", _shown(figures["gradient"]), "softmax minus 1 at the right class", away < 1e-6),
        ]
    )  # fmt: skip


def _shown(values: Any) -> str:
    return " ".join(f"{value:.4f}" for value in values)


FORMULA = Lesson(
    "formula",
    "y = gamma (x - mean) / sqrt(variance + eps) + beta, and what gamma, beta, momentum and one row make of it",
    measure_formula,
    read_formula,
)
SOFTMAX = Lesson(
    "softmax", "cross-entropy is the negative log-likelihood of a log-softmax", measure_softmax, read_softmax
)
