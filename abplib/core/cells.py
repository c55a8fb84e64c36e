"""The code cells of a chapter: as they are written, what their metadata tell, the one that runs."""

from __future__ import annotations

import ast
import html
import inspect
import re
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import jupytext
from IPython import get_ipython

from abplib.core import paths
from abplib.core.errors import AbpError


def code_cells(name: str) -> list[str]:
    """The code cells of the chapter called `name`, in order; prose and tags are no part of them.

    Raises:
        AbpError: the chapter has no source.
    """
    return [source for source, _ in told_cells(name)]


def source_of(name: str) -> Path:
    """The MyST source of the chapter called `name`; AbpError where it is missing."""
    path = paths.root() / "book" / "chapters" / f"{name}.md"
    if not path.is_file():
        raise AbpError(f"Chapter {name} has no source: {path} is missing.")
    return path


def told_cells(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Source and metadata of the code cells of a chapter; AbpError where it has no source."""
    notebook = jupytext.reads(source_of(name).read_text(encoding="utf-8"), fmt="md:myst")
    return [(c.source, c.metadata) for c in notebook.cells if c.cell_type == "code"]


def about(metadata: Mapping[str, Any], kind: str) -> Mapping[str, str] | None:
    """Name and caption of a "figure" or "table" in the metadata of the cell that shows it."""
    place = metadata.get("mystnb", {}) if kind == "figure" else metadata
    told: Mapping[str, str] | None = place.get(kind)
    return told


def table_caption(text: str) -> str:
    """The caption of a table as HTML; `code` and *emphasis* as in markdown."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text.strip()))
    marked = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked)
    return f'<p class="abp-caption">{marked}</p>'


def running() -> str:
    """The source of the cell that is running."""
    shell = get_ipython()
    return "" if shell is None else str(shell.history_manager.input_hist_raw[-1])


def called(package: str) -> Callable[..., object] | None:
    """The function of `package` that the running cell calls, if it calls one."""
    shell = get_ipython()
    known = {} if shell is None else shell.user_ns
    for node in ast.walk(ast.parse(running() if known else "")):
        if isinstance(node, ast.Call):
            root, *rest = ast.unparse(node.func).split(".")
            thing = reduce(lambda held, name: getattr(held, name, None), rest, known.get(root))
            if inspect.isfunction(thing) and thing.__module__.startswith(f"{package}."):
                return thing
    return None
