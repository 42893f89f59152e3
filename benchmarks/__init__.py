"""What is measured: serving, folding, endurance and training, each in a room of its own, run with `python -m`."""

import os
from pathlib import Path

# Before onnxruntime comes, here and in every server that is measured: it would send events to its maker meanwhile.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[1]
