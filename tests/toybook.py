"""A book of one chapter that takes a second, with a world and a model of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

WORLD = """
from pathlib import Path

from PIL import Image

from abplib.samples.base import Sample


class Toys:
    name = "toys"
    fingerprint = "0123456789abcdef"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Sample(str(index), Image.new("RGB", (8, 8)), "move it", (0.0, 0.0, 0.5, 0.5))


def toys():
    return Toys()
"""

PROFILE = """
name: toy
title: toy profile
note: nothing here is measured
vlm: model
image_area: 64
eval_set: toyworld:toys
train_set: toyworld:toys
tuning_set: toyworld:toys
n_eval: 3
labels: exact
sweep:
  n_batches: 4
  batch_size: 2
  micro_batch: 2
  lr: 1.0e-3
  width: 8
  n_queries: 2
  n_heads: 2
  eval_every: 2
  n_curve_eval: 3
"""

CHAPTER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A toy chapter

```{code-cell} ipython3
:tags: [parameters]

profile = "mini"
vlm = None
n_samples = None
seed = 0
n_batches = None
batch_size = None
lr = None
```

```{code-cell} ipython3
:tags: [hide-input]

from abplib.chapter import Chapter

chapter = Chapter.start("02_proxies", globals())
```

The number is {glue:text}`ch2.toy:s`, the paper's {glue:text}`ch2.toy.paper:s`, over
{glue:text}`ch2.toy.n:s` samples, in {glue:text}`ch2.toy.interval:s`; see {numref}`toy-line`.

$$ \\boldsymbol{A}_{h,q}^{(l)} = \\sum_i a_{h,q}^{(l,i)} $$

```{code-cell} ipython3
---
mystnb:
  figure:
    name: toy-line
    caption: A *line* with $x^2$.
---
import matplotlib.pyplot as plt
import pandas as pd

from pathlib import Path

from abplib.sections.claims import ClaimCheck

Path("beside.txt").write_text(" ".join(sorted(path.name for path in Path.cwd().iterdir())))
Path("ran.txt").open("a").write("x")


def draw(image):
    figure, axes = plt.subplots(figsize=(4, 3))
    if image:
        axes.imshow([[0, 1], [1, 0]])
    else:
        axes.plot([0, 1], [0, chapter.profile.sweep.n_batches])
    return figure


chapter.value("ch2.toy", 0.5, n=len(chapter.experiment.training), unit="fraction", paper=0.25,
              low=0.4, high=0.6, fmt=".2f")
chapter.decide([ClaimCheck("toys", "Toys are toys", "1", "3 of 3", "holds")])
chapter.figure(draw(False))
```

```{code-cell} ipython3
---
mystnb:
  figure:
    name: toy-image
    caption: An image.
---
chapter.figure(draw(True))
```

```{code-cell} ipython3
---
table:
  name: squares
  caption: Squares of *roots*.
---
frame = pd.DataFrame({"square": [1.0, 4.0], "a rather wide column " * 6: ["x", "y"]},
                     index=pd.Index([1, 2], name="root"))
chapter.table(frame)
chapter.finish()
```
"""

INTRO = """# A toy book

```{include} made/note.txt
```

The chapter says {glue:text}`chapters/02_proxies.ipynb::ch2.toy:s`, as in {cite}`li2023blip2`.

```{bibliography}
```
"""

CLAIMS = """
- {claim: Toys are toys, where: "1", check: ch2.toys}
- {claim: Toys are fun, where: "2", why: who would count that}
"""

TOC = """
format: jb-book
root: intro
chapters:
  - file: chapters/02_proxies
"""


def make(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Lay the toy book out under `folder` and work there; returns the path of its profile."""
    (folder / "book" / "chapters").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "data" / "paper").mkdir(parents=True)
    for name, text in {
        "toyworld.py": WORLD,
        "toy.yaml": PROFILE,
        "model/config.json": "{}",
        "book/_toc.yml": TOC,
        "book/intro.md": INTRO,
        "data/paper/claims.yaml": CLAIMS,
        "book/chapters/02_proxies.md": CHAPTER,
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(REPOSITORY / "_config.yml", folder)
    shutil.copy(REPOSITORY / "book" / "references.bib", folder / "book")
    shutil.copytree(REPOSITORY / "book" / "_static", folder / "book" / "_static")
    patch.setenv("ABP_ROOT", str(folder))
    patch.delenv("ABP_RESULTS", raising=False)
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)  # for the chapter's kernel
    patch.syspath_prepend(folder)
    patch.chdir(folder)
    return folder / "toy.yaml"
