"""The models of appendix A.2 behind their interfaces, on tiny twins and a server's wire format."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import noise
from diffusers import BriaFiboPipeline
from familytwins import mistral3
from hubcache import lay
from othertwins import smoke_fibo

from abplib.core.errors import AbpError
from abplib.judging.clients import KEYS
from recipes.multi_entity.models import (
    FIBO,
    MISTRAL,
    NO_PHOTOGRAPH,
    PROCESSOR,
    FiboPainter,
    GeminiWriter,
    MistralDescriber,
)


class _Server(BaseHTTPRequestHandler):
    """Answers as Gemini does: with the system prompt and the request, put together."""

    status = 200
    text: str | None = None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        system = asked["systemInstruction"]["parts"][0]["text"]
        request = asked["contents"][0]["parts"][0]["text"]
        said = f"{system} / {request}" if self.text is None else self.text
        if schema := asked.get("generationConfig", {}).get("responseJsonSchema"):
            said = json.dumps(schema)
        answer = {"candidates": [{"content": {"parts": [{"text": said}]}, "finishReason": "STOP"}]}
        error = {"error": {"code": self.status, "status": "INVALID", "message": "no"}}
        body = json.dumps(answer if self.status == 200 else error).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server on this machine, and a key to go with it."""
    monkeypatch.setenv(KEYS[0], "not-a-key")
    monkeypatch.setattr(_Server, "status", 200)
    monkeypatch.setattr(_Server, "text", None)
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("server")
def test_gemini_is_given_the_system_prompt() -> None:
    writer, schema = GeminiWriter(), {"type": "array"}
    assert writer.write("be brief", "who") == "be brief / who"
    assert json.loads(writer.write("be brief", "who", schema)) == schema


@pytest.mark.usefixtures("server")
def test_gemini_without_text_or_key_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = GeminiWriter()
    monkeypatch.setattr(_Server, "text", "")
    with pytest.raises(AbpError, match="answered without text"):
        writer.write("s", "r")
    monkeypatch.setattr(_Server, "status", 400)
    with pytest.raises(AbpError, match=r"refuses the question \(HTTP 400: no\)"):
        writer.write("s", "r")
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(AbpError, match=f"there is no key: set {KEYS[0]}"):
        GeminiWriter().write("s", "r")


@pytest.mark.parametrize(
    ("medium", "negative"), [("Photograph", NO_PHOTOGRAPH), ("oil painting", ""), (None, "")]
)
def test_fibo_paints_as_its_own_script_does(medium: str | None, negative: str) -> None:
    class Pipeline:
        def __call__(self, generator: torch.Generator, **given: object) -> object:
            self.asked = given | {"seed": generator.initial_seed()}
            return type("Output", (), {"images": [noise(8, 8)]})()

    pipeline, prompt = Pipeline(), json.dumps({"objects": [], "style_medium": medium})
    assert FiboPainter(pipeline).paint(prompt, 5).size == (8, 8)
    settings = {"negative_prompt": negative, "num_inference_steps": 50}
    assert pipeline.asked == {"prompt": prompt, "seed": 5, **settings}


def test_mistral_describes_with_the_papers_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = mistral3()
    generate = model.generate
    used: dict[str, Any] = {}

    def spy(**given: object) -> object:
        used.update(given)
        return generate(**{**given, "max_new_tokens": 12})

    monkeypatch.setattr(model, "generate", spy)
    describer = MistralDescriber(model, processor, seed=3)
    state = torch.random.get_rng_state()
    answer = describer.describe("You see two images.", noise(64, 32))
    assert describer.describe("You see two images.", noise(64, 32)) == answer
    assert torch.equal(torch.random.get_rng_state(), state)
    asked = {"temperature": 0.1, "repetition_penalty": 1.1, "max_new_tokens": 256}
    assert asked.items() <= used.items()
    text = processor.tokenizer.decode(used["input_ids"][0])
    assert "[SYSTEM_PROMPT]You see two images.[/SYSTEM_PROMPT][INST]" in text


def test_models_come_from_hub_ids_and_mistral_has_the_processor_of_another(
    hub_cache: Path, tmp_path: Path
) -> None:
    model, processor = mistral3()
    model.save_pretrained(tmp_path / "model")
    lay(hub_cache, MISTRAL, tmp_path / "model", "a" * 40)
    with pytest.raises(AbpError, match=rf"^{PROCESSOR} is not here"):
        MistralDescriber.from_pretrained()
    processor.save_pretrained(tmp_path / "processor")
    lay(hub_cache, PROCESSOR, tmp_path / "processor", "b" * 40)
    with pytest.raises(AbpError, match=rf"^{FIBO} is not here .*hf download {FIBO}"):
        FiboPainter.from_pretrained()
    lay(hub_cache, FIBO, smoke_fibo(), "c" * 40)
    assert "[IMG]" in MistralDescriber.from_pretrained().processor.tokenizer.get_vocab()
    assert isinstance(FiboPainter.from_pretrained().pipeline, BriaFiboPipeline)
