"""A toy book, built once for the module: chapter run by papermill, pages by Jupyter Book."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import toybook
from click.testing import CliRunner
from remote import remote

from abplib.__main__ import main
from abplib.core.errors import AbpError
from abplib.profiles import CHAPTERS
from abplib.publish import notebooks, pages
from abplib.publish.dressing import typesettable

CHAPTER = "02_proxies"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkout of a toy book that has been built; its profile is `toy.yaml`."""
    folder = tmp_path_factory.mktemp("a book’s ü folder")
    with pytest.MonkeyPatch.context() as patch:
        profile = str(toybook.make(folder, patch))
        notebooks.execute(CHAPTER, {"profile": profile})
        pages.build(profile, log=lambda line: None)
        yield folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout of a toy book that has not been built."""
    toybook.make(tmp_path, monkeypatch)
    return tmp_path


def test_prose_captions_and_tables_are_on_the_page(built: Path) -> None:
    page = (built / "book" / "_build" / "html" / "chapters" / f"{CHAPTER}.html").read_text()
    for text in (">0.50<", ">0.25<", ">3<", ">[0.40, 0.60]<", "nothing here is measured"):
        assert text in page
    assert page.count("<figure") == 2
    assert page.count(">SVG</a>") == page.count(">PNG</a>") == 2 and page.count(">CSV</a>") == 1
    assert 'id="table-squares"' in page
    assert "../mathjax/tex-svg-full.js" in page
    assert (built / "book" / "_build" / "html" / "mathjax" / "tex-svg-full.js").stat().st_size > 1e6
    intro = (built / "book" / "_build" / "html" / "intro.html").read_text()
    assert "Profile <b>toy</b>: nothing here is measured." in intro
    assert ">0.50<" in intro


def test_values_are_merged(built: Path) -> None:
    values = json.loads((built / "book" / "_build" / "values.json").read_text())
    assert values["ch2.toy"]["value"] == 0.5
    assert values["ch2.toy"]["profile"] == "toy"


def test_the_ledger_is_told(built: Path) -> None:
    told = json.loads((built / "book" / "_build" / "claims.json").read_text())
    assert [row["verdict"] for row in told] == ["holds", "not testable"]
    done = CliRunner().invoke(main, ["claims"])
    assert done.stdout.splitlines() == [
        "holds: Toys are toys (1)",
        f"    3 of 3 · abp chapter {CHAPTER} -p profile {built / 'toy.yaml'}",
        "not testable: Toys are fun (2)",
        "    who would count that",
    ]


def test_new_prose_takes_the_outputs_of_the_run(built: Path) -> None:
    source = built / "book" / "chapters" / f"{CHAPTER}.md"
    good, profile = source.read_text(), str(built / "toy.yaml")
    place = notebooks.folder_of(CHAPTER, {"profile": profile})
    ran = nbformat.read(place / notebooks.EXECUTED, as_version=4)
    prose = "# A renamed chapter\n\nA paragraph.\n\n+++\n\nAnother."
    source.write_text(good.replace("# A toy chapter", prose).replace("[hide-input]", "[hide-cell]"))
    try:
        assert notebooks.folder_of(CHAPTER, {"profile": profile}) == place
        found = notebooks.as_written(CHAPTER, place)
    finally:
        source.write_text(good)
    nbformat.validate(found)
    assert found.cells[0].source.startswith("# A renamed chapter")
    assert found.cells[1].source == "Another."
    code = [[cell for cell in each.cells if cell.cell_type == "code"] for each in (found, ran)]
    for now, then in zip(*code, strict=True):
        assert (now.source, now.outputs) == (then.source, then.outputs)
    assert "injected-parameters" in code[0][1].metadata["tags"]
    assert code[0][2].metadata["tags"] == ["hide-cell"]


def test_new_captions_take_the_outputs_of_the_run(built: Path) -> None:
    source = built / "book" / "chapters" / f"{CHAPTER}.md"
    good, profile = source.read_text(), str(built / "toy.yaml")
    place = notebooks.folder_of(CHAPTER, {"profile": profile})
    source.write_text(good.replace("An image.", "A picture.").replace("of *roots*", "of `roots`"))
    try:
        assert notebooks.folder_of(CHAPTER, {"profile": profile}) == place
        cells = typesettable(notebooks.as_written(CHAPTER, place), CHAPTER).cells
    finally:
        source.write_text(good)
    captions = [c.metadata.mystnb.figure.caption for c in cells if "mystnb" in c.metadata]
    assert [caption.partition("\n")[0] for caption in captions] == [
        "A *line* with $x^2$.",
        "A picture.",
    ]
    assert all("profile toy profile, nothing here is measured" in text for text in captions)
    shown = cells[-2].outputs[0].data["text/html"]
    assert '<p class="abp-caption">Squares of <code>roots</code>.</p>' in shown
    assert shown.count("abp-caption") == 1 and "profile toy profile" in shown


def test_pages_of_a_chapter_that_has_not_run_are_refused(toy: Path) -> None:
    said = rf"{CHAPTER} has not run .*: run `python -m abplib chapter {CHAPTER} -p profile .*toy"
    with pytest.raises(AbpError, match=said):
        pages.build(str(toy / "toy.yaml"), log=lambda line: None)


def test_a_long_folder_for_temporary_files_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    for folder in (long, Path("/tmp")):
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with notebooks._sockets() as config:
            assert len(f"{config.KernelManager.ip}-12345") < 108
    assert not any(long.iterdir())


def test_a_kernel_at_work_keeps_no_file_in_the_checkout(built: Path) -> None:
    """One that is killed could not take it away again."""
    beside = set((built / "beside.txt").read_text().split())
    assert "toy.yaml" in beside
    assert beside <= {path.name for path in built.iterdir()}


def test_a_page_with_a_warning_leaves_the_last_good_book(built: Path) -> None:
    intro, page = built / "book" / "intro.md", built / "book" / "_build" / "html" / "intro.html"
    good, before = intro.read_text(), page.read_text()
    intro.write_text(good + "\n{numref}`absent`\n")
    try:
        with pytest.raises(AbpError, match=r"do not build \(.*intro\.md.*absent"):
            pages.build(str(built / "toy.yaml"), log=lambda line: None)
    finally:
        intro.write_text(good)
    assert page.read_text() == before


def test_a_failed_cell_fails_the_build_and_keeps_what_ran(built: Path) -> None:
    source = built / "book" / "chapters" / f"{CHAPTER}.md"
    good = source.read_text()
    source.write_text(good.replace("paper=0.25,", 'paper=float("nan"),'))
    try:
        with pytest.raises(AbpError, match=r"failed in cell .*ch2\.toy has paper = nan") as caught:
            notebooks.execute(CHAPTER, {"profile": str(built / "toy.yaml")})
    finally:
        source.write_text(good)
    kept = Path(str(caught.value).partition("up to there is ")[2].rstrip("."))
    assert nbformat.read(kept, as_version=4).cells[1].metadata["papermill"]["status"] == "completed"


def test_pages_that_load_from_the_network_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://fine.org">a link to follow</a><link rel="canonical" href="https://f.org">'
        '<script src="https://bad.org/1.js"></script><link rel="stylesheet" href="//bad.org/2.css">'
        '<img src="http://bad.org/3.png"><img src="here.png"><img src="data:image/png;base64,A">'
        '<script>const late = "https://bad.org/4.js"; const fine = "https://fine.org/doc";</script>'
    )
    (tmp_path / "b.css").write_text(
        '@import "https://bad.org/5.css"; a {b: url(//bad.org/6.png)} c {d: url("here.png")}'
    )
    found = [line.split(": ")[1] for line in remote(tmp_path)]
    assert [address.split("bad.org/")[1][0] for address in found] == list("123456")


def test_the_book_loads_nothing_from_the_network(built: Path) -> None:
    assert remote(built / "book" / "_build" / "html") == []


def test_two_figures_in_one_cell_are_refused() -> None:
    cell = nbformat.v4.new_code_cell("")
    cell.outputs = [
        nbformat.v4.new_output("display_data", metadata={"abp_figure": {"name": n, "made": "m"}})
        for n in ("one", "two")
    ]
    with pytest.raises(AbpError, match="figures one, two"):
        typesettable(nbformat.v4.new_notebook(cells=[cell]), CHAPTER)


def test_notebooks_follow_their_sources(toy: Path) -> None:
    assert [path.name for path in notebooks.regenerate()] == [f"{CHAPTER}.ipynb"]
    assert not notebooks.stale()
    made = nbformat.read(toy / "book" / "notebooks" / f"{CHAPTER}.ipynb", as_version=4)
    nbformat.validate(made)
    assert not any(cell.get("outputs") for cell in made.cells)
    source = toy / "book" / "chapters" / f"{CHAPTER}.md"
    source.write_text(source.read_text().replace("# A toy chapter", "# Another"))
    assert notebooks.stale()
    notebooks.regenerate()
    after = nbformat.read(toy / "book" / "notebooks" / f"{CHAPTER}.ipynb", as_version=4)
    changed = [a.id for a, b in zip(after.cells, made.cells, strict=True) if a.id != b.id]
    assert len(changed) == 1
    (toy / "book" / "notebooks" / "surplus.ipynb").touch()
    notebooks.regenerate()
    assert not (toy / "book" / "notebooks" / "surplus.ipynb").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("n_batches = None\n", "n_batches = 40\n", "disagrees with .* on n_batches"),
        ("seed = 0\n", "", "disagrees with .* on seed"),
        ("seed = 0\n", "seed = int(0)\n", "plain assignments"),
        (":tags: [parameters]", ":tags: [other]", "0 cells tagged parameters"),
    ],
)
def test_the_parameters_cell_must_agree_with_the_library(
    toy: Path, old: str, new: str, said: str
) -> None:
    source = toy / "book" / "chapters" / f"{CHAPTER}.md"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(AbpError, match=said):
        notebooks.stale()


def test_committed_notebooks_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABP_ROOT", str(toybook.REPOSITORY))
    committed = (toybook.REPOSITORY / "book" / "notebooks").glob("*.ipynb")
    assert sorted(path.stem for path in committed) == sorted(CHAPTERS)
    assert not notebooks.stale()
