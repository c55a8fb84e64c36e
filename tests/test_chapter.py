from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import toybook
from matplotlib.figure import Figure

from abplib import chapter as module
from abplib.chapter import Chapter
from abplib.core import cells, store
from abplib.core.errors import AbpError
from abplib.core.stats import Interval
from abplib.plots import scheme
from abplib.profiles import CHAPTERS
from abplib.sections.claims import ClaimCheck


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`Chapter.start` of a toy chapter; the names it declares are keyword arguments."""
    profile = str(toybook.make(tmp_path, monkeypatch))
    monkeypatch.setattr(module, "display", lambda *bundle, **options: None)

    def start(namespace: dict[str, Any] | None = None, **declared: Any) -> Chapter:
        return Chapter.start("02_proxies", {"profile": profile, **(namespace or {})}, **declared)

    return start


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say which cell of the toy chapter is running."""

    def say(cell: str) -> None:
        monkeypatch.setattr(cells, "running", lambda: cell)

    say("chapter.figure(draw(True))")
    return say


@pytest.fixture
def glued(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    texts: dict[str, str] = {}
    monkeypatch.setattr(module, "glue", lambda name, text, display: texts.__setitem__(name, text))
    return texts


def draw() -> Figure:
    figure, axes = plt.subplots(figsize=(2, 1), dpi=50)
    axes.plot([0, 1])
    return figure


def test_start_takes_parameters_and_leaves_imports_alone(start: Any) -> None:
    chapter = start({"n_batches": 9, "math": math, "Path": Path, "_": 3, "__name__": "__main__"})
    assert chapter.params.n_batches == 9
    assert chapter.profile.sweep.n_batches == 9
    assert chapter.folder.parent == store.paths.results() / "chapters" / "02_proxies"


def test_start_refuses_mistyped_names_and_ill_typed_values(start: Any) -> None:
    with pytest.raises(AbpError, match="'n_batchs': did you mean n_batches"):
        start({"n_batchs": 40})
    with pytest.raises(AbpError, match="n_batches = 'many'"):
        start({"n_batches": "many"})


def test_the_cell_can_be_run_again_by_hand(start: Any) -> None:
    chapter = start({"n_batches": 9})
    again = start({"n_batches": 9, "chapter": chapter, "rows": [1, 2]})
    assert again.folder == chapter.folder


def test_the_key_follows_code_parameters_and_model_and_not_prose(
    start: Any, tmp_path: Path
) -> None:
    keys = [start().folder, start({"seed": 1}).folder, start({"n_batches": 5}).folder]
    (tmp_path / "model" / "config.json").write_text("{ }")
    keys.append(start().folder)
    source = tmp_path / "book" / "chapters" / "02_proxies.md"
    source.write_text(source.read_text().replace("imshow([[0, 1]", "imshow([[0, 2]"))
    keys.append(start().folder)
    (tmp_path / "data" / "paper" / "reported.json").write_text("{}")
    keys.append(start().folder)
    assert len(set(keys)) == len(keys)
    source.write_text(source.read_text() + "More.\n")
    assert start().folder == keys[-1]


def test_a_whole_chapter_leaves_files_values_and_a_manifest(
    start: Any, glued: dict[str, str], running: Any
) -> None:
    line, image, table = cells.code_cells("02_proxies")[2:]
    chapter = start()
    for cell in (line, image + "\n# changed by hand"):
        running(cell)
        chapter.figure(draw())
    files = [chapter.folder / "figures" / f"toy-image.{kind}" for kind in ("png", "svg")]
    first = [file.read_bytes() for file in files]
    chapter.figure(draw())
    assert [file.read_bytes() for file in files] == first  # the same every time
    running(table)
    chapter.table(pd.DataFrame({"a": [1 / 3]}))
    numbers = {"n": np.int64(3), "paper": 0.25, "low": 0.0, "high": 1}
    chapter.value("ch2.a.b", np.float32(0.5), **numbers, unit="side", fmt=".1f")
    chapter.finish()
    assert not plt.get_fignums()
    assert pd.read_csv(chapter.folder / "tables" / "squares.csv")["a"].item() == 1 / 3
    told = {"value": 0.5, "unit": "side", "profile": "toy"}
    assert store.read_json(chapter.folder / "values.json") == {"ch2.a.b": told | numbers}
    assert glued == {
        "ch2.a.b": "0.5",
        "ch2.a.b.n": "3",
        "ch2.a.b.paper": "0.2",
        "ch2.a.b.interval": "[0.0, 1.0]",
    }
    summary = store.summary_of(chapter.folder)
    assert summary is not None
    figures = [
        f"figures/toy-{name}.{kind}" for name in ("line", "image") for kind in ("png", "svg")
    ]
    assert summary["artefacts"] == [*figures, "tables/squares.csv"]


def test_finish_refuses_to_end_without_what_cells_tell_of(start: Any, running: Any) -> None:
    chapter = start()
    chapter.figure(draw())
    with pytest.raises(AbpError, match="without its figure toy-line, table squares"):
        chapter.finish()
    assert store.summary_of(chapter.folder) is None
    running("something = else_altogether")  # a cell of one's own
    chapter.figure(draw())
    assert (chapter.folder / "figures" / "figure-2.svg").is_file()


def test_a_figure_names_the_function_that_drew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["shown = plots.architecture(1)\nchapter.figure(shown)", "chapter.figure(draw())"]
    shell = SimpleNamespace(
        user_ns={"plots": scheme, "draw": draw, "chapter": None},
        history_manager=SimpleNamespace(input_hist_raw=sources),
    )
    monkeypatch.setattr(cells, "get_ipython", lambda: shell)
    assert cells.called("abplib.plots") is None
    sources.pop()
    assert cells.called("abplib.plots") is scheme.architecture


def test_verify_refuses_an_empty_artefact(tmp_path: Path) -> None:
    (tmp_path / "line.png").touch()
    with pytest.raises(AbpError, match=r"left line\.png missing or empty"):
        module.verify("02_proxies", tmp_path, ["line.png"])


def test_a_frame_of_numbers_is_recorded(start: Any, glued: dict[str, str]) -> None:
    frame = pd.DataFrame(
        {
            "name": ["iou", "ch2.n"],
            "value": [0.25, 7],
            "low": [0.2, math.nan],
            "high": [0.3, math.nan],
            "n": [40, None],
            "unit": ["fraction", None],
            "fmt": [None, ".0f"],
            "seeds": [(0.2, 0.3), np.nan],
        }
    )
    chapter = start()
    chapter.record(frame, fmt=".2f")
    chapter.record(frame.iloc[:1].assign(name="again").set_index("name"))
    assert glued == {
        "ch2.iou": "0.25",
        "ch2.iou.n": "40",
        "ch2.iou.interval": "[0.20, 0.30]",
        "ch2.iou.seed_sd": "0.07",
        "ch2.iou.seed_sd.n": "2",
        "ch2.n": "7",
        "ch2.again": "0.250",
        "ch2.again.n": "40",
        "ch2.again.interval": "[0.200, 0.300]",
        "ch2.again.seed_sd": "0.071",
        "ch2.again.seed_sd.n": "2",
    }


def test_what_was_decided_is_told_and_kept(start: Any, glued: dict[str, str]) -> None:
    found = Interval(np.float64(0.5), 0.25, 0.75, np.int64(3), (0.25, 0.75))  # type: ignore[arg-type]
    alone = Interval(0.5, math.nan, math.nan, 1)
    chapter = start()
    chapter.decide([ClaimCheck(key, "A claim", "4.1", "0.5", "undecided", interval)
                    for key, interval in (("a", found), ("b", alone), ("c", None))])  # fmt: skip
    assert glued == {f"ch2.verdict.{key}": "undecided" for key in "abc"}
    kept = json.loads(json.dumps(chapter._claims))
    numbers = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 3, "seeds": [0.25, 0.75]}
    assert [kept[key]["found"] for key in "abc"] == [numbers, None, None]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("center error", {"value": 1.0}, "ill-named"),
        ("ch2.a", {"value": math.nan}, "value = nan"),
        ("ch2.a", {"value": 1.0, "paper": math.inf}, "paper = inf"),
        ("ch2.a", {"value": "0.5"}, "value = '0.5'"),
        ("ch2.a", {"value": True}, "value = True"),
        ("ch2.a", {"value": 1.0, "low": 0.0}, "half an interval"),
    ],
)
def test_values_that_are_none_are_refused(
    start: Any, glued: dict[str, str], name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(AbpError, match=said):
        start().value(name, **arguments)
    assert not glued


def cells_of(chapter: str) -> list[tuple[str, int, set[str]]]:
    """Of each code cell: its source, its lines, its tags."""
    told = cells.told_cells(chapter)
    return [(s, sum(map(bool, s.split("\n"))), {*m.get("tags", ())}) for s, m in told]


HIDDEN = {"hide-input", "remove-input", "remove-cell"}


@pytest.mark.parametrize("name", CHAPTERS)
def test_cells_are_short_and_only_figures_and_tables_have_a_bar(name: str) -> None:
    for source, lines, tags in cells_of(name):
        assert lines <= 12 or tags & HIDDEN, source
        assert "hide-input" not in tags or "chapter.figure(" in source or "chapter.table(" in source
        assert "parameters" not in tags or "remove-input" in tags  # the page begins with its text


def test_less_than_half_of_the_papers_chapters_is_hidden() -> None:
    every = [cell for name in list(CHAPTERS)[:5] for cell in cells_of(name)]
    hidden = sum(lines for _, lines, tags in every if tags & HIDDEN)
    assert hidden <= 0.45 * sum(lines for _, lines, _ in every)
