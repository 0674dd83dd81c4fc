"""What the tests share: processes that are started and ended, free ports, tokens, waiting, and what a gateway says."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
