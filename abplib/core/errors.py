"""The one exception of the library: a sentence that names the thing and the remedy."""

from __future__ import annotations

import re

from pydantic import ValidationError


class AbpError(ValueError):
    """A failure that its message explains in one sentence, remedy included."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"AbpError: {self}"]


def explain(error: ValidationError) -> str:
    """Pydantic's findings as part of one sentence: names, values and what was expected."""
    findings = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        expected = item["msg"].removeprefix("Value error, ").rstrip(".")
        expected = re.sub(r"^(Input|String) should", "it should", expected)
        match item["type"]:
            case "extra_forbidden":
                findings.append(f"{place} is not a known name")
            case "missing":
                findings.append(f"{place} is missing")
            case _ if isinstance(item["input"], dict | list):  # too much to repeat
                findings.append(f"{place}: {expected}" if place else expected)
            case _:
                findings.append(f"{place} = {item['input']!r} is refused, {expected}")
    return "; ".join(findings)
