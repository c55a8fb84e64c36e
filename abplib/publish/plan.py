"""The plan of a profile: its stages on this machine, what they need and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abplib.core import hub, paths
from abplib.publish.plan_machine import Machine, downloads, services
from abplib.publish.plan_models import Model, facts, model_of
from abplib.publish.plan_stages import Stage, gpu_hours

UTILISATION = 0.4
"""Assumed part of a GPU's peak that passes reach."""

_CPU_CORE = 2e10
"""Assumed floating-point operations a second of a CPU core."""
_LONGEST_ON_CPU = 7 * 24 * 3600.0
"""Seconds; a stage that would take longer without a GPU needs one."""
_UNKNOWN = "unknown"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Stages on a machine."""

    stages: Sequence[Stage]
    machine: Machine
    barred: Mapping[str, str]
    """Why models and services cannot be had: `machine.downloads` and `machine.services`."""

    @classmethod
    def of(cls, stages: Sequence[Stage], machine: Machine) -> Plan:
        """Ask the cache and the hub about every model."""
        hub_ids = {s for stage in stages for s in stage.sources if not Path(s).is_dir()}
        data = {stage.data for stage in stages if stage.data}
        paid = {stage.service for stage in stages if stage.service}
        barred = downloads(sorted(hub_ids)) | downloads(sorted(data), "dataset")
        return cls(stages, machine, barred | services(sorted(paid)))

    @property
    def sources(self) -> list[str]:
        """Every model once, in the order of the stages."""
        return list(dict.fromkeys(source for stage in self.stages for source in stage.sources))

    def stage_rows(self) -> Iterator[Row]:
        """STAGE_HEADER's columns for each stage."""
        for stage in self.stages:
            known = [model for model in stage.models if model is not None]
            whole = len(known) == len(stage.models) > 0
            reported = facts()["paper"].get(stage.reported or "")
            unknown = _UNKNOWN if stage.sources else ""
            yield (
                stage.name,
                stage.does,
                f"{sum(m.bytes for m in known) / 1e9:.3g}" if whole else unknown,
                f"{_largest(known) / 1e9:.3g}" if whole else unknown,
                _hours(stage) if stage.sources else "",
                f"{reported['hours']} h, {reported['gigabytes']} GB ({reported['per']})"
                if reported
                else "",
            )

    def model_rows(self) -> Iterator[Row]:
        """MODEL_HEADER's columns for each model."""
        for source in self.sources:
            model = model_of(source)
            local = Path(source).is_dir()
            here = "yes" if local or hub.cached(source) else "no"
            size = f"{model.bytes / 1e9:.3g}" if model else _UNKNOWN
            yield (
                _shown(source),
                model.licence if model else _UNKNOWN,
                model.gated if model else _UNKNOWN,
                f"{model.parameters / 1e9:.3g}" if model else _UNKNOWN,
                "0" if here == "yes" else size,
                here,
                "" if local or model is None else facts()["models"][source]["source"],
            )
        yield from self._other_rows()

    def _other_rows(self) -> Iterator[Row]:
        """The same of data sets and of services."""
        for stage in self.stages:
            if stage.data is not None:
                about = facts()["data"][stage.data]
                n_shards = math.ceil(stage.n_rows / about["rows"] * about["shards"])
                part = about["bytes"] / 1e9 * n_shards / about["shards"]
                size = f"{part:.0f} ({n_shards} of {about['shards']} shards)"
                licence, gated, source = (about[key] for key in ("licence", "gated", "source"))
                yield stage.data, licence, gated, "", size, "no", source
        for name in dict.fromkeys(stage.service for stage in self.stages if stage.service):
            about = facts()["services"][name]
            yield name, about["licence"], "key", "", "", "", about["source"]

    def missing(self) -> list[str]:
        """One sentence for each thing that keeps a stage from running here."""
        found = [lack for stage in self.stages for lack in stage.lacks]
        found += self.barred.values()
        found += self._disk()
        for stage in self.stages:
            found += self._compute(stage)
        return list(dict.fromkeys(found))

    def _disk(self) -> Iterator[str]:
        absent = [s for s in self.sources if not Path(s).is_dir() and not hub.cached(s)]
        models = [model_of(source) for source in absent]
        size = sum(model.bytes for model in models if model is not None)
        size += sum(_kept(stage) for stage in self.stages)
        if size > self.machine.free_disk:
            yield (
                f"Models and images to download take {size / 1e9:.0f} GB and "
                f"{self.machine.free_disk / 1e9:.0f} GB of disk are free: point HF_HOME at a "
                "larger disk, and fetch data to one (--out)."
            )

    def _compute(self, stage: Stage) -> Iterator[str]:
        models = [model for model in stage.models if model is not None]
        if self.machine.gpu is None:
            rate = _CPU_CORE * self.machine.cpu_cores
            if stage.flops is not None and stage.flops / rate > _LONGEST_ON_CPU:
                yield (
                    f"Stage {stage.name} would take about {stage.flops / rate / 86400:,.0f} days "
                    f"on {self.machine.cpu_cores} CPU cores: use a GPU of "
                    f"{_largest(models) / 1e9:.0f} GB or more."
                )
            return
        if _largest(models) > self.machine.gpu_memory:
            yield (
                f"Stage {stage.name} keeps {_largest(models) / 1e9:.0f} GB of weights on the GPU "
                f"and {self.machine.gpu} has {self.machine.gpu_memory / 1e9:.0f} GB: use a larger "
                "one."
            )
        elif sum(m.bytes for m in models) > self.machine.gpu_memory + self.machine.memory:
            yield (
                f"Stage {stage.name} has {sum(m.bytes for m in models) / 1e9:.0f} GB of weights, "
                "more than GPU and memory hold together: use a larger machine."
            )


STAGE_HEADER = ("stage", "what it does", "GPU GB", "offloaded", "GPU hours", "paper (B.3)")
MODEL_HEADER = ("model", "licence", "gated", "10^9 par.", "download GB", "here", "source")


def footnote() -> str:
    """How the tables were made."""
    gpu = facts()["paper"]["gpu"]["name"]
    return (
        "GPU GB: weights alone, in bf16 (a folder's as they are), all together or the largest part "
        "with the rest offloaded; activations come on top. Parameters: counted on the meta device. "
        f"GPU hours: estimated for one {gpu} at {UTILISATION:.0%} of its peak, a generated token "
        "counting as ten read ones; the paper does not say at which image size it took its own."
    )


def _kept(stage: Stage) -> int:
    """Bytes of a data set that stay on the disk: sources, half of the images of its rows."""
    if stage.data is None:
        return 0
    about = facts()["data"][stage.data]
    return round(about["bytes"] * stage.n_rows / about["rows"] / 2)


def _shown(source: str) -> str:
    """A folder of the checkout by its path in it, another by its name."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    inside = folder.is_relative_to(paths.root())
    return folder.relative_to(paths.root()).as_posix() if inside else folder.name


def _hours(stage: Stage) -> str:
    if stage.flops is None:
        return _UNKNOWN
    hours = gpu_hours(stage.flops, UTILISATION)
    return "< 0.1" if hours < 0.1 else f"{hours:.1f}"


def _largest(models: Sequence[Model]) -> int:
    return max((model.largest for model in models), default=0)
