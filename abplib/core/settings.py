"""What a person may set: frozen, and strict about names and types."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Number, Field(gt=0, le=1)]
"""A learning rate."""
