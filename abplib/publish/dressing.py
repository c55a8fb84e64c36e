"""An executed notebook as its page shows it: captions, downloads, figures for light and dark."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from nbformat import NotebookNode

from abplib.core import paths, store
from abplib.core.cells import about, table_caption
from abplib.core.errors import AbpError
from abplib.publish.notebooks import EXECUTED

_SVG = "image/svg+xml"
_TABLE_CAPTION = re.compile(r'<p class="abp-caption">.*?</p>', re.DOTALL)
_OF_PAPER = re.compile(r"(?:Figure|Table) \d+[ab]? of the paper")
_BY_NIGHT = {
    "#22272e": "#e4e7eb", "#6b7480": "#a3adb8", "#d9dee4": "#3b434d",
    "#2f5d8c": "#7fb0e3", "#3f72b0": "#74a5e0", "#c8322b": "#f0736c", "#2b8a4b": "#4fb673",
    "#8a5a9e": "#b98acb", "#0b6b32": "#3aa765", "#b9c8da": "#4a5f78", "#e8eef6": "#1d2a3a",
    "#e6f3ea": "#17301f", "#f1f3f5": "#242a31", "#fbeceb": "#3a1f1d", "#fafbfc": "#1a1f26",
}  # fmt: skip
"""Colours of figures on a dark page; white turns into the page's own."""
_NIGHT = "#121212"


def typesettable(notebook: NotebookNode, name: str) -> NotebookNode:
    """The executed notebook of the chapter called `name`, as Sphinx is to see it.

    Captions are those that cells have by now, with what can be downloaded; papermill's own cell and
    records of the run (times, paths) go; a box at the end says how to run it.

    Raises:
        AbpError: two figures in one cell.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        for record in ("papermill", "execution"):
            cell.metadata.pop(record, None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if "abp_caption" not in _meta(output)]
        made = [output for output in cell.outputs if "abp_figure" in _meta(output)]
        shown = [output.metadata.pop("abp_figure") for output in made]
        if len(shown) > 1:
            names = ", ".join(figure["name"] for figure in shown)
            raise AbpError(f"One cell shows the figures {names}: give each a cell of its own.")
        for output, figure in zip(made, shown, strict=True):
            output.data[_SVG] = for_night("".join(output.data[_SVG]))
            caption = (about(cell.metadata, "figure") or {"caption": ""})["caption"].strip()
            files = " · ".join(
                _download(f"../files/{name}/figures/{figure['name']}.{kind}", kind.upper())
                for kind in ("svg", "png")
            )
            titled = _OF_PAPER.sub(r"**\g<0>**", caption, count=1)
            legend = f"{figure['made']} · {files}"
            plain = re.sub(r"[*_`$\\{}]", "", caption)
            cell.metadata["mystnb"] = {
                "figure": {"name": figure["name"], "caption": f"{titled}\n\n{legend}"},
                "image": {"alt": f"{plain} {figure['words']}"},
            }
        if table := about(cell.metadata, "table"):
            caption = table_caption(table["caption"])
            caption = _OF_PAPER.sub(r"<strong>\g<0></strong>", caption, count=1)
            link = " · " + _download(f"../files/{name}/tables/{table['name']}.csv", "CSV")
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    page = _TABLE_CAPTION.sub(lambda _: caption, "".join(output.data["text/html"]))  # noqa: B023
                    output.data["text/html"] = re.sub(r"(</p></div>)\s*$", rf"{link}\1", page)
    notebook.cells.append(nbformat.v4.new_markdown_cell(_run_this(name), id="run-this"))
    return notebook


class Figure(NamedTuple):
    """A figure of a chapter's page."""

    name: str
    alt: str

    def thumbnail(self, chapter: str) -> str:
        """HTML of the figure, small, with its link; for a page at the top of the book."""
        return (
            f'<a class="abp-thumbnail" href="chapters/{chapter}.html#{self.name}">'
            f'<img src="files/{chapter}/figures/{self.name}.svg" '
            f'alt="{html.escape(self.alt)}" loading="lazy"></a>\n'
        )


def figures(notebook: NotebookNode) -> Iterator[Figure]:
    """The figures of a typesettable notebook."""
    for cell in notebook.cells:
        shown = cell.metadata.get("mystnb", {})
        if "image" in shown:
            yield Figure(shown["figure"]["name"], shown["image"]["alt"])


def take_along(name: str, place: Path, to: Path) -> None:
    """Lay out what can be downloaded from a chapter's page: notebook, figures, tables."""
    for kind in ("figures", "tables"):
        if (place / kind).is_dir():
            shutil.copytree(place / kind, to / kind)
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(place / EXECUTED, to / f"{name}.ipynb")
    for path in to.glob("figures/*.svg"):
        store.write_text(path, for_night(path.read_text(encoding="utf-8")))


def for_night(svg: str) -> str:
    """A drawing that takes dark colours where the page around it is dark."""
    rules = [
        f'[style*="{kind}: {day}"]{{{kind}:{night}!important}}'
        for day, night in _BY_NIGHT.items()
        for kind in ("fill", "stroke")
    ]
    white = (("path", "fill"), ("path", "stroke"), ("use", "stroke"))  # letters stay as they are
    rules += [f'{tag}[style*="{k}: #ffffff"]{{{k}:{_NIGHT}!important}}' for tag, k in white]
    style = f"<style>@media (prefers-color-scheme:dark){{{''.join(rules)}}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", svg, count=1)


def _run_this(name: str) -> str:
    """The box at a chapter's end; with launch buttons where `_config.yml` names a repository."""
    notebook = f"book/notebooks/{name}.ipynb"
    links = [_download(f"../files/{name}/{name}.ipynb", "this notebook with its outputs")]
    config = yaml.safe_load((paths.root() / "_config.yml").read_text(encoding="utf-8"))
    if url := config.get("repository", {}).get("url", ""):
        branch, owned = config["repository"].get("branch", "main"), url.partition("github.com/")[2]
        binder = f"https://mybinder.org/v2/gh/{owned}/{branch}?urlpath=lab/tree/{notebook}"
        colab = f"https://colab.research.google.com/github/{owned}/blob/{branch}/{notebook}"
        links += [f'<a href="{binder}">Binder</a>', f'<a href="{colab}">Colab</a>']
    return (
        ":::{admonition} Run this\n:class: tip abp-run\n"
        f"```bash\npapermill {notebook} out.ipynb -p profile mini\n```\n"
        f'{" · ".join(links)}; <a href="../reproduce.html">how to</a>\n:::\n'
    )


def _download(href: str, words: str) -> str:
    return f'<a href="{href}" download>{words}</a>'


def _meta(output: NotebookNode) -> dict[str, Any]:
    return dict(output.get("metadata", {}))
