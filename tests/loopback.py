"""A server on this machine that speaks Gemini's and OpenAI's wire formats, and fails on demand."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from abplib.core import images

KEY = "loopback-key-0123456789abcdef"
"""What the server takes as a key; no file may hold it."""

FAULTS = (
    "429", "429 with a pause", "500", "503", "hang up", "broken body",
    "cut off", "out of range", "off schema", "no JSON",
)  # fmt: skip
UNPAID = frozenset(FAULTS[:6])
"""After these, nothing was answered; the others are answers that cannot be used."""


def expected(edit: str) -> dict[str, Any]:
    """The server's opinion of an edit, by the SHA-256 of its pixels."""
    chosen = random.Random(edit)
    scores = {name: chosen.randint(0, 4) for name in ("edit", "accuracy", "leakage")}
    return {"reason": f"Seen {edit[:8]}.", **scores}


def hurry(patch: pytest.MonkeyPatch) -> None:
    """No pauses of a second between tries."""
    patch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    patch.setattr("google.genai._api_client._RETRY_INITIAL_DELAY", 0.001)
    patch.setattr("google.genai._api_client._RETRY_JITTER", 0.001)
    patch.setattr("google.genai._api_client._RETRY_EXP_BASE", 1.0)


class Loopback:
    """The server: what it was asked, and what it did."""

    def __init__(self, faults: float | Sequence[str] = 0.0, seed: int = 0) -> None:
        """`faults`: what part of the calls fail, at random, or how the first calls go in turn."""
        self.paid: Counter[str] = Counter()
        """Answers that can be used, refusals too, by the SHA-256 of the edit's pixels."""
        self.wasted: Counter[str] = Counter()
        """Answers that cannot be used."""
        self.calls = 0
        self.prompts: set[str] = set()
        self.refused: set[str] = set()
        """SHA-256 of edits that the judge will not look at."""
        self.before_reply: Callable[[int], object] = lambda calls: None
        """Called with the number of calls so far, before each reply."""
        self.raw: list[tuple[int, bytes]] = []
        """Codes and bodies of the next replies, whatever was asked."""
        self.slow = threading.Event()
        """What a slow reply waits for."""
        self._script = iter(faults) if not isinstance(faults, float) else None
        self._rate = faults if isinstance(faults, float) else 0.0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                loopback._serve(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def _serve(self, handler: Any, body: Any) -> None:
        gemini = ":generateContent" in handler.path
        text, shown, schema = (_gemini_request if gemini else _openai_request)(handler, body)
        edit = images.digest(shown[2])
        with self._lock:
            self.calls += 1
            calls = self.calls
            fault = self._next_fault()
            if edit in self.refused and fault not in UNPAID:
                fault = None
            self.prompts.add(text)
            if fault is None:
                self.paid[edit] += 1
            elif fault not in UNPAID:
                self.wasted[edit] += 1
        self.before_reply(calls)
        if self.raw:
            _send(handler, *self.raw.pop(0))
            return
        if not _authorised(handler, gemini):
            _send(handler, 401, _error(401, f"API key not valid: {handler.headers}", gemini))
            return
        if len(shown) != 3 or set(schema["properties"]) != set(expected(edit)):
            _send(handler, 400, _error(400, "not the request that was agreed on", gemini))
            return
        if fault in UNPAID:
            _fail(handler, fault, gemini)
            return
        answer = _spoiled(expected(edit), fault)
        refused = edit in self.refused
        _send(handler, 200, (_gemini_body if gemini else _openai_body)(answer, refused, body))

    def _next_fault(self) -> str | None:
        if self._script is not None:
            return next(self._script, "") or None
        return self._random.choice(FAULTS) if self._random.random() < self._rate else None


@contextmanager
def serving(faults: float | Sequence[str] = 0.0, seed: int = 0) -> Iterator[Loopback]:
    """A running server, where the clients made meanwhile find it; stopped at the end."""
    loopback = Loopback(faults, seed)
    thread = threading.Thread(target=loopback.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{loopback.server.server_port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GOOGLE_GEMINI_BASE_URL", address)
            patch.setenv("OPENAI_BASE_URL", address + "/v1")
            yield loopback
    finally:
        loopback.server.shutdown()
        loopback.server.server_close()


def _authorised(handler: Any, gemini: bool) -> bool:
    if gemini:
        return bool(handler.headers["x-goog-api-key"] == KEY)
    return bool(handler.headers["Authorization"] == f"Bearer {KEY}")


def _gemini_request(handler: Any, body: Any) -> tuple[str, list[Image.Image], Any]:
    parts = body["contents"][0]["parts"]
    settings = body["generationConfig"]
    assert settings["responseMimeType"] == "application/json"
    shown = [_image(part["inlineData"]["data"]) for part in parts if "inlineData" in part]
    text = "".join(part.get("text", "") for part in parts)
    return text, shown, settings["responseJsonSchema"]


def _openai_request(handler: Any, body: Any) -> tuple[str, list[Image.Image], Any]:
    assert handler.path == "/v1/chat/completions"
    parts = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    shown = [_image(url.removeprefix("data:image/png;base64,")) for url in urls]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return text, shown, body["response_format"]["json_schema"]["schema"]


def _image(data: str) -> Image.Image:
    standard = data.translate(str.maketrans("-_", "+/"))  # both alphabets are in use
    return Image.open(io.BytesIO(base64.b64decode(standard)))


def _spoiled(answer: dict[str, Any], fault: str | None) -> str:
    whole = json.dumps(answer)
    match fault:
        case "cut off":
            return whole[: len(whole) // 2]
        case "out of range":
            return json.dumps({**answer, "leakage": 5})
        case "off schema":
            return json.dumps({name: answer[name] for name in ("reason", "edit")})
        case "no JSON":
            return "I would give this edit 4 out of 4."
        case _:
            return whole


def _gemini_body(answer: str, refused: bool, body: Any) -> bytes:
    used = {"promptTokenCount": 900, "candidatesTokenCount": 60, "totalTokenCount": 960}
    said: dict[str, Any] = {"usageMetadata": used, "modelVersion": "gemini-2.5-pro"}
    if refused:
        said["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
    else:
        content = {"role": "model", "parts": [{"text": answer}]}
        said["candidates"] = [{"content": content, "finishReason": "STOP", "index": 0}]
    return json.dumps(said).encode()


def _openai_body(answer: str, refused: bool, body: Any) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": answer, "refusal": None}
    if refused:
        message |= {"content": None, "refusal": "I cannot help with that."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    used = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
    said = {"id": "c", "object": "chat.completion", "model": body["model"], "usage": used}
    return json.dumps({**said, "choices": [choice]}).encode()


def _error(code: int, message: str, gemini: bool, pause: str | None = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message, "status": "UNAVAILABLE"}
    if gemini and pause:
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        error["details"] = [{"@type": kind, "retryDelay": f"{pause}s"}]
    return json.dumps({"error": error}).encode()


def _fail(handler: Any, fault: str, gemini: bool) -> None:
    if fault == "hang up":
        handler.close_connection = True
        handler.connection.close()
    elif fault == "broken body":
        _send(handler, 200, b'{"candidates": [{"content"')
    elif fault == "429 with a pause":
        headers = {} if gemini else {"Retry-After": "0.02"}
        _send(handler, 429, _error(429, "slow down", gemini, "0.02"), headers)
    else:
        _send(handler, int(fault), _error(int(fault), "not now", gemini))


def _send(handler: Any, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(code)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
