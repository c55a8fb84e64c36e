"""From a chapter's MyST source to its notebook, and from the notebook to an executed one.

`book/chapters/*.md` is what people write. `book/notebooks/*.ipynb` is generated from it, without
outputs, so that plain `papermill` can run a chapter from a clean checkout.
"""

from __future__ import annotations

import ast
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillException, PapermillExecutionError
from traitlets.config import Config

from abplib import chapter as chapters
from abplib.core import cells, paths, store
from abplib.core.errors import AbpError
from abplib.profiles import model_of, parse

_KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
EXECUTED = "executed.ipynb"
"""Name of the notebook that a run leaves in its results folder."""

_START_TIMEOUT = 300  # seconds; a kernel on a busy machine exceeds the usual 60


def convert(source: Path) -> NotebookNode:
    """The notebook of one chapter: no outputs, and cell ids that follow from the cells' text.

    Raises:
        AbpError: the `parameters` cell is missing or disagrees with `abplib.profiles`.
    """
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="md:myst")
    notebook.metadata = nbformat.from_dict(_KERNEL)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        text = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[text] = seen.get(text, 0) + 1
        cell.id = text if seen[text] == 1 else f"{text}-{seen[text]}"
    _check_parameters(source.stem, notebook)
    return notebook


def stale() -> dict[Path, str | None]:
    """Notebooks that differ from their sources: path -> wanted content, None for a surplus file."""
    place = paths.root() / "book" / "notebooks"
    wanted: dict[Path, str | None] = {
        place / f"{source.stem}.ipynb": nbformat.writes(convert(source)) + "\n"
        for source in sorted((paths.root() / "book" / "chapters").glob("*.md"))
    }
    surplus = dict.fromkeys(path for path in place.glob("*.ipynb") if path not in wanted)
    return {
        path: text
        for path, text in (wanted | surplus).items()
        if text is None or not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def regenerate() -> list[Path]:
    """Bring `book/notebooks` up to date; returns the files that changed."""
    changed = stale()
    for path, text in changed.items():
        if text is None:
            path.unlink()
        else:
            store.write_text(path, text)
    return list(changed)


def execute(name: str, values: Mapping[str, Any]) -> Path:
    """Run a chapter, unless it already ran with the same inputs; returns its results folder.

    The folder holds `EXECUTED` beside the chapter's own files. Paths among the values are
    relative to the working directory, as under plain papermill.

    Raises:
        AbpError: a parameter is refused (before anything runs), a cell fails (the notebook up to
            there is kept), or the chapter ends without what it declares.
    """
    place = chapters.folder(name, parse(name, values))
    executed = place / EXECUTED
    with store.alone(executed):  # its kernel, another process, writes the rest of the folder
        if not _ran(place):
            _run(name, convert(cells.source_of(name)), values, executed)
        summary = store.summary_of(place)
        if summary is None:
            executed.unlink()
            raise AbpError(
                f"Chapter {name} has no results: end it with chapter.finish(), or run it again "
                "where its source or the library changed meanwhile."
            )
    chapters.verify(name, place, [chapters.VALUES, *summary["artefacts"]])
    return place


def folder_of(name: str, values: Mapping[str, Any]) -> Path:
    """The results folder of a chapter that `execute` ran with these values.

    Raises:
        AbpError: a parameter is refused, or the chapter has not run with its present inputs.
    """
    place = chapters.folder(name, parse(name, values))
    if not _ran(place):
        given = "".join(f" -p {key} {value}" for key, value in values.items())
        raise AbpError(
            f"Chapter {name} has not run with its present inputs: run "
            f"`python -m abplib chapter {name}{given}`."
        )
    return place


def as_written(name: str, place: Path) -> NotebookNode:
    """The chapter as it is written now, with the outputs that its run left in the folder `place`.

    The code is that of the run, since a folder belongs to its code; prose and tags may be newer.
    """
    notebook, ran = convert(cells.source_of(name)), nbformat.read(place / EXECUTED, as_version=4)
    injected = [cell for cell in ran.cells if "injected-parameters" in _tags(cell)]
    made = [c for c in ran.cells if c.cell_type == "code" and c not in injected]
    merged = []
    for cell in notebook.cells:
        merged.append(cell)
        if cell.cell_type == "code":
            done = made.pop(0)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        if "parameters" in _tags(cell):
            merged += injected
    notebook.cells, notebook.metadata = merged, ran.metadata
    return notebook


def _ran(place: Path) -> bool:
    """Whether a chapter ran to its end in its results folder."""
    return (place / EXECUTED).is_file() and store.summary_of(place) is not None


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _run(name: str, notebook: NotebookNode, values: Mapping[str, Any], executed: Path) -> None:
    given, running = executed.with_name("given.ipynb"), executed.with_name("running.ipynb")
    store.write_text(given, nbformat.writes(notebook))
    try:
        with _sockets() as config:
            papermill.execute_notebook(
                given,
                running,
                parameters=dict(values),
                kernel_name="python3",
                progress_bar=False,
                start_timeout=_START_TIMEOUT,
                config=config,
            )
    except PapermillExecutionError as error:
        reason = " ".join(f"{error.evalue}".split()) or error.ename
        kind = "" if error.ename == AbpError.__name__ else f"{error.ename}: "
        raise AbpError(
            f"Chapter {name} failed in cell {error.exec_count} ({kind}{reason.rstrip('.')}); "
            f"the notebook up to there is {running}."
        ) from error
    except (DeadKernelError, PapermillException, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise AbpError(
            f"Chapter {name} stopped since its kernel died ({reason}): free some memory and run "
            f"it again; the notebook up to there is {running}."
        ) from error
    done = nbformat.read(running, as_version=4)
    for path in ("input_path", "output_path"):  # where this checkout lies is nobody's business
        done.metadata["papermill"].pop(path, None)
    store.write_text(executed, nbformat.writes(done) + "\n")
    running.unlink()
    given.unlink()


@contextmanager
def _sockets() -> Iterator[Config]:
    """Let the kernel talk through files of a temporary folder: no race for ports, nothing to sniff.

    Where the run is killed they stay in that folder, and not in the working directory. A socket's
    path has at most 107 bytes, so a long TMPDIR is passed by.
    """
    short = len(os.fsencode(tempfile.gettempdir())) <= 80
    with tempfile.TemporaryDirectory(prefix="abp-", dir=None if short else "/tmp") as place:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{place}/kernel"})


def _check_parameters(name: str, notebook: NotebookNode) -> None:
    """The `parameters` cell must assign every parameter of the chapter its default."""
    tagged = [cell for cell in notebook.cells if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        raise AbpError(f"Chapter {name} has {len(tagged)} cells tagged parameters: it needs one.")
    try:
        assigned = {
            ast.unparse(statement.targets[0]): ast.literal_eval(statement.value)
            for statement in ast.parse(tagged[0].source).body
            if isinstance(statement, ast.Assign)
        }
    except (SyntaxError, ValueError) as error:
        raise AbpError(
            f"The parameters cell of chapter {name} must hold plain assignments of literals."
        ) from error
    expected, absent = model_of(name)().model_dump(), object()
    named = sorted(assigned.keys() | expected.keys())
    if differing := [k for k in named if assigned.get(k, absent) != expected.get(k, absent)]:
        raise AbpError(
            f"The parameters cell of chapter {name} disagrees with abplib/profiles.py on "
            f"{', '.join(differing)}."
        )
