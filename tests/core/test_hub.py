"""Access to the hub: one sentence that names the model and how to get it."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import httpx2
import pytest
from diffusers import Flux2Pipeline
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from abplib.core import hub
from abplib.core.errors import AbpError
from abplib.core.store import digest
from abplib.editing.loading import Source
from abplib.vlm.loading import load_vlm

RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.test/a/b"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx2.ConnectError("no name"), "cannot be reached: connect .*hf download a/b"),
        (httpx2.ReadTimeout("slow"), "cannot be reached"),
        (OfflineModeIsEnabled("offline"), "cannot be reached"),
        (LocalEntryNotFoundError("not here"), "cannot be reached"),
        (GatedRepoError("gated", response=RESPONSE), "accept its terms at https://.*/a/b"),
        (RepositoryNotFoundError("none", response=RESPONSE), "knows no model a/b"),
        (RevisionNotFoundError("none", response=RESPONSE), "no such revision"),
        (HFValidationError("a b"), "'a/b' is no id of the hub: give owner/name"),
    ],
)
def test_each_failure_is_one_sentence(error: Exception, said: str) -> None:
    with pytest.raises(AbpError, match=said) as caught, hub.explained("a/b"):
        raise error
    assert "a/b" in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_is_fetched_as_one() -> None:
    assert "hf download a/b --repo-type dataset" in hub.remedy("a/b", "dataset")
    assert hub.page("a/b", "dataset").endswith("/datasets/a/b")


def test_a_model_with_a_part_of_its_weights_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert hub.cached("a/b") is None
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert hub.cached("a/b") is None
    (tmp_path / "model-2.safetensors").touch()
    assert hub.cached("a/b") == tmp_path


def test_the_hub_is_asked_once_and_the_cache_serves_where_it_is_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def silent(_api: HfApi, name: str, repo_type: str) -> None:
        asked.append(name)
        raise httpx2.ConnectError("no name")

    monkeypatch.setattr(HfApi, "auth_check", silent)
    with pytest.raises(AbpError, match=r"^nobody/never is not here"):
        load_vlm("nobody/never")  # in no time: nothing is tried again
    assert asked == ["nobody/never"]
    monkeypatch.setattr(hub, "cached", lambda _id, _revision: tmp_path)
    assert hub.only_here("nobody/never")
    monkeypatch.setattr(HfApi, "auth_check", lambda _api, name, repo_type: None)
    assert not hub.only_here("nobody/never")


@pytest.mark.usefixtures("results")
def test_the_hub_tells_the_commit_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So a system whose edits are all kept is never downloaded."""
    commits = {None: "c0ffee", "v1": "decade"}

    def tell(_api: HfApi, name: str, revision: str | None) -> ModelInfo:
        return ModelInfo(id=name, sha=commits[revision])

    monkeypatch.setattr(HfApi, "model_info", tell)
    monkeypatch.setattr(Flux2Pipeline, "download", mock.Mock(side_effect=AssertionError))
    found, tagged = (Source.find(Flux2Pipeline, "a/b", revision) for revision in commits)
    assert (found.commit, tagged.commit) == ("c0ffee", "decade")
    assert found.fingerprint != tagged.fingerprint
    monkeypatch.setattr(HfApi, "model_info", mock.Mock(side_effect=httpx2.ConnectError("no")))
    with pytest.raises(AbpError, match=r"^a/b is not here"):
        hub.commit("a/b")
    monkeypatch.setattr(hub, "_snapshot", lambda _id, _revision: tmp_path / "c0ffee")
    assert hub.commit("a/b") == "c0ffee"


def test_a_pinned_model_that_has_moved_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ABP_ROOT", str(tmp_path))
    monkeypatch.setenv("ABP_RESULTS", str(tmp_path / "results"))
    at = {"a/b": "c0ffee", "c/d": "decade"}

    def tell(_api: HfApi, name: str, revision: str | None) -> ModelInfo:
        return ModelInfo(id=name, sha=revision if revision == "facade" else at[name])

    monkeypatch.setattr(HfApi, "model_info", tell)
    with pytest.raises(AbpError, match=r"No run in .*results has taken a model"):
        hub.pin()
    assert (hub.told("a/b"), hub.content_of("a/b")) == ("a/b", digest(["a/b", None]))
    hub.commit("a/b")
    assert hub.told("a/b") == "a/b@c0ffee"
    assert hub.pin() == {"a/b@main": "c0ffee"}
    assert hub.content_of("a/b") == digest(["a/b", "c0ffee"])
    assert hub.pin() == {}
    at["a/b"] = "facade"
    hub.commit("c/d")  # not pinned yet
    with pytest.raises(
        AbpError, match=r"^a/b@main has moved: it is at facade and hub.lock holds c0ffee"
    ):
        hub.commit("a/b")
    assert hub.commit("a/b", "facade") == "facade"  # the first remedy
    assert hub.told("a/b", "facade") == "a/b@facade"
    assert hub.pin() == {"a/b@main": "facade", "c/d@main": "decade"}
    assert hub.commit("a/b") == "facade"  # the second


def test_what_was_never_fetched_is_not_here() -> None:
    assert hub.cached("nobody/never-fetched-this") is None
    assert hub.cached("not a hub id") is None


def test_an_error_that_hides_the_hub_is_explained_and_others_are_left() -> None:
    with pytest.raises(AbpError, match="hf download a/b"), hub.explained("a/b"):
        try:
            raise LocalEntryNotFoundError("not here")
        except OSError as error:
            raise OSError("could not load") from error
    with pytest.raises(KeyError), hub.explained("a/b"):
        raise KeyError("no matter of the hub")


@pytest.mark.parametrize(
    "name", ["qwen2.5vl:7b", "llava:latest", "https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct"]
)
def test_what_names_no_model_is_told_what_does(name: str) -> None:
    """Field case 34: tags of other tools and addresses were taken for functions."""
    with pytest.raises(AbpError, match=r"names no VLM: give a folder, a hub id such as org/vlm"):
        hub.source_of("vlm", name, "org/vlm")


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "vlm:7b").mkdir()
    assert hub.source_of("vlm", str(tmp_path / "vlm:7b"), "org/vlm") == str(tmp_path / "vlm:7b")
