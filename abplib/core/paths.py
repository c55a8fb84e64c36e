"""Where the checkout lies and where results go."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The checkout: `ABP_ROOT`, else the folder that holds the package."""
    return Path(os.environ.get("ABP_ROOT") or Path(__file__).parent.parent.parent).resolve()


def results() -> Path:
    """Where computed files go: `ABP_RESULTS`, else `results` in the checkout."""
    return Path(os.environ.get("ABP_RESULTS") or root() / "results").resolve()
