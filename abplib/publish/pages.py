"""The last step of `make book`: set the pages, and let nothing half-made be seen.

The chapters have run before. Their prose as it is now, with the outputs of their runs, and the
static pages are staged in `book/_build/src`, and Jupyter Book turns them into HTML with its own
execution off and its warnings as errors. The finished HTML takes the place of the former one at the
end, so a failed build leaves the last good book alone.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml
from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

from abplib import paper
from abplib.chapter import CLAIMS, VALUES, profile_note
from abplib.core import code, paths, store
from abplib.core.errors import AbpError
from abplib.profiles import Profile
from abplib.publish import ledger
from abplib.publish.dressing import figures, take_along, typesettable
from abplib.publish.notebooks import as_written, folder_of

_TOOLS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-mathjax-offline")
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"  # it cannot be run by -m
_PAGES = (".md", ".bib", ".yml")
_CONFIG = "_config.yml"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def build_folder() -> Path:
    """Where the build's products go."""
    return _book() / "_build"


def build(profile: str, log: Callable[[str], None] = print) -> Path:
    """Set the pages of the chapters that ran; returns the first page.

    Args:
        profile: what every chapter ran with.
        log: takes one line of progress at a time.

    Raises:
        AbpError: a chapter has not run, or the pages do not build.
    """
    ran = {name: folder_of(name, {"profile": profile}) for name in chapters()}
    with store.alone(build_folder() / "html"):
        merge_values(ran)
        told = ledger.joined(ran, profile)
        store.write_json(build_folder() / CLAIMS, told)
        staged = stage(ran, profile)
        store.write_text(staged / "made" / "ledger.txt", ledger.page(told))
        store.write_text(staged / "made" / "verdicts.txt", ledger.strip(told, ran))
        return typeset(staged, log)


def key(profile: str) -> str:
    """Hash of what determines the pages beside the chapters' outputs."""
    own = code.digest(f"import {__name__}")
    files = store.digest_files(*written())
    return store.digest([profile, _tools(), files, paper.claims(), own])


def chapters() -> list[str]:
    """The names of the book's chapters in the reading order of `book/_toc.yml`."""
    path = _book() / "_toc.yml"
    try:
        listed = parse_toc_yaml(path)
    except (OSError, yaml.YAMLError, MalformedError) as error:
        raise AbpError(f"The book's table of contents {path} is not readable YAML.") from error
    return [Path(page).name for page in listed if page.startswith("chapters/")]


def merge_values(ran: dict[str, Path]) -> Path:
    """Write `_build/values.json`, the values of all chapters together.

    Raises:
        AbpError: two chapters gave the same name to a value.
    """
    merged: dict[str, Any] = {}
    for name, place in ran.items():
        values = store.read_json(place / VALUES)
        if twice := sorted(merged.keys() & values.keys()):
            raise AbpError(f"Chapter {name} gives {', '.join(twice)}, as an earlier chapter does.")
        merged |= values
    path = build_folder() / VALUES
    store.write_json(path, merged)
    return path


def stage(ran: dict[str, Path], profile: str) -> Path:
    """Collect everything that Sphinx reads in `_build/src`, from scratch; returns that folder."""
    staged = build_folder() / "src"
    shutil.rmtree(staged, ignore_errors=True)
    (staged / "extra" / "mathjax").mkdir(parents=True)
    shutil.copy(_mathjax(), staged / "extra" / "mathjax")
    for path in written():
        to = staged / (_CONFIG if path.name == _CONFIG else path.relative_to(_book()))
        if not (to.parent.name == "chapters" and path.stem in ran):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    for name, place in ran.items():
        notebook = typesettable(as_written(name, place), name)
        store.write_text(staged / "chapters" / f"{name}.ipynb", nbformat.writes(notebook))
        take_along(name, place, staged / "extra" / "files" / name)
        for figure in figures(notebook):
            store.write_text(staged / "made" / f"{figure.name}.txt", figure.thumbnail(name))
    note = profile_note(Profile.load(profile)) or "% Nothing is to be said of this profile."
    store.write_text(staged / "made" / "note.txt", note + "\n")
    return staged


def written() -> list[Path]:
    """Files that people write and the pages are set from: prose, style, configuration."""
    found = [paths.root() / _CONFIG]
    for path in sorted(_book().rglob("*")):
        top = path.relative_to(_book()).parts[0]
        is_page = path.suffix in _PAGES and top not in ("_build", "notebooks")
        if path.is_file() and (is_page or top == "_static"):
            found.append(path)
    return found


def typeset(staged: Path, log: Callable[[str], None]) -> Path:
    """Run Jupyter Book over the staged folder; returns the first page.

    Raises:
        AbpError: Sphinx warned or failed.
    """
    log("pages: setting")
    place, html = build_folder(), build_folder() / "html"
    fresh = place / "next"
    shutil.rmtree(fresh, ignore_errors=True)
    options = ["--path-output", str(fresh), "--config", str(staged / "_config.yml")]
    command = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(staged), *options]
    done = subprocess.run(
        [*command, "--toc", str(staged / "_toc.yml"), "-W", "--keep-going"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    report = place / "sphinx.log"
    store.write_text(report, done.stdout)
    made = fresh / "_build" / "html"
    if done.returncode or not (made / "index.html").is_file():
        said = re.findall(r"^.*\b(?:WARNING|ERROR)\b.*$", _COLOUR.sub("", done.stdout), re.M)
        reason = said[0].strip() if said else "no warning was given"
        raise AbpError(f"The pages do not build ({reason}); the full report is {report}.")
    former = place / "former"
    shutil.rmtree(former, ignore_errors=True)
    if html.is_dir():
        html.rename(former)
    made.rename(html)
    shutil.rmtree(former, ignore_errors=True)
    shutil.rmtree(fresh)
    return html / "index.html"


def _tools() -> dict[str, str]:
    return {tool: version(tool) for tool in _TOOLS}


def _book() -> Path:
    return paths.root() / "book"


def _mathjax() -> Path:
    """MathJax in one file, from the package that carries it."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise AbpError("MathJax is missing: install sphinx-mathjax-offline, as the lock file says.")
    return Path(spec.origin).parent / "static" / "mathjax" / "tex-svg-full.js"
