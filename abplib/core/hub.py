"""What a profile names: models and data of the hub or a folder, functions as `module:function`.

A branch of the hub moves. Which commit a run found it at is recorded in `results/hub`; `abp pin`
writes those commits into the lock file `hub.lock`, and a branch that has moved since is refused.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.core.store import digest, digest_files, digest_folder, read_json, write_json

Kind = Literal["model", "dataset"]

LOCK = "hub.lock"
"""In the checkout: the commit of each `owner/name@revision`, as JSON."""

_UNLOADABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, AttributeError,
    SafetensorError,
)  # fmt: skip
"""What the libraries raise on files that are missing, corrupt or of another model."""


def cached(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of a model in the hub's cache, if all its weights are there."""
    folder = _snapshot(hub_id, revision)
    return folder if folder and _whole(folder) else None


def commit(hub_id: str, revision: str | None = None) -> str:
    """The commit that a revision of a model is at, for which nothing of it is fetched.

    The hub is asked once; where it does not answer, it is that of the cache.

    Raises:
        AbpError: neither knows it, or it is not the one that `hub.lock` holds.
    """
    try:
        with explained(hub_id):
            found = str(HfApi().model_info(hub_id, revision=revision).sha)
    except AbpError:
        if (folder := _snapshot(hub_id, revision)) is None:
            raise
        found = folder.name
    if found == revision:
        return found
    asked = _version(hub_id, revision)
    write_json(paths.results() / "hub" / f"{digest(asked)}.json", {asked: found})
    if (held := _locked().get(asked, found)) != found:
        raise AbpError(
            f"{asked} has moved: it is at {found} and {LOCK} holds {held}. Name {held} as its "
            "revision to stay there, or run `abp pin` to go along."
        )
    return found


def resolved() -> dict[str, str]:
    """The commit that runs found each `owner/name@revision` at, the last time that they asked."""
    found: dict[str, str] = {}
    for path in (paths.results() / "hub").glob("*.json"):
        found |= read_json(path)
    return dict(sorted(found.items()))


def pin() -> dict[str, str]:
    """Write what runs resolved into `hub.lock`, whose other lines stay. Returns: its new lines.

    Raises:
        AbpError: no run has asked for anything of the hub.
    """
    if not (found := resolved()):
        raise AbpError(
            f"No run in {paths.results()} has taken a model from the hub: run one, then pin."
        )
    locked = _locked()
    write_json(paths.root() / LOCK, dict(sorted((locked | found).items())))
    return {asked: at for asked, at in found.items() if locked.get(asked) != at}


def told(source: str, revision: str | None = None) -> str:
    """A folder or hub id as pages name it: with the commit that runs found the latter at."""
    at = resolved().get(_version(source, revision), revision)
    return f"{source}@{at[:12]}" if at else source


def _version(hub_id: str, revision: str | None) -> str:
    return f"{hub_id}@{revision or 'main'}"


def _locked() -> dict[str, str]:
    path = paths.root() / LOCK
    return dict(read_json(path)) if path.exists() else {}


def _snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a model in the hub's cache, whatever of it is there."""
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def remedy(hub_id: str, kind: Kind = "model") -> str:
    """How to get something of the hub, as the end of a sentence."""
    option = " --repo-type dataset" if kind == "dataset" else ""
    return (
        f"connect to the network, or run `hf download {hub_id}{option}` where there is one and "
        "bring its cache here (HF_HOME)"
    )


@contextmanager
def explained(hub_id: str, kind: Kind = "model") -> Iterator[None]:
    """Where the hub fails in the body, or is the cause of what fails there, it is one sentence.

    Raises:
        AbpError: naming what was asked for and how to get it.
    """
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            if sentence := _sentence(link, hub_id, kind):
                raise AbpError(sentence) from error
            link = link.__cause__ or link.__context__
        raise


@contextmanager
def loading(what: str, source: str | Path, how: str = "fetch or make it again") -> Iterator[None]:
    """The same of a body that loads something; also where files of it are not usable.

    Args:
        what: kind of thing, as sentences call it.
        source: its folder, file or hub id.
        how: to mend it.

    Raises:
        AbpError: naming it.
    """
    try:
        with explained(str(source)):
            yield
    except AbpError:
        raise
    except _UNLOADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise AbpError(f"The {what} {source} cannot be loaded ({reason}); {how}.") from error


def _sentence(error: BaseException, hub_id: str, kind: Kind) -> str | None:
    """What an error of the hub's client means; None for another error."""
    where = page(hub_id, kind)
    match error:
        case HFValidationError():
            return f"{hub_id!r} is no id of the hub: give owner/name, or a folder that exists."
        case GatedRepoError():
            return (
                f"{hub_id} is gated: accept its terms at {where} and log in with `hf auth login`."
            )
        case RevisionNotFoundError():
            return f"{hub_id} has no such revision: see {where}."
        case RepositoryNotFoundError():
            return f"The hub knows no {kind} {hub_id}, or does not show it to you: see {where}."
        case (
            httpx2.HTTPError() | HfHubHTTPError() | LocalEntryNotFoundError()
            | OfflineModeIsEnabled()
        ):  # fmt: skip
            how = remedy(hub_id, kind)
            return f"{hub_id} is not here and the hub cannot be reached: {how}."
        case EntryNotFoundError():
            return f"{hub_id} lacks a file: see {where}."
    return None


def check_access(hub_id: str, kind: Kind = "model") -> None:
    """Ask the hub whether it would hand this out.

    Raises:
        AbpError: it would not, or cannot be reached.
    """
    with explained(hub_id, kind):
        HfApi().auth_check(hub_id, repo_type=kind)


def only_here(hub_id: str, revision: str | None = None) -> bool:
    """Whether a model is to be read from the cache without asking the hub, which does not answer.

    One question settles it; libraries would put it again for every file, and wait between.

    Raises:
        AbpError: it is neither here nor to be had.
    """
    try:
        check_access(hub_id)
    except AbpError:
        if cached(hub_id, revision) is None:
            raise
        return True
    return False


def page(hub_id: str, kind: Kind = "model") -> str:
    """The address of its card."""
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{hub_id}"


def _whole(folder: Path) -> bool:
    """Whether there are weights, and every file of weights that an index names."""
    named = {
        index.parent / file
        for index in folder.rglob("*.safetensors.index.json")
        for file in json.loads(index.read_text())["weight_map"].values()
    }
    return any(folder.rglob("*.safetensors")) and all(file.is_file() for file in named)


def source_of(role: str, name: str, example: str) -> str:
    """A folder of the checkout, an absolute one, what a `module:function` returns, or a hub id.

    Raises:
        AbpError: it is none of these.
    """
    folder = paths.root() / name
    if folder.is_dir():
        return str(folder)
    model = role.replace("vlm", "VLM")
    if ":" in name:
        try:
            make = function_of(name)
        except AbpError as error:
            raise AbpError(
                f"{name!r} names no {model}: give a folder, a hub id such as {example}, or a "
                "module:function; a tag of another tool or an address of the hub is none of these."
            ) from error
        return str(make())
    if name.startswith((".", "/", "data/")) or name.count("/") != 1:
        raise AbpError(
            f"The {model} folder {folder} is missing: restore it from the "
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
    """Hash of a file, of a folder's files, or of a hub id and the commit that it is pinned to."""
    if Path(source).is_file():
        return digest_files(source)
    if Path(source).is_dir():
        return digest_folder(source)
    return digest([source, _locked().get(_version(source, revision), revision)])
