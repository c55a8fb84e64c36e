"""What a chapter or a step is made of: its code, and the modules of the library that this reaches.

A change to a module concerns whatever imports it, directly or through others, and nothing else.
Imports are read off the source text, those inside functions too; nothing runs to find them.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import jupytext

from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.parameters import ChapterParameters
from abplib.profiles import Profile

_PACKAGE = Path(__file__).parent.parent
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)+")


def code_cells(name: str) -> list[str]:
    """The code cells of the chapter called `name`, in order; prose and tags are no part of them.

    Raises:
        AbpError: the chapter has no source.
    """
    path = paths.root() / "book" / "chapters" / f"{name}.md"
    if not path.is_file():
        raise AbpError(f"Chapter {name} has no source: {path} is missing.")
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def of_chapter(name: str, parameters: ChapterParameters) -> dict[str, Any]:
    """All that determines a chapter's outputs, as JSON values: its prose is no part of it.

    Its code cells and the files that they name, the parameters, what the paper reports, and
    `inputs` of the profile that the parameters resolve to.

    Raises:
        AbpError: the chapter has no source, or as `inputs` does.
    """
    cells = code_cells(name)
    return {
        "cells": store.digest(cells),
        "files": store.digest_files(*named_files(*cells)),
        "parameters": parameters.model_dump(exclude={"profile"}),
        "reported": store.digest_files(*sorted((paths.root() / "data" / "paper").glob("*.json"))),
        **inputs(parameters.resolve(), *cells),
    }


def inputs(profile: Profile, *code: str) -> dict[str, Any]:
    """What determines the outcome of pieces of Python under a profile, as JSON values.

    The profile itself, the modules of the library that it and the code reach, the files of its
    models, and its samples.

    Raises:
        AbpError: models or samples are missing, or a piece is not plain Python.
    """
    fields = profile.model_dump()
    return {
        "profile": fields,
        "code": store.digest_files(*reached(repr(fields), *code)),
        "model": profile.model_fingerprint,
        "data": profile.data_fingerprint,
    }


def named_files(*code: str) -> list[Path]:
    """Files of the checkout that pieces of Python name in a string, by the path from its root.

    Raises:
        AbpError: a piece is not plain Python.
    """
    texts = {text for piece in code for text in _strings(_tree(piece)) if _PATH.fullmatch(text)}
    return sorted(path for text in texts if (path := paths.root() / text).is_file())


def reached(*code: str) -> list[Path]:
    """Files of the library that pieces of Python import, or name in a string, directly or not.

    A string counts where it is the name of a module or a `module:function`, as in a profile.

    Raises:
        AbpError: a piece is not plain Python.
    """
    waiting = {file for piece in code for file in _named(piece)}
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _named_in(file) - found
    return sorted(found)


@cache
def _named_in(file: Path) -> frozenset[Path]:
    return _named(file.read_text(encoding="utf-8"))


def _named(code: str) -> frozenset[Path]:
    """Files of the library that a piece of Python itself names."""
    tree = _tree(code)
    names = {text.partition(":")[0] for text in _strings(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                names |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(file for name in names for file in _files(name))


def _tree(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError as error:
        raise AbpError(
            f"This is not plain Python: {(error.text or code).strip()!r} ({error.msg})."
        ) from error


def _strings(tree: ast.Module) -> set[str]:
    """What stands between quotes."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def _files(name: str) -> list[Path]:
    """Files of a dotted name: those of the packages it lies in, and its module's."""
    parts = name.split(".")
    if parts[0] != _PACKAGE.name or not all(part.isidentifier() for part in parts):
        return []
    places = [_PACKAGE.parent.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    wanted = [place / "__init__.py" for place in places]
    wanted += [place.with_suffix(".py") for place in places]
    return [file for file in wanted if file.is_file()]
