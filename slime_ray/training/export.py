"""Export a trained policy as a folder that transformers and peft load without this package, and push it to the Hub."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from slime_ray.config.model import lacking_bitsandbytes
from slime_ray.config.settings import Settings
from slime_ray.data.chat_template import stop_token_ids
from slime_ray.errors import InputError, RunError, near
from slime_ray.model.files import ADAPTER
from slime_ray.model.loading import (
    base_of,
    load_adapter,
    load_checkpoint,
    load_external,
    load_tokenizer,
    load_trained,
)
from slime_ray.model.pretrained import read_tokenizer
from slime_ray.runs import files, results
from slime_ray.runs.redaction import redact_sentence
from slime_ray.training.adapters import base_named, check_stage, load_adapted, read_whole, why_merge, write_adapter
from slime_ray.training.cache import STAGES
from slime_ray.training.card import model_card

COMPARED = 16
"""Tokens on which the exported model is compared with the one that was exported."""
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
"""ORG/NAME."""
T = TypeVar("T")


def export_model(
    run: Path,
    trial_id: str,
    to: Path,
    *,
    merge: bool = False,
    dtype: str | None = None,
    push_to: str | None = None,
    private: bool = False,
    facts: Mapping[str, str],
) -> Path:
    """Write a trial's policy with tokenizer, chat template, generation config and model card.

    Of a trial that was trained with LoRA it is an adapter on the model that the user named, which holds SFT and
    preference training; any other policy is a whole model. The folder is written under another name and renamed once
    it was loaded again and computes the same.

    Args:
        run: The run's folder.
        trial_id: One of its trials that kept its model.
        to: The folder to make. It must not exist, or be empty.
        merge: Whether adapters are merged, in float32, so that a whole model is written.
        dtype: Of a whole model's weights, "float32" (default) or "bfloat16", which rounds small updates away.
        push_to: Repository of the Hub to push the folder to, as ORG/NAME.
        private: Whether that one is private, where it is new.
        facts: Rows of the model card's table, such as the trial's row of the report.

    Returns:
        The folder.

    Raises:
        InputError: The trial or its model is not there, its SFT checkpoint is lost or another one, it is no adapter on
            the named model, `to` is taken, or the Hub would not take it. Nothing was written.
        RunError: The Hub failed; the folder is whole.
    """
    row, checkpoint = _row_and_checkpoint(run, trial_id)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: is there already. Name a folder that is not.")
    settings = _settings(row, run)
    adapted = (checkpoint / ADAPTER).is_file()
    stage = _stage(checkpoint, run) if adapted and not settings.model.kept else None
    adapter = adapted and not merge
    if adapted:
        _refuse(settings, checkpoint, stage, trial_id, merge=merge, dtype=dtype, pushed=push_to is not None)
    if settings.model.quantization and (lack := lacking_bitsandbytes()):
        raise InputError(f"{trial_id} was trained on 4-bit weights: {lack}")
    if push_to:
        check_push(push_to)
    transformers_logging.disable_progress_bar()
    lm = _load(settings, checkpoint, stage)
    tokenizer = _tokenizer(checkpoint, settings)
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.is_dir():
        to.rmdir()
    with files.atomic_path(to) as partial:
        partial.mkdir()
        generation = stopping(tokenizer, stop_token_ids(tokenizer))
        if adapter:
            write_adapter(settings, checkpoint, stage, partial)
            generation.save_pretrained(partial)
            again = load_adapted(settings, partial)
        else:
            for parameter in lm.parameters():
                # Not the whole module: frequencies of rotary embeddings stay in float32, as when it is loaded.
                parameter.data = parameter.data.to(getattr(torch, dtype or "float32"))
            lm.generation_config = generation
            lm.save_pretrained(partial)
            again = AutoModelForCausalLM.from_pretrained(partial, dtype=lm.dtype, local_files_only=True)
        tokenizer.save_pretrained(partial)
        name = push_to or to.name
        model_card(settings, row, run=run.name, name=name, adapter=adapter, facts=facts).save(partial / "README.md")
        _compare(lm, again, adapter=adapter)
    if push_to:
        push(to, push_to, private=private)
    return to


def _load(settings: Settings, checkpoint: Path, stage: Path | None) -> Any:
    """The trial's policy, in float32: merged, or adapters on a 4-bit base."""
    if settings.model.quantization is None:
        lm = load_checkpoint(stage or checkpoint, dtype="float32")
        return lm if stage is None else load_adapter(lm, checkpoint, merge=True)
    model = settings.model.model_copy(update={"dtype": "float32"})
    return load_external(checkpoint, model) if stage is None else load_trained(stage, model, checkpoint)


def _row_and_checkpoint(run: Path, trial_id: str) -> tuple[Mapping[str, Any], Path]:
    """Return a trial's row and the folder of its model."""
    folder = run / "trials" / trial_id
    row = results.finished_trial(folder) if folder.is_dir() else None
    if row is None:
        finished = results.finished_trials(run)
        raise InputError(f"{run} has no finished trial {trial_id:.100}{near(trial_id, finished) if finished else '.'}")
    if row["status"] in ("failed", "diverged"):
        raise InputError(f"{trial_id} of {run} {row['status']} ({row['reason']}), so it has no model to export.")
    checkpoint = folder / results.MODEL
    if not checkpoint.is_dir():
        raise InputError(
            f"{trial_id} of {run} kept no model: budget.checkpoints keeps the best of a search. Run it again as an "
            "arm, with its knobs."
        )
    return row, checkpoint


def _stage(checkpoint: Path, run: Path) -> Path:
    """The SFT checkpoint of an adapter, with the weights that it was trained on."""
    stage = run.parent / STAGES / Path(base_of(checkpoint)).name
    if not stage.is_dir():
        raise InputError(
            f"{checkpoint} is an adapter on the SFT checkpoint {stage.name}, which {run.parent / STAGES} lacks. "
            "Put the folder `.stages` back beside the run."
        )
    check_stage(checkpoint, stage)
    return stage


def _refuse(
    settings: Settings,
    checkpoint: Path,
    stage: Path | None,
    trial_id: str,
    *,
    merge: bool,
    dtype: str | None,
    pushed: bool,
) -> None:
    """Raise InputError for what cannot be exported of a trial that was trained with LoRA."""
    if merge:
        quantized = stage is not None and "quantization_config" in read_whole(stage / "config.json")
        if settings.model.quantization or quantized:
            raise InputError(
                f"{trial_id} was trained on quantized weights, into which nothing is merged exactly. Leave --merge out."
            )
        return
    if reason := why_merge(settings, checkpoint, stage):
        raise InputError(f"{trial_id} is no adapter on the model that it came from: {reason}. Give --merge.")
    if dtype is not None:
        raise InputError("--dtype is of a whole model, and this is an adapter. Leave it out, or give --merge.")
    if pushed and Path(base_named(settings)[0]).is_dir():
        way = "Train from its Hub id." if settings.model.quantization else "Give --merge."
        raise InputError(
            f"--push-to-hub: the adapter's base {settings.model.source} is a folder of this machine, which nobody else "
            f"has. {way}"
        )


def _settings(row: Mapping[str, Any], run: Path) -> Settings:
    try:
        return Settings.model_validate_json(row["settings"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"{run}: its trials have settings that this version of slime_ray does not know "
            f"({'.'.join(map(str, first['loc']))}: {first['input']!r}). Export it with the version that wrote it."
        ) from None


def stopping(tokenizer: Any, stops: Sequence[int]) -> GenerationConfig:
    """Return a generation config that ends answers where this package's do, and says nothing else."""
    padding = tokenizer.pad_token_id
    return GenerationConfig(eos_token_id=list(stops), pad_token_id=stops[0] if padding is None else padding)


def _tokenizer(checkpoint: Path, settings: Settings) -> Any:
    """The tokenizer, with its chat template, that the trial was trained with."""
    if (checkpoint / "tokenizer_config.json").is_file():
        return read_tokenizer(str(checkpoint), local_files_only=True)
    return load_tokenizer(settings.model)


@torch.no_grad()
def _compare(lm: Any, again: Any, *, adapter: bool) -> None:
    """Raise InputError unless the model that was loaded again computes what the one in memory does.

    In an adapter the same sums are rounded elsewhere than in weights that it was merged into.
    """
    ids = torch.arange(min(COMPARED, again.get_input_embeddings().weight.shape[0]))[None]
    before, after = (model.eval()(input_ids=ids.to(model.device)).logits.float().cpu() for model in (lm, again))
    share = float((before - after).norm() / before.norm())
    if not share <= (1e-4 if adapter else 1e-5):
        mergeable = adapter and not getattr(again, "is_loaded_in_4bit", False)
        way = "Give --merge for a whole model." if mergeable else "Report this."
        raise InputError(f"The exported model computes something else (its logits change by {share:.2g}). {way}")


# ---------------------------------------------------------------------------------------------------------------------
# The Hub, with the token of HF_TOKEN or of `hf auth login`


def check_push(name: str) -> None:
    """Ask the Hub whether the token here may write to the namespace of ORG/NAME; nothing is made.

    Raises InputError where there is no token, no Hub, or the token is of somebody else.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"--push-to-hub {name}: a repository is called ORG/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.")
    if get_token() is None:
        raise InputError(f"--push-to-hub {name}: there is no token. Set HF_TOKEN, or log in with `hf auth login`.")
    try:
        user = HfApi().whoami()
    except Exception as error:
        raise InputError(f"--push-to-hub {name}: the Hub does not take the token: {_reason(error)}.") from None
    namespaces = [str(user["name"]), *(str(org["name"]) for org in user.get("orgs") or [])]
    owner = name.partition("/")[0]
    if owner.lower() not in {namespace.lower() for namespace in namespaces}:
        raise InputError(
            f"--push-to-hub {name}: the token is of {namespaces[0]}, who may write to {', '.join(namespaces)} and "
            f"not to {owner}. Name one of these, or log in as somebody else."
        )


def push(folder: Path, name: str, *, private: bool) -> None:
    """Upload a folder, which is kept, as one commit to the repository ORG/NAME, which is made if it is not there.

    private: whether a new repository is private. Raises RunError where the Hub refused something, or failed.
    """
    disable_progress_bars()
    hub_logging.set_verbosity_error()
    api = HfApi()

    def ask(what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            raise RunError(
                f"The model is in {folder}, but not on the Hub: {what} {name} failed: {_reason(error)}. Once that is "
                f"mended, `hf upload {name} {folder}` pushes it."
            ) from None

    # None leaves a repository that is there as it is.
    ask("making", lambda: api.create_repo(name, private=private or None, exist_ok=True))
    ask("the upload to", lambda: api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add the model"))


def _reason(error: Exception) -> str:
    """An error of the Hub's in a line, without the token."""
    text = str(getattr(error, "server_message", None) or error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), type(error).__name__)
    return redact_sentence(f"{line} (HTTP {status})" if status and str(status) not in line else line).rstrip(". ")
