"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, SGLang, OpenAI itself, ...

Address and key come from the environment and are read when a question has to be asked.
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

ADDRESS, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
"""Environment variables; the key may be missing where the server wants none."""


@dataclass(frozen=True)
class OpenAICompatible:
    """A `Wire` to a server of chat completions with images and JSON schemas."""

    model: str
    address: str | None = None
    """With the version, such as `http://localhost:8000/v1`; None for the environment's."""
    timeout: float = 120.0
    """Seconds for one call."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """As greedy as the server is."""
        return {"temperature": 0.0}

    def ask(self, question: Question) -> Reply:
        """One POST to `/chat/completions`.

        Raises:
            Busy: the server is, or cannot be reached, or sends what is no response.
            AbpError: no address is known, or the server will not take the question.
        """
        shown = [
            {"type": "image_url", "image_url": {"url": images.data_url(image)}}
            for image in question.images
        ]
        content = [*shown, {"type": "text", "text": question.prompt}]
        schema = {"name": "scores", "strict": True, "schema": Scores.model_json_schema()}
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            **self.settings,
        }
        client = self._client
        try:
            response = client.post("chat/completions", json=body)
        except httpx2.HTTPError as error:
            raise Busy(type(error).__name__) from None
        if response.status_code != 200:
            pause, key = transport.retry_after(response.headers), transport.first_set(KEY)
            raise transport.failure(self.model, response.status_code, response.text, pause, key)
        try:
            return self._reply(response.json())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Busy("a response that is no chat completion") from None

    def _reply(self, body: Any) -> Reply:
        choice, used = body["choices"][0], body.get("usage") or {}
        text, refusal = choice["message"].get("content") or "", choice["message"].get("refusal")
        if not text and not refusal:
            refusal = choice.get("finish_reason") or "no answer"
        elif choice.get("finish_reason") == "content_filter":
            refusal = "content_filter"
        version = body.get("model") or self.model
        return Reply(
            text, version, refusal, used.get("prompt_tokens"), used.get("completion_tokens")
        )

    @cached_property
    def _client(self) -> httpx2.Client:
        address, key = self.address or transport.first_set(ADDRESS), transport.first_set(KEY)
        if not address:
            raise AbpError(
                f"{self.model} has to be asked, and its server is not known: set {ADDRESS} (such "
                "as http://localhost:8000/v1), or restore the record of its answers."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(
            base_url=address.rstrip("/") + "/", headers=headers, timeout=self.timeout
        )
