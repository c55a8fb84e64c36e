"""What archives and auditors read says what is: versions, checksums, commands, pinned models."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib

import yaml
from click.testing import CliRunner
from hubcache import revisions

from abplib.__main__ import main
from abplib.core import paths
from abplib.paper import facts
from abplib.profiles import Profile
from abplib.samples import omniedit

ROOT = paths.root()
AUDIT = yaml.safe_load((ROOT / ".adduce" / "manifest.yaml").read_text())


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = [json.loads((ROOT / name).read_text()) for name in ("codemeta.json", ".zenodo.json")]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest
    assert {version} == {cited["version"], latest[1], *(about["version"] for about in said)}
    assert cited["title"] == said[0]["name"] == said[1]["title"]


def test_the_data_are_those_of_the_checksums() -> None:
    """After a change: `sha256sum $(git ls-files . | grep -v SHA256SUMS) > SHA256SUMS` in `data`."""
    data = ROOT / "data"
    lines = (data / "SHA256SUMS").read_text().splitlines()
    told = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    shipped = [p for name in ("mini", "lpips", "paper") for p in (data / name).rglob("*")]
    files = {str(p.relative_to(data)): p for p in [*shipped, data / "LICENSE"] if p.is_file()}
    assert told.keys() == files.keys()
    wrong = [n for n, p in files.items() if hashlib.sha256(p.read_bytes()).hexdigest() != told[n]]
    assert not wrong


def test_the_audit_names_files_and_commands_that_are() -> None:
    named = {AUDIT["environment"][key] for key in ("lockfile", "container")}
    for claim in AUDIT["claims"]:
        command = claim["produced_by"]["command"].split()
        named |= {claim["produced_by"]["config"], f"book/chapters/{command[-1]}.md"}
        assert CliRunner().invoke(main, [*command[1:-1], "--help"]).exit_code == 0
        assert claim.get("seeds", []) in ([], list(range(Profile.load("mini").sweep.n_seeds)))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_audit_tells_what_the_profile_pins() -> None:
    pinned = revisions(Profile.load("paper")) | {omniedit.HUB_ID: omniedit.REVISION}
    told = {row["call"]: row["revision"] for row in AUDIT["remotes"]}
    assert told == {name: at for name, at in pinned.items() if at is not None}
    licences = {row["id"]: row["license"] for row in AUDIT["datasets"]}
    assert licences[omniedit.HUB_ID] == facts()["data"][omniedit.HUB_ID]["licence"]


def test_the_image_is_built_of_what_is_here() -> None:
    """The workflow builds the image; here its steps are at least targets of the Makefile."""
    steps, make = ((ROOT / name).read_text() for name in ("binder/Dockerfile", "Makefile"))
    targets = set(re.findall(r'(?:^#.*|RUN |")make"?,? "?(\w+)', steps, re.MULTILINE))
    assert targets >= {"setup", "book", "help"}
    assert all(f"\n{target}:" in make for target in targets)
