"""Who can be asked: Gemini (the paper's judge), and any server of chat completions.

Retries are those of the clients' own packages, `google-genai` and `openai`: a busy or broken server
is asked again after a pause that grows, or that the server names. Keys and addresses come from the
environment, and only when a question has to be asked: a record that holds every answer needs none,
nor the packages.
"""

from __future__ import annotations

import importlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx2

from abplib.core import images
from abplib.core.errors import AbpError
from abplib.judging.asking import REFUSALS, Question, Reply, Scores

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
"""Environment variables that may hold Gemini's key."""
ADDRESS, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
"""Those of a server of chat completions, of which the address has the version, such as
`http://localhost:8000/v1`; the key may be missing where the server wants none."""

TRIES = 8
"""Calls for one answer, before a failing server is given up."""
TIMEOUT = 300.0
"""Seconds for one call."""
GREEDY = {"temperature": 0.0}
"""Which servers answer much alike but not always the same: hence the repeats."""


@dataclass(frozen=True)
class Gemini:
    """A `Wire` to the Gemini API: one call of `generateContent` for structured output."""

    model: str = "gemini-2.5-pro"

    def ask(self, question: Question) -> Reply:
        """See `Wire.ask`."""
        client, types = self._client, package("google.genai.types")
        shown = [types.Part.from_bytes(data=images.png(image), mime_type="image/png")
                 for image in question.images]  # fmt: skip
        config = types.GenerateContentConfig(
            response_mime_type="application/json",
            response_json_schema=Scores.model_json_schema(),
            should_return_http_response=True,  # as it came: nothing of it is refused here
            **GREEDY,
        )
        try:
            response = client.models.generate_content(
                model=self.model, contents=[*shown, question.prompt], config=config
            )
        except package("google.genai.errors").APIError as error:
            raise failure(self.model, error.code, error.details, KEYS) from None
        body = json.loads(response.sdk_http_response.body)
        blocked = _at(body, "promptFeedback", "blockReason")
        return _reply(
            body,
            self.model,
            said=_at(body, "candidates", 0, "content", "parts"),
            ended=blocked or _at(body, "candidates", 0, "finishReason"),
            version=_at(body, "modelVersion"),
            tokens=(
                _at(body, "usageMetadata", "promptTokenCount"),
                _at(body, "usageMetadata", "candidatesTokenCount"),
            ),
        )

    @cached_property
    def _client(self) -> Any:
        return gemini_client(self.model)


@dataclass(frozen=True)
class OpenAICompatible:
    """A `Wire` to any server of chat completions with images and JSON schemas: vLLM, Ollama, ..."""

    model: str

    def ask(self, question: Question) -> Reply:
        """See `Wire.ask`."""
        shown = [{"type": "image_url", "image_url": {"url": images.data_url(image)}}
                 for image in question.images]  # fmt: skip
        content = [*shown, {"type": "text", "text": question.prompt}]
        schema = {"name": "scores", "strict": True, "schema": Scores.model_json_schema()}
        chat = self._client.chat.completions.with_raw_response
        try:
            response = chat.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                response_format={"type": "json_schema", "json_schema": schema},
                **GREEDY,
            )
        except package("openai").APIStatusError as error:
            raise failure(self.model, error.status_code, error.response.text, (KEY,)) from None
        body = json.loads(response.text)
        choice = _at(body, "choices", 0)
        refusal = _at(choice, "message", "refusal")
        return _reply(
            body,
            self.model,
            said=_at(choice, "message", "content"),
            ended=f"refusal: {refusal}" if refusal else _at(choice, "finish_reason"),
            version=_at(body, "model"),
            tokens=(_at(body, "usage", "prompt_tokens"), _at(body, "usage", "completion_tokens")),
        )

    @cached_property
    def _client(self) -> Any:
        if not os.environ.get(ADDRESS):
            raise AbpError(
                f"{self.model} has to be asked, and its server is not known: set {ADDRESS} (such "
                "as http://localhost:8000/v1), or restore the record of its answers."
            )
        return package("openai").OpenAI(
            api_key=os.environ.get(KEY) or "none",
            timeout=TIMEOUT,
            max_retries=TRIES - 1,
            http_client=httpx2.Client(transport=Statuses()),
        )


class Statuses(httpx2.HTTPTransport):
    """HTTP whose every failure is a status, so that the clients' rules of retrying hold.

    No connection is a 503, a reply of success that is no JSON a 502, and an error object that comes
    as success (as gateways send it) what its own code says.
    """

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The server's response, or one that says what happened to it."""
        try:
            response = super().handle_request(request)
            response.request = request
            response.read()
            body = response.json()
        except httpx2.HTTPError as error:
            return _said(503, type(error).__name__)
        except (ValueError, RecursionError):
            return response if response.status_code != 200 else _said(502, "it sent no JSON")
        told = _at(body, "error")
        if response.status_code == 200 and told:
            code = _at(told, "code")
            known = isinstance(code, int) and 400 <= code < 600
            return _said(code if known else 502, _at(told, "message") or told)
        return response


def gemini_client(model: str) -> Any:
    """A `google.genai.Client` that tries again; AbpError without the package or a key."""
    types = package("google.genai.types")
    key = next(filter(None, map(os.environ.get, KEYS)), None)
    if key is None:
        raise AbpError(
            f"{model} has to be asked, and there is no key: set {KEYS[0]}, or restore the record "
            "of its answers."
        )
    options = types.HttpOptions(
        timeout=round(1000 * TIMEOUT),
        retry_options=types.HttpRetryOptions(attempts=TRIES),
        client_args={"transport": Statuses()},
    )
    return package("google.genai").Client(api_key=key, vertexai=False, http_options=options)


def failure(model: str, code: int, said: object, keys: tuple[str, ...]) -> AbpError:
    """What a server's last word means, by its HTTP code; no key is in the sentence."""
    if isinstance(said, str):
        with suppress(ValueError):
            said = json.loads(said)
    words = _at(said, "error", "message") or _at(said, "message") or said
    words = " ".join(str(words).split())[:200].rstrip(".")
    for key in filter(None, map(os.environ.get, keys)):
        words = words.replace(key, "<key>")
    if code in (408, 409, 425, 429) or code >= 500:
        return AbpError(
            f"{model} gave no answer in {TRIES} tries (HTTP {code}: {words}): run again later, the "
            "answers so far are kept."
        )
    bad_key = code == 401 or "api key" in str(said).lower()  # Gemini has 400 for it
    remedy = {
        402: "check the account that pays for it",
        403: f"check what the key in {keys[0]} may do",
        404: "check the model's name and the server's address",
    }.get(code, "check the model's name and what it can take")
    if bad_key:
        remedy = f"check the key in {keys[0]}"
    return AbpError(f"{model} refuses the question (HTTP {code}: {words}): {remedy}.")


def package(name: str) -> Any:
    """A module of the optional `judges`; AbpError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AbpError(f'{name} is not installed: run `pip install "abplib[judges]"`.') from error


def _said(code: int, words: object) -> httpx2.Response:
    return httpx2.Response(code, json={"error": {"code": code, "message": words}})


def _reply(
    body: Any, model: str, *, said: Any, ended: Any, version: Any, tokens: tuple[Any, Any]
) -> Reply:
    """A reply from what lies where the server's format has it, whatever that is."""
    text, word = _text(said), _clean(ended)
    refused = word.partition(":")[0] in REFUSALS
    tokens_in, tokens_out = map(_count, tokens)
    return Reply(
        text=_clean(text or json.dumps(body)),
        version=_clean(version) or model,
        refusal=word if word and (refused or not text) else None,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )


def _text(said: Any) -> str:
    """An answer in one piece, or in those that are neither thought nor of another kind."""
    if isinstance(said, str):
        return said
    return "".join(
        piece["text"]
        for piece in (said if isinstance(said, list) else ())
        if isinstance(_at(piece, "text"), str)
        and piece.get("type", "text") == "text"
        and not piece.get("thought")
    )


def _at(value: Any, *path: str | int) -> Any:
    """What lies at a place in JSON; None where there is no such place."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _clean(text: Any) -> str:
    """Without halves of characters, which no file can hold; empty where it is no text."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None
