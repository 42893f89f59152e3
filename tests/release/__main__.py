"""Build the distributions, check them, and install the wheel into a fresh environment of each Python at hand.

`make release-check` calls it by the Python of an environment that has the checking tools. `dist/` holds the wheel, the
source distribution and the bill of materials of the image when it has passed.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
TOOLS = Path(sys.executable).parent
PYTHONS = ("3.11", "3.12", "3.13")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a step; the check ends where it fails."""
    print("$", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def build() -> Path:
    """Return the wheel, built from the source distribution as an index would get it."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def check_version(wheel: Path) -> None:
    """The version stands in one place, and the changelog and the citation speak of it."""
    text = (ROOT / "foldserve/__init__.py").read_text()
    version = re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)[0]
    assert wheel.name.startswith(f"foldserve-{version}-"), wheel.name
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(), f"CHANGELOG.md has no section {version}"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(), f"CITATION.cff is not of {version}"


def check_files(wheel: Path) -> None:
    """Metadata, contents and size of the distributions; workflows against their schema."""
    run(TOOLS / "twine", "check", "--strict", *sorted(DIST.iterdir()))
    run(TOOLS / "check-wheel-contents", "--ignore", "W002", wheel)  # a generated and a written file may be alike
    assert wheel.stat().st_size <= 2_000_000, f"{wheel.name}: {wheel.stat().st_size} bytes, expected 2 MB at most"
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")


def environment(python: str, requirements: list[str], folder: Path) -> Path:
    """Return the Python of a fresh environment with exactly pinned packages."""
    run(python, "-m", "venv", folder)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", *requirements)
    return folder / "bin/python"


def check_installed(wheel: Path, folder: Path) -> list[str]:
    """Return one line for each Python: the wheel serves there without torch, or the Python is not at hand."""
    lines = []
    for version in PYTHONS:
        python = shutil.which(f"python{version}")
        works = python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
        if python is None or not works:
            lines.append(f"Python {version}: not run, none at hand")
            continue
        inside = environment(python, [f"{wheel}[cpu,grpc]"], folder / version)
        run(inside, ROOT / "tests/release/smoke.py", cwd=folder)
        lines.append(f"Python {version}: serves its golden answers, without torch")
    return lines


def write_bill_of_materials(folder: Path) -> Path:
    """Return the list of all packages that the CPU image holds, as CycloneDX."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    packages = [*project["dependencies"], *extras["grpc"], *extras["cpu"]]
    inside = environment(sys.executable, packages, folder / "image")
    bill = DIST / "foldserve-cpu-image.cdx.json"
    run(TOOLS / "cyclonedx-py", "environment", "--output-reproducible", "-o", bill, inside)
    return bill


def main() -> None:
    """Run every check, and print what was run."""
    wheel = build()
    check_version(wheel)
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        lines = check_installed(wheel, Path(folder))
        bill = write_bill_of_materials(Path(folder))
    print(*lines, f"bill of materials: {bill.relative_to(ROOT)}", sep="\n")


if __name__ == "__main__":
    main()
