"""Arrows between the library's packages run one way, and there is no circle of modules."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

BELOW: dict[str, set[str]] = {  # what each package or module of the library may import
    "core": set(),
    "prompts": set(),
    "paper": {"core"},
    "samples": {"core"},
    "vlm": {"core", "samples", "prompts"},
    "proxies": {"core", "samples", "vlm", "prompts"},
    "editing": {"core", "samples", "vlm", "prompts"},
    "judging": {"core", "samples", "vlm", "editing", "prompts", "paper"},
    "profiles": {"core", "editing", "proxies"},
}
BELOW["experiment"] = {*BELOW["judging"], "judging", "proxies", "profiles"}
BELOW["sections"] = {*BELOW["experiment"], "experiment"}
BELOW["plots"] = {*BELOW["sections"], "sections"}
BELOW["chapter"] = {"core", "profiles", "experiment"}
BELOW["publish"] = {*BELOW["sections"], "sections", "chapter"}
BELOW["__main__"] = {*BELOW["plots"], "plots", "publish"}

MODULES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (REPOSITORY / "abplib").rglob("*.py")
}


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of the library that a module imports, anywhere in its text but for types alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(origin)):
                inside = {f"{origin}.{alias.name}" for alias in node.names}
                names |= {name if name in MODULES else origin for name in inside}
    assert not any(name.partition(".")[0] == "recipes" for name in names), module
    return frozenset(names & MODULES.keys() - {module})


def house(module: str) -> str:
    """The package or module, right under the library's top, that a module belongs to."""
    return [*module.split("."), ""][1]


def test_every_package_has_its_place() -> None:
    assert {house(module) for module in MODULES} - {""} == BELOW.keys()


@pytest.mark.parametrize("package", BELOW)
def test_no_arrow_runs_back_up(package: str) -> None:
    wrong = [
        f"{module} imports {other}"
        for module in sorted(MODULES)
        if house(module) == package
        for other in sorted(imported(module))
        if house(other) not in {package, "", *BELOW[package]}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_modules() -> None:
    try:
        TopologicalSorter({module: imported(module) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
