"""Gemini through google-genai, the paper's judge (section 4.6).

The key is read from the environment when a question has to be asked, and only then: a record that
holds every answer needs none, nor the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx2

from abplib.core import images
from abplib.core.errors import AbpError
from abplib.judging import transport
from abplib.judging.asking import Busy, Reply
from abplib.judging.questions import Question, Scores

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
"""Environment variables that may hold the key."""


@dataclass(frozen=True)
class Gemini:
    """A `Wire` to the Gemini API."""

    model: str = "gemini-2.5-pro"
    timeout: float = 120.0
    """Seconds for one call."""
    address: str | None = None
    """Another server that speaks the same."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Greedy, which Gemini answers much alike but not always the same: hence the repeats."""
        return {"temperature": 0.0}

    def ask(self, question: Question) -> Reply:
        """One call of `generateContent` for structured output.

        Raises:
            Busy: the server is, or cannot be reached, or sends what is no response.
            AbpError: google-genai or the key is missing, or the server will not take the question.
        """
        from google.genai import errors, types

        parts: list[Any] = [
            types.Part.from_bytes(data=images.png(image), mime_type="image/png")
            for image in question.images
        ]
        config = types.GenerateContentConfig(
            response_mime_type="application/json",
            response_json_schema=Scores.model_json_schema(),
            **self.settings,
        )
        client = self._client  # one that is not referred to closes its connections
        try:
            response = client.models.generate_content(
                model=self.model, contents=[*parts, question.prompt], config=config
            )
        except errors.APIError as error:
            pause = transport.retry_info(error.details)
            if pause is None:
                pause = transport.retry_after(getattr(error.response, "headers", {}))
            message = error.message or error.status or ""
            raise transport.failure(self.model, error.code, message, pause, self._key) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise Busy(type(error).__name__) from None
        return self._reply(response)

    def _reply(self, response: Any) -> Reply:
        """What a response says; one without text is a refusal."""
        feedback, used = response.prompt_feedback, response.usage_metadata
        candidate = response.candidates[0] if response.candidates else None
        spoken = candidate.content.parts if candidate and candidate.content else None
        text = "".join(part.text or "" for part in spoken or () if not part.thought)
        blocked = feedback.block_reason if feedback else None
        ended = candidate.finish_reason if candidate else None
        why = blocked or ended
        return Reply(
            text,
            response.model_version or self.model,
            None if text and not blocked else (why.value if why else "no answer"),
            used.prompt_token_count if used else None,
            used.candidates_token_count if used else None,
        )

    @cached_property
    def _key(self) -> str:
        key = transport.first_set(*KEYS)
        if not key:
            raise AbpError(
                f"{self.model} has to be asked, and there is no key: set {KEYS[0]}, or restore the "
                "record of its answers."
            )
        return key

    @cached_property
    def _client(self) -> Any:
        key = self._key
        try:
            from google import genai
            from google.genai import types
        except ImportError as error:
            raise AbpError(
                'google-genai is not installed: run `pip install "abplib[judges]"`.'
            ) from error
        options = types.HttpOptions(base_url=self.address, timeout=round(1000 * self.timeout))
        return genai.Client(api_key=key, vertexai=False, http_options=options)
