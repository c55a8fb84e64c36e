"""What a chapter calls: checked parameters in, figures, tables and values out.

The second cell of a chapter is

    from abplib.chapter import Chapter
    chapter = Chapter.start("02_proxies", globals())

and its last one is `chapter.finish()`. A cell that shows a figure or a table says so in its own
metadata, where its name and caption (MyST markdown) stand:

    mystnb: {figure: {name: fig4, caption: ...}}        table: {name: claims, caption: ...}

and `finish` refuses to end without one of these, unless its cell has the tag `optional`. All
outputs go to `results/chapters/<name>/<key>/`, where the key is a hash of everything that
determines them.
"""

from __future__ import annotations

import difflib
import html
import inspect
import io
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure
from myst_nb import glue

from abplib.core import alt_text, cells, code, hub, paths, store, tables
from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.profiles import ChapterParameters, Profile, parse

if TYPE_CHECKING:
    from abplib.sections.claims import ClaimCheck

VALUES, CLAIMS = "values.json", "claims.json"
_VALUE_NAME = re.compile(r"ch\d+(\.\w+)+")


def of_chapter(name: str, parameters: ChapterParameters) -> dict[str, Any]:
    """All that determines a chapter's outputs, as JSON values: its prose is no part of it.

    The files that its cells name, the parameters, what the paper reports, and `inputs` of the
    profile that the parameters resolve to.

    Raises:
        AbpError: the chapter has no source, or as `inputs` does.
    """
    pieces = cells.code_cells(name)
    return {
        "files": store.digest_files(*code.named_files(*pieces)),
        "parameters": parameters.model_dump(exclude={"profile"}),
        "reported": store.digest_files(*sorted((paths.root() / "data" / "paper").glob("*.json"))),
        **inputs(parameters.resolve(), *pieces),
    }


def inputs(profile: Profile, *pieces: str) -> dict[str, Any]:
    """What determines the outcome of pieces of Python under a profile, as JSON values.

    The profile itself, the code that it and the pieces reach, its models, and its samples.

    Raises:
        AbpError: models or samples are missing, or a piece is not plain Python.
    """
    fields, made = profile.model_dump(), Experiment(profile)
    return {
        "profile": fields,
        "code": code.digest(repr(fields), *pieces),
        "model": made.model_fingerprint,
        "data": made.data_fingerprint,
    }


def folder(name: str, parameters: ChapterParameters) -> Path:
    """Where the chapter's outputs go: `results/chapters/<name>/<hash of its inputs>/`."""
    return store.folder(f"chapters/{name}", **of_chapter(name, parameters))


def profile_note(profile: Profile) -> str:
    """HTML that says what a profile's numbers are worth; empty where it has no note."""
    if not profile.note:
        return ""
    text = f"Profile <b>{profile.name}</b>: {html.escape(profile.note)}."
    return f'<div class="abp-note" role="note">{text}</div>'


class Chapter:
    """One run of a chapter; made by `Chapter.start`."""

    def __init__(self, name: str, parameters: ChapterParameters) -> None:
        self.name = name
        self.params = parameters
        self.profile = parameters.resolve()
        self.experiment = Experiment(self.profile, parameters.seed)
        self.folder = folder(name, parameters)
        self._files: dict[str, dict[str, list[Path]]] = {"figure": {}, "table": {}}
        self._values: dict[str, dict[str, Any]] = {}
        self._claims: dict[str, dict[str, Any]] = {}
        self._began = time.monotonic()

    @classmethod
    def start(cls, name: str, namespace: Mapping[str, Any]) -> Chapter:
        """Check the parameters found in the notebook's `namespace` and resolve the profile.

        Args:
            name: the chapter's file name without its ending, for instance `02_proxies`.
            namespace: the notebook's `globals()`.

        Raises:
            AbpError: a name that is no parameter, or a value of the wrong type or out of range.
        """
        from accelerate.utils import set_seed

        given = _assigned(namespace)
        if isinstance(namespace.get("chapter"), cls):  # the cell is run again, by hand
            known = namespace["chapter"].params.model_fields_set
            given = {key: value for key, value in given.items() if key in known}
        chapter = cls(name, parse(name, given))
        # for code of the reader's own: what the library draws has seeds of its own
        set_seed(chapter.params.seed)
        if warning := profile_note(chapter.profile):
            display(HTML(warning))
        return chapter

    def figure(self, figure: Figure, *, source: str | None = None) -> None:
        """Show a figure, saved as `figures/<name>.png` (at twice its resolution) and `.svg`.

        Pages refer to it as {numref}`name`; one figure a cell, whose metadata say its name and its
        caption. A line saying what made the figure is set under it; what it shows is told in words,
        too.

        Args:
            source: where its numbers come from, if not from this run.
        """
        name, caption = self._about("figure")
        place = self.folder / "figures"
        png = _save(figure, place / f"{name}.png", dpi=2 * figure.dpi)
        svg = _save(figure, place / f"{name}.svg", dpi=2 * figure.dpi, metadata={"Date": None})
        self._files["figure"][name] = [png, svg]
        maker = cells.called("abplib.plots")
        drawn = f"made by `{maker.__module__}.{maker.__qualname__}` · " if maker else ""
        made = drawn + (source or self._provenance())
        width = round(figure.get_figwidth() * figure.dpi)
        plt.close(figure)  # or the inline backend shows it a second time
        told = alt_text.in_words(figure)
        bundle = {"text/plain": told, "image/svg+xml": svg.read_text(encoding="utf-8")}
        shown = {"name": name, "made": made, "words": told}
        about = {"image/svg+xml": {"width": f"{width}px"}, "abp_figure": shown}
        display(bundle, raw=True, metadata=about)
        below = f"<p>{html.escape(caption)}<br><small>{html.escape(made)}</small></p>"
        display(  # for the notebook alone: the book sets the caption itself
            {"text/html": below, "text/plain": caption}, raw=True, metadata={"abp_caption": name}
        )

    def table(
        self,
        frame: pd.DataFrame,
        *,
        fmt: str = ".3f",
        formatters: Mapping[str, Callable[[Any], str]] | None = None,
        source: str | None = None,
    ) -> None:
        """Show a table, saved in full precision as `tables/<name>.csv`.

        Args:
            frame: shown with its index where that has a name.
            fmt: format of the floats on the page.
            formatters: how a column's cells are written, where `fmt` does not do.
            source: where its numbers come from, if not from this run.
        """
        name, caption = self._about("table")
        if any(level is not None for level in frame.index.names):
            frame = frame.reset_index()
        path = self.folder / "tables" / f"{name}.csv"
        store.write_text(path, frame.to_csv(index=False))
        self._files["table"][name] = [path]
        body = tables.to_html(frame, name, fmt, formatters, rounded=source is None)
        made = source or self._provenance().replace("`", "")
        display(
            HTML(
                f'<div class="abp-table">{cells.table_caption(caption)}'
                f'{body}<p class="abp-made">{html.escape(made)}</p></div>'
            )
        )

    def record(self, frame: pd.DataFrame, fmt: str = ".3f") -> None:
        """Record the numbers of a frame, one a row, each as `value` does.

        Columns: name (or the index), value, and what there is of low, high, n, seeds, unit, paper
        and fmt; a missing one, or a NaN, says that a number has none.
        """
        for row in frame.reset_index().to_dict("records"):
            about = ("n", "unit", "paper", "low", "high", "fmt", "seeds")
            known = {key: row[key] for key in about if key in row and np.all(pd.notna(row[key]))}
            self.value(row["name"], row["value"], **{"fmt": fmt, **known})

    def value(
        self,
        name: str,
        value: float,
        *,
        n: int | None = None,
        unit: str | None = None,
        paper: float | None = None,
        low: float | None = None,
        high: float | None = None,
        seeds: Sequence[float] = (),
        fmt: str = ".3f",
    ) -> None:
        """Record a number, for `values.json` and for the prose.

        Prose takes it by the role glue:text, as `<name>:s`; `<name>.n`, `<name>.paper` and
        `<name>.interval` exist where they were given. From another page it is
        `<path of the chapter>::<name>:s`.

        Args:
            name: `<name>` or `ch<number>.<name>`, further dots allowed.
            n: samples behind the value.
            paper: what the paper reports.
            low: lower end of the interval.
            high: upper end of the interval.
            seeds: what each seed of the proxies gives; the standard deviation of several is
                recorded as `<name>.seed_sd`.
            fmt: format of the value, the paper's value and the interval in prose.

        Raises:
            AbpError: an ill-formed name, half an interval, or a number that is not finite.
        """
        name = self._prefix + name.removeprefix(self._prefix)
        if not _VALUE_NAME.fullmatch(name):
            raise AbpError(f"Value {name!r} is ill-named: call it ch<number>.<name>.")
        if (low is None) != (high is None):
            raise AbpError(f"Value {name} has half an interval: give both low and high.")
        numbers = {"value": value, "paper": paper, "low": low, "high": high}
        plain = {key: _plain(name, key, number) for key, number in numbers.items()}
        about = {"n": None if n is None else int(n), "unit": unit, "profile": self.profile.name}
        self._values[name] = {"value": plain.pop("value"), **about, **plain}
        text = {key: format(number, fmt) for key, number in plain.items() if number is not None}
        told = {name: format(self._values[name]["value"], fmt)}
        if n is not None:
            told[f"{name}.n"] = str(int(n))
        if paper is not None:
            told[f"{name}.paper"] = text["paper"]
        if low is not None:
            told[f"{name}.interval"] = f"[{text['low']}, {text['high']}]"
        self.say(told)
        if len(seeds) > 1:
            spread = statistics.stdev(seeds)
            self.value(f"{name}.seed_sd", spread, n=len(seeds), unit=unit, fmt=fmt)

    def say(self, texts: Mapping[str, str]) -> None:
        """Give words to the prose, by their names as `value` has them."""
        for name, text in texts.items():
            glue(self._prefix + name.removeprefix(self._prefix), text, display=False)

    def decide(self, checks: Sequence[ClaimCheck]) -> None:
        """Record what was decided: `verdict.<key>` for the prose, and all of it for the ledger."""
        self.say({f"verdict.{check.key}": check.verdict for check in checks})
        for check in checks:
            told: dict[str, Any] = {**asdict(check), "found": None}
            if check.found and math.isfinite(check.found.low):
                *numbers, seeds = check.found
                keys = ("value", "low", "high", "n")
                plain = {k: _plain(check.key, k, x) for k, x in zip(keys, numbers, strict=True)}
                told["found"] = {**plain, "seeds": [float(each) for each in seeds]}
            self._claims[check.key] = told

    def finish(self) -> None:
        """Check that all that cells tell of was shown, then write `values.json` and the manifest.

        Raises:
            AbpError: naming what is missing or empty.
        """
        missing = [
            f"{kind} {fact['name']}"
            for kind, shown in self._files.items()
            for _, metadata in cells.told_cells(self.name)
            if (fact := cells.about(metadata, kind))
            and "optional" not in metadata.get("tags", ())
            and fact["name"] not in shown
        ]
        if missing:
            raise AbpError(f"Chapter {self.name} ended without its {', '.join(missing)}.")
        store.write_json(self.folder / VALUES, self._values)
        store.write_json(self.folder / CLAIMS, self._claims)
        files = [*self._files["figure"].values(), *self._files["table"].values()]
        artefacts = [p.relative_to(self.folder).as_posix() for group in files for p in group]
        verify(self.name, self.folder, artefacts)
        store.mark_done(
            self.folder,
            chapter=self.name,
            profile=self.profile.name,
            vlm=self.profile.vlm,
            hub=hub.resolved(),
            artefacts=artefacts,
            values=sorted(self._values),
            seconds=round(time.monotonic() - self._began, 1),
        )

    @property
    def _prefix(self) -> str:
        return f"ch{int(self.name[:2])}."

    def _about(self, kind: str) -> tuple[str, str]:
        """Name and caption of the figure or table that the running cell shows.

        A cell that somebody changed is still the one that it is nearest to.
        """
        told = {
            source: cells.about(metadata, kind) for source, metadata in cells.told_cells(self.name)
        }
        known = {source: fact for source, fact in told.items() if fact}
        if near := difflib.get_close_matches(cells.running(), known, n=1, cutoff=0.3):
            return known[near[0]]["name"], known[near[0]]["caption"]
        return f"{kind}-{len(self._files[kind]) + 1}", ""

    def _provenance(self) -> str:
        """Profile, model and data behind a figure or a table, in one line of MyST."""
        title = self.profile.title + (f", {self.profile.note}" if self.profile.note else "")
        data = self.experiment.data_fingerprint[:8]
        model = hub.told(self.profile.vlm, self.profile.revision)
        return f"profile {title} · model `{model}` · data `{data}`"


def verify(name: str, place: Path, artefacts: Sequence[str]) -> None:
    """Check that a chapter's files are there and hold something.

    Raises:
        AbpError: naming the files that do not.
    """
    empty = [a for a in artefacts if not (place / a).is_file() or not (place / a).stat().st_size]
    if empty:
        raise AbpError(f"Chapter {name} left {', '.join(empty)} missing or empty in {place}.")


_NEVER_PARAMETERS = (Chapter, type(annotations))


def _assigned(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What the notebook itself assigned so far: no imports, no names of IPython's own."""
    shell = get_ipython()
    ours = set(shell.user_ns_hidden) if shell is not None else set()
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in ours
        and not (callable(value) or inspect.ismodule(value) or isinstance(value, _NEVER_PARAMETERS))
    }


def _save(figure: Figure, path: Path, **options: Any) -> Path:
    """Write a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "abplib", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=path.suffix[1:], **options)
    with store.replacing(path) as scratch:
        scratch.write_bytes(buffer.getvalue())
    return path


def _plain(name: str, key: str, number: float | None) -> float | int | None:
    """A Python number for JSON from a Python, numpy or torch one."""
    if number is None:
        return None
    plain = number.item() if hasattr(number, "item") else number
    if isinstance(plain, bool) or not isinstance(plain, (int, float)) or not math.isfinite(plain):
        raise AbpError(f"Value {name} has {key} = {plain!r}, which is no finite number.")
    return plain
