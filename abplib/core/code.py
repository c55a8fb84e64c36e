"""The code that a computation is made of: its own, and the modules of the library that it reaches.

A change to a module concerns whatever imports it, directly or through others, and nothing else.
Imports are read off the source text, those inside functions too; nothing runs to find them.
Comments, docstrings and line breaks are no part of code.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from abplib.core import paths
from abplib.core.errors import AbpError

_PACKAGE = Path(__file__).parent.parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)+")


def digest(*code: str) -> str:
    """Sixteen hex digits that identify pieces of Python and all of the library that they reach.

    Raises:
        AbpError: a piece is not plain Python.
    """
    own = [ast.unparse(_bare(_tree(piece))) for piece in code]
    files = {file.relative_to(_PACKAGE).as_posix(): _bare_text(file) for file in reached(*code)}
    return hashlib.sha256(repr((own, files)).encode()).hexdigest()[:16]


def naming(thing: type | Callable[..., Any]) -> str:
    """A piece of Python that stands for a class or function: the import of its module.

    Its own source where it is written outside the library; nothing where it is an installed one's.
    """
    if thing.__module__.partition(".")[0] == _PACKAGE.name:
        return f"import {thing.__module__}"
    try:
        file = Path(inspect.getfile(thing))
        if any(file.is_relative_to(place) for place in _INSTALLED):
            return ""
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # built in, or typed at a prompt
        return ""


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
    waiting = {file for piece in code for file in _named(_tree(piece))}
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _named_in(file) - found
    return sorted(found)


@cache
def _named_in(file: Path) -> frozenset[Path]:
    return _named(_tree(file.read_text(encoding="utf-8")))


@cache
def _bare_text(file: Path) -> str:
    return ast.unparse(_bare(_tree(file.read_text(encoding="utf-8"))))


def _bare(tree: ast.Module) -> ast.Module:
    """The tree without strings that stand for themselves, which are docstrings."""
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _named(tree: ast.Module) -> frozenset[Path]:
    """Files of the library that a piece of Python itself names."""
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
