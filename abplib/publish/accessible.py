"""A Sphinx extension that mends markup which screen readers stumble over, and marks verdicts."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_MENDED = (
    # a list's children are its items
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # what the paper's claims came to
    (r'<(span class="pasted-text|td data-label="verdict)">(holds|does not hold|undecided)<',
     lambda m: f'<{m[1]}" data-verdict="{m[2]}">{m[2]}<'),
)  # fmt: skip


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx; `_config.yml` names this module among the extensions."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True}


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    body = context.get("body", "")
    for pattern, mended in _MENDED:
        body = re.sub(pattern, mended, body)
    context["body"] = body
