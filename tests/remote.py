"""What pages load from the network; a book loads nothing from there."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"link": "href", "object": "data"}
"""By what a tag loads something; others by `src`."""
_CSS_REMOTE = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")
_SCRIPT_REMOTE = re.compile(r"""["']((?:https?:)?//[^"'\s]*\.m?js)\b""")


def remote(html: Path) -> list[str]:
    """What pages and style sheets under `html` load from the network, as `file: address`."""
    found = []
    for path in sorted(html.rglob("*.html")):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: {address}" for address in page.remote]
    for path in sorted(html.rglob("*.css")):
        addresses = _CSS_REMOTE.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: {address}" for address in addresses]
    return found


class _Loads(HTMLParser):
    """Collects the remote addresses that a page loads by itself; links to follow are fine."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        address = attributes.get(_LOADS.get(tag, "src")) or ""
        if attributes.get("rel") != "canonical" and address.startswith(("http:", "https:", "//")):
            self.remote.append(address)

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.remote += _SCRIPT_REMOTE.findall(data)
