"""What the norms of a trained network hold, channel by channel: gamma, beta, and mean and variance of both kinds.

Reads the weights that a run left; it trains and changes nothing. The command is `inspect`.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..batchnorm import BatchNormLayer, norm_tensors
from ..drawing import CYCLE, canvas, to_png
from ..errors import ConfigError
from ..run_folder import CONFIG_NAME, RunConfig
from ..weights import WEIGHTS_NAME, Weights, read_weights
from .options import require_folder
from .tables import csv_bytes, json_bytes, write_report

PARAMETERS = ("gamma", "beta")
MOMENTS = ("mean", "variance")


@dataclass(frozen=True, eq=False)
class NormValues:
    """One norm's values, each (C,) float32 or None where it has none.

    Attributes:
        layer: its name in the network.
        values: `gamma`, `beta`, and `mean` and `variance` of each kind of statistics, such as `running mean`.
    """

    layer: str
    values: Mapping[str, NDArray[np.float32]]


def add_parser(subparsers: Any) -> None:
    """Register the subcommand `inspect`."""
    parser = subparsers.add_parser("inspect", help="gamma, beta, mean and variance of every norm: table and plots")
    parser.add_argument("weights", type=Path, help=f"a run's folder, or {WEIGHTS_NAME} in one")
    parser.add_argument("--out", type=Path, default=None, help="folder for norms.csv and norms.png (the run's)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table and write norms.csv, norms.png, and norms.json with what made the weights.

    Raises:
        CheckpointError: no weights of ours are there.
        ConfigError: the network has no norms.
        ArtifactError: the disk refuses.
    """
    path = arguments.weights / WEIGHTS_NAME if arguments.weights.is_dir() else arguments.weights
    folder = arguments.out or path.parent
    require_folder(folder)
    norms = norms_of(read_weights(path))
    files = {"norms.csv": csv_bytes(channel_rows(norms)), "norms.png": picture(norms)}
    write_report(folder, files | {"norms.json": json_bytes(provenance_of(path))})
    print(f"{table(norms)}\nall channels in {folder / 'norms.csv'}, drawn in {folder / 'norms.png'}")


def provenance_of(path: Path) -> dict[str, Any]:
    """Return what made the weights at `path`: their digest and recipe, and the run's own revision and machine.

    Weights that were copied away from their run have no revision and no environment: those of now would be untrue.
    """
    config = path.parent / CONFIG_NAME
    made_by: dict[str, Any] = {"revision": None, "environment": None}
    if config.is_file():
        run = RunConfig.read(config)
        made_by = {"revision": run.revision, "environment": run.environment}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"weights_sha256": digest, "recipe": read_weights(path).recipe.as_dict(), **made_by}


def norms_of(weights: Weights) -> list[NormValues]:
    """Return the values of every norm, in the order of the network, with all statistics that the weights hold.

    Raises:
        ConfigError: there are no norms.
        CheckpointError: the tensors do not fit the recipe's network.
    """
    norms: dict[str, dict[str, NDArray[np.float32]]] = {}
    for kind in weights.statistics:
        for layer, norm in weights.network(kind).named_modules():
            if isinstance(norm, BatchNormLayer):
                values = norms.setdefault(layer, {})
                for name, tensor in norm_tensors(norm).items():
                    if tensor is not None:
                        key = f"{kind} {name}" if name in MOMENTS else name
                        values[key] = tensor.detach().cpu().numpy().astype(np.float32)
    if not norms:
        raise ConfigError("the network has no batch normalization: there is nothing to inspect")
    return [NormValues(layer, values) for layer, values in norms.items()]


def table(norms: Sequence[NormValues]) -> str:
    """Return one line for each layer and value: channels, mean, deviation, least and most over the channels."""
    head = f"{'layer':<10}{'value':<22}{'channels':>9}{'mean':>11}{'deviation':>11}{'least':>11}{'most':>11}"
    lines = [head]
    for norm in norms:
        for name, values in norm.values.items():
            figures = (values.mean(), values.std(), values.min(), values.max())
            numbers = "".join(f"{figure:>11.4f}" for figure in figures)
            lines.append(f"{norm.layer:<10}{name:<22}{values.size:>9}{numbers}")
    return "\n".join(lines)


def channel_rows(norms: Sequence[NormValues]) -> list[dict[str, object]]:
    """Return one row for each channel of each layer, its values by name."""
    return [
        {"layer": norm.layer, "channel": channel}
        | {name.replace(" ", "_"): float(values[channel]) for name, values in norm.values.items()}
        for norm in norms
        for channel in range(len(next(iter(norm.values.values()))))
    ]


def picture(norms: Sequence[NormValues]) -> bytes:
    """Return a PNG: a row for each layer; gamma, beta, means and variances over the channels in the order of gamma."""
    figure, axes = canvas(4, len(norms), width=3.4, height=2.1)
    for row, norm in enumerate(norms):
        cells = axes[4 * row : 4 * row + 4]
        order = np.argsort(norm.values["gamma"]) if "gamma" in norm.values else slice(None)
        for cell, what in zip(cells, (*PARAMETERS, *MOMENTS), strict=True):
            drawn = {name: values[order] for name, values in norm.values.items() if name.split()[-1] == what}
            for (name, values), colour in zip(drawn.items(), CYCLE, strict=False):
                cell.plot(values, ".", color=colour, markersize=4, label=name.split()[0])
            cell.set(yscale="log" if what == "variance" else "linear")
            if row == 0:
                cell.set_title(what)
        cells[0].set_ylabel(norm.layer)
    _label(figure, norms)
    return to_png(figure)


def _label(figure: Figure, norms: Sequence[NormValues]) -> None:
    figure.axes[2].legend(fontsize=7)
    for cell in figure.axes[4 * (len(norms) - 1) :]:
        cell.set_xlabel("channel, in the order of gamma", fontsize=8)
