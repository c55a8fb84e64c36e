"""What a profile names: a model by its folder or hub id, a function as `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.core.store import digest, digest_files, digest_folder


def source_of(role: str, name: str, example: str) -> str:
    """A folder of the checkout, an absolute one, what a `module:function` returns, or a hub id."""
    if ":" in name:
        return str(function_of(name)())
    folder = paths.root() / name
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "data/")) or name.count("/") != 1:
        raise AbpError(
            f"The {role.replace('vlm', 'VLM')} folder {folder} is missing: restore it from the "
            f"repository, or set {role} to another folder or to a hub id such as {example}."
        )
    return name


@cache
def function_of(reference: str) -> Callable[[], Any]:
    """The function that `module:function` names.

    Raises:
        AbpError: the module cannot be imported or has no such function.
    """
    module, _, function = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise AbpError(
            f"{reference!r} names no function ({error}): give an importable module:function."
        ) from error
    if not callable(found):
        raise AbpError(f"{reference!r} is not a function: give a module:function.")
    return found


def content_of(source: str, revision: str | None = None) -> str:
    """Hash of a file, of a folder's files, or of a hub id."""
    if Path(source).is_file():
        return digest_files(source)
    return digest_folder(source) if Path(source).is_dir() else digest([source, revision])
