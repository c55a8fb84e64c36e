"""The one exception of the library: a sentence that names the thing and the remedy."""

from __future__ import annotations


class AbpError(ValueError):
    """A failure that its message explains in one sentence, remedy included."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"AbpError: {self}"]
