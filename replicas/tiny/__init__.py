"""The demo model: a tiny tri-mode language model, and everything that made it."""

from pathlib import Path

CHECKPOINT: Path = Path(__file__).resolve().parent / "checkpoint"

__all__ = ["CHECKPOINT"]
