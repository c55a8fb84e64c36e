"""The stages of appendix A.2: files between them, resuming, what is left out, the finished set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import noise
from labelling import label
from PIL import Image, ImageOps

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.editing.base import Editor, Request
from abplib.judging.human.labels import DRAW_BOX, Label
from abplib.samples import multi_entity
from abplib.samples.base import EditedSamples, SampleSet
from abplib.samples.multi_entity import SpatialSamples
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.grounding import Grounder, Grounding
from recipes.__main__ import main
from recipes.multi_entity import stages as spatial
from recipes.multi_entity.rows import Boxed, Instruction, Picture, Structure, Verified

N = 8


class Author:
    """Writes lists of five pairs, of which the first repeats the list before."""

    name = "author"

    def __init__(self) -> None:
        self.requests: list[str] = []

    def write(self, system: str, request: str, schema: Any = None) -> str:
        assert schema["items"] == {"$ref": "#/$defs/_Scene"}
        self.requests.append(request)
        first = 4 * (len(self.requests) - 1)
        return json.dumps(
            [
                {"generation": f"A photo of {k} dogs.", "edit": f"Turn dog {k} into a cat."}
                for k in range(first, first + 5)
            ]
        )


class Structurer:
    """Makes JSON of scenes, except of dog 3."""

    name = "structurer"

    def write(self, system: str, request: str, schema: Any = None) -> str:
        return "I cannot {" if "3" in request else f'Here: ```json\n{{"scene": "{request}"}}\n```'


class Painter:
    """Paints noise; dies at a given picture."""

    name = "painter"

    def __init__(self, dies_at: int | None = None) -> None:
        self.painted: list[tuple[str, int]] = []
        self.dies_at = dies_at

    def paint(self, prompt: str, seed: int) -> Image.Image:
        if len(self.painted) == self.dies_at:
            raise KeyboardInterrupt
        self.painted.append((prompt, seed))
        return noise(40, 20, seed)


class Negative(Editor):
    """Inverts pictures, except where it is asked to leave dog 2 alone."""

    name = "negative"
    fingerprint = "n1"

    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        ((image, words, *_),) = requests
        assert isinstance(image, Image.Image)
        return [image if words == "Turn dog 2 into a cat." else ImageOps.invert(image)]


class Speaker:
    """Names a place, except once; keeps what it was shown."""

    name = "speaker"

    def __init__(self) -> None:
        self.shown: list[Image.Image] = []

    def describe(self, system: str, image: Image.Image) -> str:
        self.shown.append(image)
        if len(self.shown) == 2:
            return "Turn the brown dog into a cat."
        return "Turn the second from the left dog into a cat.\nIt is a fine cat."


def quiet(_line: str) -> None:
    pass


@pytest.fixture
def made(tmp_path: Path, encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All stages up to boxes; four of eight samples get through them."""
    answers = iter([None, *[(0.1, 0.2, 0.5, 0.6)] * N])
    monkeypatch.setattr(Grounder, "locate", lambda *_: [Grounding("said", next(answers))])
    spatial.write_prompts(tmp_path, Author(), N, quiet)
    spatial.structure_prompts(tmp_path, Structurer(), quiet)
    spatial.paint_images(tmp_path, Painter(), 100, quiet)
    spatial.edit_images(tmp_path, Negative(), 0, quiet)
    spatial.reverse(tmp_path, quiet)
    spatial.write_instructions(tmp_path, Speaker(), quiet)
    spatial.ground_boxes(tmp_path, Grounder(encoder), "vlm", quiet)
    return tmp_path


def say(folder: Path, rejected: str, silent: str) -> list[Label]:
    """Two raters draw boxes two pixels apart; one sample is rejected, one not judged."""
    labels = []
    for task in spatial.verification_tasks(folder):
        for shift, rater in enumerate(("a", "b")):
            if task.step == DRAW_BOX:
                box = (4.0 + 2 * shift, 4.0, 20.0, 12.0)
                labels.append(label(task, rater, box=box))
            elif task.item == rejected:
                labels.append(label(task, rater, "leakage"))
            elif task.item != silent:
                labels.append(label(task, rater, "yes"))
    return labels


def test_prompt_pairs_are_asked_for_until_there_are_enough(tmp_path: Path) -> None:
    author = Author()
    pairs = spatial.write_prompts(tmp_path, author, N, quiet)
    assert [pair.id for pair in pairs] == [f"{k:04d}" for k in range(N)]
    assert pairs[5].generation == "A photo of 5 dogs."
    assert pairs[5].edit == "Turn dog 5 into a cat."
    assert len(author.requests) == 2
    assert len(spatial.write_prompts(tmp_path, author, 12, quiet)) == 12
    assert len(author.requests) == 3  # what was paid for is not asked again


def test_a_list_that_is_refused_was_paid_for_and_is_kept(tmp_path: Path) -> None:
    class Mute(Author):
        def write(self, system: str, request: str, schema: Any = None) -> str:
            return "I cannot."

    with pytest.raises(AbpError, match=r"wrote no new pair .*I cannot"):
        spatial.write_prompts(tmp_path, Mute(), 2, quiet)
    author = Author()
    assert len(spatial.write_prompts(tmp_path, author, 5, quiet)) == 5
    assert author.requests[0].startswith("List number 2:")
    kept = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(kept[0])["text"] == "I cannot."


def test_a_stopped_stage_goes_on_after_its_last_row(tmp_path: Path) -> None:
    spatial.write_prompts(tmp_path, Author(), N, quiet)
    spatial.structure_prompts(tmp_path, Structurer(), quiet)
    with pytest.raises(KeyboardInterrupt):
        spatial.paint_images(tmp_path, Painter(dies_at=3), 100, quiet)
    resumed = Painter()
    rows = spatial.paint_images(tmp_path, resumed, 100, quiet)
    assert [seed for _, seed in resumed.painted] == list(range(104, 100 + N))
    assert json.loads(resumed.painted[0][0]) == {"scene": "A photo of 4 dogs."}
    assert [row.id for row in rows] == [f"{k:04d}" for k in range(N) if k != 3]
    with pytest.raises(AbpError, match="begun with another seed"):
        spatial.paint_images(tmp_path, Painter(), 101, quiet)


def test_the_edit_is_turned_round(made: Path) -> None:
    edited = store.read_lines(made / "edits.jsonl", Picture)
    assert [row.id for row in edited if row.reason == "unchanged"] == ["0002"]
    reversals = {row.id: row for row in store.read_lines(made / "reversal.jsonl", spatial.Reversal)}
    assert len(reversals) == N - 2
    with Image.open(made / reversals["0001"].target) as target:
        assert target.tobytes() == noise(40, 20, 101).tobytes()
    with Image.open(made / reversals["0001"].source) as source:
        assert source.tobytes() == ImageOps.invert(noise(40, 20, 101)).tobytes()


def test_the_target_is_shown_left_of_the_source(made: Path) -> None:
    (made / "instructions.jsonl").unlink()
    speaker = Speaker()
    spatial.write_instructions(made, speaker, quiet)
    shown = speaker.shown[0]
    assert shown.size == (80, 20)
    assert shown.crop((0, 0, 40, 20)).tobytes() == noise(40, 20, 100).tobytes()
    assert shown.crop((40, 0, 80, 20)).tobytes() != shown.crop((0, 0, 40, 20)).tobytes()


def test_what_cannot_be_used_stays_in_the_files_with_its_reason(made: Path) -> None:
    scenes = store.read_lines(made / "structures.jsonl", Structure)
    assert [row.id for row in scenes if row.reason == "no_json"] == ["0003"]
    instructions = store.read_lines(made / "instructions.jsonl", Instruction)
    assert [row.reason for row in instructions].count("not_spatial") == 1
    boxes = store.read_lines(made / "boxes.jsonl", Boxed)
    assert [row.reason for row in boxes].count("no_box") == 1
    assert len(boxes) == len(instructions) - 1


@pytest.mark.parametrize(
    ("instruction", "term"),
    [
        ("Turn the second dog from the left into a cat", "second from the left"),
        ("Turn the second from the left dog into a cat", "second from the left"),
        ("Turn the fourth from left dog into a cat", "fourth from the left"),
        ("Turn the front-most dog into a cat", "frontmost"),
        ("Turn the leftmost dog into a cat", "leftmost"),
        ("Turn the top-left dog into the rightmost", "top left"),
        ("Turn the lower right dog into a cat", "bottom right"),
        ("Turn the dog in the centre into a cat", "center"),
        ("Turn the brown dog into a cat", None),
        ("Turn the second dog into a cat, as it was left there", None),
    ],
)
def test_spatial_terms_are_found(instruction: str, term: str | None) -> None:
    assert multi_entity.spatial_term(instruction) == term


def test_all_terms_of_the_prompt_are_found() -> None:
    for term in multi_entity.SPATIAL_TERMS:
        assert multi_entity.spatial_term(f"Turn the {term} dog into a cat") == term


def test_people_decide_what_stays_and_where_its_box_is(made: Path) -> None:
    items = sorted({task.item for task in spatial.verification_tasks(made)})
    rows = spatial.verify(made, say(made, rejected=items[0], silent=items[1]), quiet)
    reasons = {row.id: row.reason for row in rows}
    assert reasons.pop(items[0]) == "rejected"
    assert reasons.pop(items[1]) == "not_labelled"
    assert set(reasons.values()) == {""}
    kept = next(row for row in rows if not row.reason)
    assert kept.box == pytest.approx((5 / 40, 4 / 20, 20 / 40, 12 / 20))
    assert kept.raters == 2


def test_the_split_is_two_sample_sets(made: Path) -> None:
    items = sorted({task.item for task in spatial.verification_tasks(made)})
    spatial.verify(made, say(made, rejected=items[0], silent=""), quiet)
    manifest = spatial.split(made, 0, quiet)
    halves = [SpatialSamples(made, "training"), SpatialSamples(made, "evaluation")]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    ids = [half[i].id for half in halves for i in range(len(half))]
    assert sorted(ids) == items[1:]
    checked: EditedSamples = halves[1]
    assert isinstance(checked, SampleSet)
    sample = checked[0]
    seed = 100 + int(sample.id)
    assert checked.edited(0).tobytes() == noise(40, 20, seed).tobytes()
    assert sample.image.tobytes() == ImageOps.invert(noise(40, 20, seed)).tobytes()
    assert sample.facts["spatial_term"] == "second from the left"
    with pytest.raises(IndexError):
        checked[len(checked)]
    assert spatial.split(made, 0, quiet) == manifest

    noise(40, 20, 7).save(made / manifest["evaluation"][0]["source"])
    with pytest.raises(AbpError, match="is not the image of the manifest"):
        checked[0]
    manifest["evaluation"][0]["box"] = [0, 0, 1, 1]
    (made / multi_entity.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AbpError, match="are not those of its hash"):
        len(SpatialSamples(made, "evaluation"))


def test_stages_want_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=r"Stage structures .* has no usable rows: run it first"):
        spatial.paint_images(tmp_path, Painter(), 0, quiet)
    with pytest.raises(AbpError, match=r"Stage verification .* run it first"):
        spatial.split(tmp_path, 0, quiet)


def test_the_command_runs_stages_by_name(made: Path) -> None:
    def abp(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["spatial", *arguments, "--out", str(made)])
        return done.stdout if done.exit_code == 0 else done.stderr

    assert "'spilt' is not one of 'prompts', 'structures', 'images'" in abp("spilt")
    assert "give --labels" in abp("verification")
    labels = made / "people.jsonl"
    for said in say(made, rejected="", silent=""):
        store.append_line(labels, said)
    told = abp("verification", "--labels", str(labels))
    assert "4 usable; at most 2 are left to evaluate" in told
    assert len(store.read_lines(made / "verification.jsonl", Verified)) == 4
    assert "2 to train on, 2 to evaluate" in abp("split")
