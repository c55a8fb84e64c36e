"""What this machine has: GPU, memory, disk, the hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from abplib.core import hub
from abplib.core.errors import AbpError
from abplib.judging.gemini import KEYS
from abplib.judging.transport import first_set


@dataclass(frozen=True)
class Machine:
    """Its means, sizes in bytes."""

    gpu: str | None
    """Name of the largest CUDA GPU; None where there is none."""
    gpu_memory: int
    """Of that GPU."""
    memory: int
    cpu_cores: int
    free_disk: int
    """Where the hub's cache lies."""

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        largest = max(gpus, key=lambda gpu: gpu.total_memory, default=None)
        place = Path(HF_HUB_CACHE)
        while not place.exists():
            place = place.parent
        return cls(
            largest.name if largest else None,
            largest.total_memory if largest else 0,
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            os.cpu_count() or 1,
            shutil.disk_usage(place).free,
        )

    def __str__(self) -> str:
        gpu = f"{self.gpu} of {self.gpu_memory / 1e9:.0f} GB" if self.gpu else "no GPU"
        return (
            f"{gpu}, {self.cpu_cores} CPU cores, {self.memory / 1e9:.0f} GB of memory, "
            f"{self.free_disk / 1e9:.0f} GB of disk free"
        )


def downloads(hub_ids: Collection[str], kind: hub.Kind = "model") -> dict[str, str]:
    """Why things of the hub cannot be had here; those that are here or can be are left out.

    Nothing is downloaded.
    """
    found = {}
    for hub_id in hub_ids:
        if kind == "dataset" or hub.cached(hub_id) is None:
            try:
                hub.check_access(hub_id, kind)
            except AbpError as error:
                found[hub_id] = str(error)
    return found


def services(names: Collection[str]) -> dict[str, str]:
    """Why services cannot be asked from here; those that can be are left out."""
    if importlib.util.find_spec("google.genai") is None:
        lack = 'google-genai is not installed: run `pip install "abplib[judges]"`.'
    elif not first_set(*KEYS):
        lack = f"there is no key for it in the environment: set {KEYS[0]}."
    else:
        return {}
    return {name: f"{name} cannot be asked, {lack}" for name in names}
