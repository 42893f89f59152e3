"""Where a result comes from: code revision, versions of what computed it, and the machine it ran on.

Read once per run by the pipeline and written into the manifest and the run folder. Measures nothing, and never fails:
what cannot be determined is said to be unknown.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

UNKNOWN = "unknown"
DISTRIBUTIONS = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "safetensors")


def revision(source: Path = Path(__file__)) -> str:
    """Return the commit of the repository that tracks `source`, `+dirty` with uncommitted changes, or `unknown`."""
    folder = source.resolve().parent
    # An installed copy may lie inside another repository: only a file that git tracks has a revision.
    if _git(folder, "ls-files", "--error-unmatch", source.name) is None:
        return UNKNOWN
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    if commit is None or changes is None:
        return UNKNOWN
    return f"{commit}+dirty" if changes else commit


def environment() -> dict[str, Any]:
    """Return versions and hardware as plain JSON values; no user, host or path names."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in DISTRIBUTIONS if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as Linux states it, or what Python knows of it elsewhere."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or UNKNOWN


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None when git is missing or answers with an error."""
    # Set inside git hooks, these would answer for another repository than the one `folder` lies in.
    overrides = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    variables = {name: value for name, value in os.environ.items() if name not in overrides}
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments, no shell
            ["git", "-C", str(folder), *arguments],  # noqa: S607  git is the one on the caller's own path
            capture_output=True,
            text=True,
            env=variables,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
