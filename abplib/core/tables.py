"""A frame as an HTML table that fits its page: what spreads stands under its value, small.

A cell knows its column's heading, so that a narrow screen can show each row as a card (by the
style sheet), and carries its number in full where it shows a rounded one.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

_SPREAD = re.compile(r"([-+]?[\d.,]+(?: ?%)?) (± ([\d.]+(?:e-?\d+)?)|\[[^]]*\])(.*)", re.DOTALL)
_NUMBER = re.compile(r"[-+±–]?[\d.,]*(?: ?%)?(?: \(\d+\))?")


def to_html(
    frame: pd.DataFrame,
    name: str,
    fmt: str = ".3f",
    formatters: Mapping[Any, Callable[[Any], str]] | None = None,
    *,
    rounded: bool = True,
) -> str:
    """The columns of a frame as a table with the id `table-<name>`; missing cells are dashes.

    Args:
        fmt: format of floats.
        formatters: how a column's cells are written, where `fmt` does not do.
        rounded: whether "value ± error" is shown to two significant digits of the error.
    """
    written = {
        str(column): [_written(cell, fmt, (formatters or {}).get(column)) for cell in frame[column]]
        for column in frame
    }
    numeric = {column: all(map(_is_number, cells)) for column, cells in written.items()}
    heads = "".join(
        f'<th scope="col"{_kind(numeric[column])}>{html.escape(column)}</th>'
        if column
        else "<td></td>"
        for column in written
    )
    rows = []
    for cells in zip(*written.values(), strict=True):
        first, *others = zip(written, cells, strict=True)
        shown = [f'<th scope="row">{_cell(first[1], rounded)[0]}</th>']
        for column, cell in others:
            text, full = _cell(cell, rounded)
            title = f' title="{html.escape(full)}"' if full else ""
            label = f' data-label="{html.escape(column)}"'
            shown.append(f"<td{_kind(numeric[column])}{label}{title}>{text}</td>")
        rows.append(f"<tr>{''.join(shown)}</tr>")
    wide = " abp-wide" if len(written) > 2 else ""
    return (
        f'<table class="table{wide}" id="table-{html.escape(name)}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def two_digits(value: str, error: str) -> tuple[str, str]:
    """A value and its error, both to the place of the error's second significant digit."""
    if not float(error):
        return value, error
    places = max(0, 1 - math.floor(math.log10(float(error))))
    return f"{float(value):.{places}f}", f"{float(error):.{places}f}"


def _cell(text: str, rounded: bool) -> tuple[str, str]:
    """HTML of a cell, and its text in full where the HTML says less."""
    found = _SPREAD.fullmatch(text)
    if found is None:
        return html.escape(text), ""
    value, spread, error, rest = found.groups()
    if error and rounded:
        value, error = two_digits(value, error)
        spread = f"± {error}"
    shown = f"{html.escape(value + rest)} <small>{html.escape(spread)}</small>"
    return shown, "" if f"{value} {spread}{rest}" == text else text


def _written(cell: Any, fmt: str, formatter: Callable[[Any], str] | None) -> str:
    if formatter is not None:
        return formatter(cell)
    if pd.isna(cell):
        return "–"
    return format(cell, fmt) if isinstance(cell, float) else str(cell)


def _is_number(text: str) -> bool:
    found = _SPREAD.fullmatch(text)
    return bool(_NUMBER.fullmatch(text) or (found and len(found[4]) < 4))


def _kind(numeric: bool) -> str:
    return ' class="abp-number"' if numeric else ""
