"""The profile `paper` by its ids of the hub, on twins out of a cache: every chapter runs."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import papertwin
import pytest
from labelling import label
from loopback import KEY, hurry, serving
from torch import nn

from abplib import chapter
from abplib.core import cells, store
from abplib.editing import conditions, loading
from abplib.editing.runs import make_edits
from abplib.experiment import Experiment
from abplib.judging.human.tasks import boxes_to_judge, edits_to_judge
from abplib.profiles import CHAPTERS, Profile
from abplib.sections import vlm_boxes
from abplib.vlm import loading as vlms


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The profile's file; what speaks for Gemini fails now and then."""
    with pytest.MonkeyPatch.context() as patch, serving(0.1):
        hurry(patch)
        patch.setattr(conditions, "MAX_DESCRIPTION", 16)
        patch.setenv("GEMINI_API_KEY", KEY)
        yield papertwin.make(tmp_path_factory.mktemp("paper"), patch)


def run(name: str, **given: Any) -> dict[str, Any]:
    """A chapter's cells in this process, where the libraries are loaded anyway; its values."""
    space: dict[str, Any] = {}
    for source, metadata in cells.told_cells(name):
        with mock.patch.object(cells, "running", return_value=source):
            exec(compile(source, f"{name}.md", "exec"), space)
        if "parameters" in metadata.get("tags", []):
            assert given.keys() <= space.keys()
            space |= given
    found: Any = space["chapter"]
    assert store.summary_of(found.folder) is not None  # it finished, with all that it declares
    values: dict[str, Any] = json.loads((found.folder / chapter.VALUES).read_text())
    return values


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> set[frozenset[str]]:
    """What of VLM and whole pipelines is held, each time that one is loaded."""
    held: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
    seen: set[frozenset[str]] = set()
    load_vlm, place = vlms.load_vlm, loading.place

    def hold(model: nn.Module, name: str) -> None:
        gc.collect()
        held[model] = name
        seen.add(frozenset(held.values()))

    def loaded(*source: Any, **how: Any) -> Any:
        model, processor = load_vlm(*source, **how)
        if how["device"] != "meta":
            hold(model, "VLM")
        return model, processor

    def placed(pipeline: Any, device: Any) -> Any:
        if pipeline.transformer is not None:
            hold(pipeline.transformer, type(pipeline).__name__)
        return place(pipeline, device)

    monkeypatch.setattr(vlms, "load_vlm", loaded)
    monkeypatch.setattr(loading, "place", placed)
    return seen


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_runs_to_its_end_and_holds_what_the_plan_says(
    paper: Path, name: str, together: set[frozenset[str]]
) -> None:
    assert {value["profile"] for value in run(name, profile=str(paper)).values()} == {"paper"}
    if name.startswith(("01", "05")):
        editor = "QwenImageEditPipeline"
        at_most = {frozenset(["VLM", editor])} if name.startswith("05") else set()
        assert {group for group in together if len(group) > 1} == at_most
        assert frozenset([editor]) in together


def test_only_sizes_are_not_the_papers(paper: Path) -> None:
    own, twin = Profile.load("paper"), Profile.load(str(paper))
    changed = {name for name, value in own if value != getattr(twin, name)}
    assert changed <= {"other_editors", *papertwin.SIZES}
    for name, other in own.other_editors.items():
        assert twin.other_editors[name].source == other.source


def test_what_people_said_decides_chapter_1(paper: Path, tmp_path: Path) -> None:
    twin = Experiment(Profile.load(str(paper)))
    samples, n = twin.evaluation, twin.profile.n_eval
    answers = vlm_boxes.ask(twin.encoder, samples, n)
    made = make_edits("baseline", twin.baseline, samples, n, 0, {})
    file = tmp_path / "labels.jsonl"
    for task in boxes_to_judge(samples, answers):
        store.append_line(file, label(task, "rater", "yes"))
    first, *others = edits_to_judge(samples, {"baseline": made})
    store.append_line(file, label(first, "rater", "yes"))
    for task in others[1:]:
        store.append_line(file, label(task, "rater", "leakage"))
    found = run("01_localization_gap", profile=str(paper), human_labels=str(file))
    assert found["ch1.vlm_box_accuracy"]["value"] == answers["answered"].mean()
    assert found["ch1.n_open"]["value"] == 1
    assert found["ch1.edit_success"]["value"] == 1 / (n - 1)
