"""No key, token or home folder in any page, notebook output, log or result that is here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from abplib.core import paths
from abplib.judging.clients import KEY, KEYS

TOKENS = re.compile(
    r"(?<![\w+/-])(?:AIza[\w-]{35}"  # Google; not within other letters
    r"|sk-[\w-]{20,}"  # OpenAI and others
    r"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|gh[pousr]_[A-Za-z0-9]{36})"  # GitHub
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
HOMES = re.compile(r"(?:/home|/Users)/[a-z][\w.-]*/|[A-Z]:\\+Users\\+\w+\\+", re.ASCII)
WRITTEN = (".md", ".html", ".ipynb", ".json", ".jsonl", ".csv", ".log", ".txt", ".yaml", ".yml")
FOLDERS = ("book", "data", "results")


def told(text: str) -> list[str]:
    """What of a text should not be there."""
    found = [match[0] for match in (*TOKENS.finditer(text), *HOMES.finditer(text))]
    own = [os.environ.get(name, "") for name in (*KEYS, KEY, "HF_TOKEN")]
    home = str(Path.home())
    found += [secret for secret in own if len(secret) > 8 and secret in text]
    if len(home) > 1 and re.search(re.escape(home) + r"(?=[/\\\"'\s])", text):
        found.append(home)
    return found


def written(root: Path) -> Iterator[tuple[Path, str]]:
    """Text files with what a reader sees of them: of a notebook, sources and outputs."""
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*")):
        if path.suffix not in WRITTEN or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":
            text = json.dumps([[c["source"], c.get("outputs")] for c in json.loads(text)["cells"]])
        yield path, text


def test_nothing_here_tells_a_secret() -> None:
    files = dict(written(paths.root()))
    assert paths.root() / "book" / "chapters" / "01_localization_gap.md" in files
    leaks = {str(path): found for path, text in files.items() if (found := told(text))}
    assert not leaks


@pytest.mark.parametrize(
    "secret",
    [
        "AIza" + "x" * 35, "sk-" + "y" * 30, "hf_" + "z" * 34, "ghp_" + "1" * 36,
        "/home/" + "ada/abp", "C:\\Users\\ada\\abp", str(Path.home() / "abp"), "my-own-key-123",
    ],
)  # fmt: skip
def test_a_secret_is_found_in_an_output(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "my-own-key-123")
    output = {"output_type": "stream", "name": "stderr", "text": [f"Warning: {secret} is odd\n"]}
    notebook = {"cells": [{"cell_type": "code", "source": [], "outputs": [output]}]}
    path = tmp_path / "results" / "executed.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps(notebook))
    ((_, text),) = written(tmp_path)
    assert told(json.loads(text)[0][1][0]["text"][0])
