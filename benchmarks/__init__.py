"""What is measured: serving, folding, endurance and training, each in a room of its own, run with `python -m`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
