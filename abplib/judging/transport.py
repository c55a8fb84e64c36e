"""What the wires over HTTP share: which failures pass, and how long a server asks to wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from abplib.core.errors import AbpError
from abplib.judging.asking import Busy

PASSING = (408, 409, 425, 429)
"""Codes below 500 that may pass; from 500 on all do."""


def failure(model: str, code: int, message: str, pause: float | None, key: str) -> Exception:
    """The exception that a response of this code stands for; `key` is kept out of its words."""
    words = " ".join(message.split())[:200].rstrip(".")
    if key:
        words = words.replace(key, "<key>")
    if code in PASSING or code >= 500:
        return Busy(f"HTTP {code}: {words}", pause)
    remedy = {
        401: "check the key in the environment",
        403: "check what the key in the environment may do",
        404: "check the model's name and the server's address",
    }.get(code, "check the model's name and what it can take")
    return AbpError(f"{model} refuses the question (HTTP {code}: {words}): {remedy}.")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the header Retry-After, which holds a number of them or a date."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def retry_info(body: Any) -> float | None:
    """Seconds to wait by a Google error's RetryInfo, such as `{"retryDelay": "17s"}`."""
    details = body.get("error", {}).get("details", []) if isinstance(body, dict) else []
    for detail in details:
        delay = str(detail.get("retryDelay", "")) if isinstance(detail, dict) else ""
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def first_set(*names: str) -> str:
    """The first of these environment variables that is set; empty where none is."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
