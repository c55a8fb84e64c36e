"""An experiment: a profile made real, each part when it is first asked for.

The one place where models, sample sets, labels, proxies and judges are put together, so that all
chapters, commands and steps find the same results. Importing models takes seconds: each is imported
where it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.core.hub import content_of, function_of, source_of
from abplib.core.store import digest, digest_files, read_json
from abplib.profiles import LABELS_FILE, OtherEditorName, Profile
from abplib.samples.base import SampleSet, check_number

if TYPE_CHECKING:
    import torch

    from abplib.editing.loading import PipelineEditor
    from abplib.editing.qwen_image_edit import QwenImageEditor
    from abplib.judging.base import Judge
    from abplib.judging.preservation import Preservation
    from abplib.proxies.attention import ProxyAttention
    from abplib.proxies.configurations import Configuration
    from abplib.proxies.labels import Labels
    from abplib.proxies.selection import GuidingProxy
    from abplib.proxies.sweep import Sweep
    from abplib.vlm.encoder import ConditionEncoder


@dataclass(frozen=True, eq=False)
class Experiment:
    """One profile under one seed; parts that are missing end in an AbpError that names them."""

    profile: Profile
    seed: int = 0

    @cached_property
    def evaluation(self) -> SampleSet:
        """The samples that results are measured on, of which the first `n` are used."""
        whole, n = _sample_set(self.profile.eval_set), self.profile.n_eval
        check_number(n, whole)
        return self._usable(whole, max(n, min(self.profile.sweep.n_curve_eval, len(whole))))

    @property
    def n(self) -> int:
        """Samples evaluated: those of the first `profile.n_eval` that can be used."""
        from abplib.vlm.usable import n_usable

        return n_usable(self.evaluation, self.profile.n_eval)

    @cached_property
    def training(self) -> SampleSet:
        """The samples that proxies are trained on."""
        return _sample_set(self.profile.train_set)

    @cached_property
    def tuning(self) -> SampleSet:
        """The samples that choices are made on, which can be used."""
        whole = _sample_set(self.profile.tuning_set)
        return self._usable(whole, len(whole)) if len(whole) else whole

    @property
    def lora_samples(self) -> SampleSet:
        """The samples that the LoRA learns from."""
        return _sample_set(self.profile.lora_set or self.profile.tuning_set)

    def _usable(self, samples: SampleSet, n: int) -> SampleSet:
        """The set without those of its first `n` samples that cannot be used."""
        from abplib.vlm.usable import usable

        encoder = vars(self).get("encoder") or self._encoder("meta")
        return usable(encoder, samples, n)

    @cached_property
    def encoder(self) -> ConditionEncoder:
        """The VLM, on the GPUs where there are, and beside them where they are too small."""
        from abplib.core import parallel

        return self._encoder(parallel.device())

    def _encoder(self, device: torch.device | str) -> ConditionEncoder:
        from abplib.vlm.encoder import ConditionEncoder

        return ConditionEncoder.from_pretrained(
            self.vlm_source,
            image_area=self.profile.image_area,
            dtype=self.profile.dtype,
            device=device,
            revision=self.profile.revision,
            repetition_penalty=self.profile.repetition_penalty,
        )

    @cached_property
    def baseline(self) -> QwenImageEditor:
        """The editor as the paper's section 4.1 has it: without a LoRA, shown no box."""
        from abplib.editing.qwen_image_edit import QwenImageEditor

        return QwenImageEditor.from_pretrained(
            self.editor_source,
            n_steps=self.profile.n_steps,
            guidance=self.profile.guidance,
            revision=self.profile.editor_revision,
            **self._editing,
        )

    @cached_property
    def editor(self) -> QwenImageEditor:
        """The editor with its LoRA, if the profile names one."""
        if self.profile.lora is None:
            return self.baseline
        sees = self.profile.lora_training.vlm_sees_box
        return replace(self.baseline, lora=self.lora_folder, vlm_sees_box=sees)

    def let_go(self) -> None:
        """Free the memory of encoder and editor, each of which is loaded anew when it is used."""
        import gc

        import torch

        vars(self).pop("encoder", None)
        if "baseline" in vars(self):
            self.baseline.let_go()
        gc.collect()
        torch.cuda.empty_cache()

    def other(self, name: OtherEditorName) -> PipelineEditor:
        """The system that the profile names so, on a GPU where there is one."""
        from abplib.editing.methods import OTHERS

        source, about = self.other_source(name), self.profile.other_editors[name]
        settings = about.model_dump(exclude={"source"})
        kind: Any = function_of(OTHERS[name].editor)
        editor: PipelineEditor = kind.from_pretrained(source, **settings, **self._editing)
        return editor

    @property
    def _editing(self) -> dict[str, Any]:
        """What all editors are loaded with."""
        import torch

        return {
            "image_area": self.profile.image_area,
            "dtype": getattr(torch, self.profile.dtype),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }

    @cached_property
    def judge(self) -> Judge:
        """The judge; where the profile names people's labels, success and failure are theirs."""
        from abplib.judging.jury import Jury

        make: Callable[..., Judge] = function_of(self.profile.judge)
        model = self.profile.judge_model
        try:
            judge = make() if model is None else make(model)
        except TypeError as error:
            raise AbpError(f"{self.profile.judge} asks no model: leave judge_model out.") from error
        labels = self.human_labels_file
        return judge if labels is None else Jury(labels, judge)

    @cached_property
    def preservation(self) -> Preservation:
        """What measures distances outside the box."""
        from abplib.judging.preservation import Preservation

        return Preservation(side=self.profile.lpips_side)

    @property
    def n_labels(self) -> int:
        """Training samples that a sweep sees."""
        wanted = self.profile.sweep.n_batches * self.profile.sweep.batch_size
        return min(wanted, len(self.training))

    def labels(self, n: int | None = None) -> Labels:
        """Boxes to train on for the first `n` training samples: as many as a sweep sees.

        The VLM's own are read from `LABELS_FILE` beside its weights where that file is its own.
        """
        from abplib.proxies.labels import exact_labels, predict_labels

        n = self.n_labels if n is None else n
        if self.profile.labels == "exact":
            return exact_labels(self.encoder, self.training, n)
        shipped = Path(self.vlm_source) / LABELS_FILE
        return predict_labels(self.encoder, self.training, n, shipped=shipped)

    def sweep(self, chosen: Sequence[Configuration] | None = None) -> Sweep:
        """Chapter 2's sweep: proxies on each configuration of Figure 4 and on its controls.

        Or on those `chosen`.
        """
        from abplib.proxies.configurations import swept
        from abplib.proxies.sweep import SweepInputs, sweep

        if chosen is None:
            chosen = swept(self.encoder, self.profile.n_untrained, self.seed)
        return sweep(
            SweepInputs(
                self.encoder, self.training, self.labels(), self.evaluation, chosen,
                self.profile.sweep, self.seed,
            ),
            self.n,
        )  # fmt: skip

    def attention(self, layers: Sequence[int] | None = None) -> ProxyAttention:
        """What the proxies on the prompt tokens of these layers, or of the middle ones, look at."""
        from abplib.proxies.attention import read_attention
        from abplib.proxies.configurations import Configuration, configurations, folder_of

        read, chosen = configurations(self.encoder)[-1], None
        if layers is not None:
            read = Configuration("prompt_" + "_".join(map(str, layers)), tuple(layers), "prompt")
            chosen = (read,)
        proxies, seeds = self.sweep(chosen).folder / "proxies", range(self.profile.sweep.n_seeds)
        folders = [folder_of(proxies, read, seed) for seed in seeds]
        return read_attention(self.encoder, self.evaluation, self.n, read, folders)

    def guide(self) -> GuidingProxy:
        """The shipped proxy where it was trained on this VLM, else that of `swept_guide`."""
        from abplib.proxies.selection import CHOICE, GuidingProxy

        shipped, folder, why = self.profile.proxy, self.proxy_folder, ""
        if folder is not None:
            if not (folder / CHOICE).exists():
                why = f" ({folder.name} is not there)"
            elif read_json(folder / "config.json")["encoder"] != self.encoder.fingerprint:
                why = f" ({shipped} was trained on another VLM)"
            else:
                note = f"The proxy is the shipped one, {shipped}."
                return GuidingProxy.load(folder, self.encoder, note)
        note = f"The proxy was trained in this run's sweep, as seed 0{why}."
        return replace(self.swept_guide(), note=note)

    def swept_guide(self) -> GuidingProxy:
        """The best of `sweep` on the tuning samples."""
        from abplib.proxies.selection import choose

        return choose(self.encoder, self.sweep().folder / "proxies", self.tuning)

    @property
    def vlm_source(self) -> str:
        """What `from_pretrained` takes: an existing folder, or a hub id."""
        return source_of("vlm", self.profile.vlm, "Qwen/Qwen2.5-VL-7B-Instruct")

    @property
    def editor_source(self) -> str:
        """The same of the editor."""
        if self.profile.editor is None:
            raise AbpError(
                f"Profile {self.profile.name!r} has no editor: set editor to the folder of a "
                "Qwen-Image-Edit or to its hub id."
            )
        return source_of("editor", self.profile.editor, "Qwen/Qwen-Image-Edit")

    def other_source(self, name: OtherEditorName) -> str:
        """The same of another system's editor."""
        if name not in self.profile.other_editors:
            raise AbpError(
                f"Profile {self.profile.name!r} has no {name}: name its source under other_editors."
            )
        source = self.profile.other_editors[name].source
        return source_of(f"other_editors.{name}.source", source, "black-forest-labs/FLUX.2-dev")

    @property
    def lora_place(self) -> Path:
        """Where the LoRA lies, or goes when it is trained."""
        if self.profile.lora is None:
            raise AbpError(
                f"Profile {self.profile.name!r} has no LoRA: set lora to the folder of one."
            )
        inside = Path(self.editor_source) / self.profile.lora
        return inside if inside.parent.is_dir() else paths.root() / self.profile.lora

    @property
    def lora_folder(self) -> Path:
        """Where it lies."""
        if not (place := self.lora_place).exists():
            raise AbpError(
                f"There is no LoRA in {place}: restore it, or train one by `abp train-lora "
                f"--profile {self.profile.name}`."
            )
        return place

    @property
    def proxy_folder(self) -> Path | None:
        """Where the shipped proxy lies, or goes, if the profile names one."""
        return self._named(self.profile.proxy)

    def _named(self, path: str | None) -> Path | None:
        return None if path is None else paths.root() / path

    @property
    def human_labels_file(self) -> Path | None:
        """The file of people's labels, if the profile names one."""
        path = self._named(self.profile.human_labels)
        if path is not None and not path.is_file():
            raise AbpError(
                f"There are no labels at {path}: make them with book/annotation.md, or leave "
                "human_labels out."
            )
        return path

    @property
    def model_fingerprint(self) -> str:
        """Hash of the files of VLM, editors, LoRA and proxy, or of hub ids."""
        profile = self.profile
        parts = [content_of(self.vlm_source, profile.revision)]
        if profile.editor is not None:
            parts.append(content_of(self.editor_source, profile.editor_revision))
        for name, other in profile.other_editors.items():
            parts.append(content_of(self.other_source(name), other.revision))
        folders = [self.lora_place if profile.lora else None, self.proxy_folder]
        parts += [content_of(str(folder)) for folder in folders if folder and folder.exists()]
        return digest(parts)

    @property
    def data_fingerprint(self) -> str:
        """Hash of the contents of all sample sets, and of people's labels."""
        profile = self.profile
        sets = (profile.eval_set, profile.train_set, profile.tuning_set)
        told = [_sample_set(samples).fingerprint for samples in sets]
        if (labels := self.human_labels_file) is not None:
            told.append(digest_files(labels))
        return digest(told)


def _sample_set(reference: str) -> SampleSet:
    """What a function returns in a checkout, made once: it may read files there."""
    return _made(reference, paths.root())


@cache
def _made(reference: str, _root: Path) -> SampleSet:
    made = function_of(reference)()
    if not isinstance(made, SampleSet):
        raise AbpError(f"{reference!r} returned {type(made).__name__}, which is no SampleSet.")
    return made
