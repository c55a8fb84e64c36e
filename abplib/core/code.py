"""The code that a computation is made of: its own, and the modules of the library that it reaches.

A change to a module concerns whatever imports it, directly or through others, and nothing else; of
a module that imports nothing of the library, such as the prompts, those definitions that are
imported by name, with what they are made of. Imports are read off the source text, those inside
functions too; nothing runs to find them. Comments, docstrings and line breaks are no part of code.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from abplib.core import paths
from abplib.core.errors import AbpError

_PACKAGE = Path(__file__).parent.parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
_ALL = "*"
"""All that a file defines."""
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)+")


def digest(*code: str, without: Collection[str] = ()) -> str:
    """Sixteen hex digits that identify pieces of Python and all of the library that they reach.

    Files `without` which it is meant ("core/boxes.py") are left out.

    Raises:
        AbpError: a piece is not plain Python.
    """
    own = [ast.unparse(_bare(_tree(piece))) for piece in code]
    names: dict[Path, set[str]] = {}
    for file, name in _reached(*code):
        names.setdefault(file, set()).add(name)
    files = {
        place: _text(_read(file), frozenset(names[file]))
        for file in sorted(names)
        if (place := file.relative_to(_PACKAGE).as_posix()) not in without
    }
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
    return sorted({file for file, _ in _reached(*code)})


def _reached(*code: str) -> set[tuple[Path, str]]:
    """The same with the definitions that they name there, _ALL of most."""
    waiting = {part for piece in code for part in _named(piece)}
    found: set[tuple[Path, str]] = set()
    while waiting:
        part = waiting.pop()
        found.add(part)
        waiting |= _named(_read(part[0])) - found
    return found


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _text(code: str, names: frozenset[str]) -> str:
    """The code of these definitions and of those that they are made of, or of the whole file."""
    tree = _bare(_tree(code))
    if _ALL in names or _named(code):
        return ast.unparse(tree)
    left, named = tree.body, set(names)
    while kept := [part for part in left if not _bound(part) or named.intersection(_bound(part))]:
        left = [part for part in left if part not in kept]
        named |= {n.id for part in kept for n in ast.walk(part) if isinstance(n, ast.Name)}
    return ast.unparse(ast.Module([part for part in tree.body if part not in left], []))


def _bound(part: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module defines; none of one that does more."""
    match part:
        case (
            ast.FunctionDef(name=name, decorator_list=[])
            | ast.ClassDef(name=name, decorator_list=[])
        ):
            return [name]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


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


@cache
def _named(code: str) -> frozenset[tuple[Path, str]]:
    """Files of the library, and definitions in them, that code itself names but for types alone."""
    tree = _tree(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = {(file, _ALL) for text in _strings(tree) for file in _files(text.partition(":")[0])}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found |= {(file, _ALL) for alias in node.names for file in _files(alias.name)}
            case ast.ImportFrom(module=str(module)):
                for alias in node.names:
                    inside = _files(f"{module}.{alias.name}")
                    own = len(inside) > len(_files(module))
                    found |= {(file, _ALL if own else alias.name) for file in inside}
    return frozenset(found)


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
