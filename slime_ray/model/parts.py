"""What a model is made of: a folder or Hub id, or an adapter of peft's and the model that it was trained on.

Nothing heavy is imported here: a sweep's driver asks before anything is started.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from slime_ray.config.model import Model, lacks_template
from slime_ray.data.template_text import no_template, read_template
from slime_ray.model.files import ADAPTER, FileFault, check_folder, check_gguf, check_weights, read_object

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Parts:
    """What a model is made of.

    source, revision: Folder or Hub id of the whole model. adapter: A folder of peft's to merge into it, or None.
    """

    source: str
    revision: str | None
    adapter: Path | None = None

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """Folder or Hub id of the tokenizer, an adapter's own before its base's, and its revision."""
        if self.adapter is not None and any((self.adapter / name).is_file() for name in TOKENIZERS):
            return str(self.adapter), None
        return self.source, self.revision

    @property
    def adapter_modules(self) -> tuple[str, ...]:
        """Ends of the names of modules that the adapter brings whole, such as a trained head."""
        names = self.adapter and read_object(self.adapter / ADAPTER).get("modules_to_save")
        return tuple(map(str, names)) if isinstance(names, list) else ()


def parts_of(source: str, revision: str | None, *, local_only: bool = False) -> Parts:
    """Look whether a folder or Hub id is an adapter on another model; local_only asks no Hub.

    Raises FileFault for an adapter whose base is not named or not here.
    """
    folder = Path(source)
    local = folder.exists() or folder.is_absolute()
    adapter = (
        (folder if (folder / ADAPTER).is_file() else None) if local else _adapter_on_hub(source, revision, local_only)
    )
    return Parts(source, revision) if adapter is None else _on_base(adapter)


@lru_cache(maxsize=16)
def _adapter_on_hub(source: str, revision: str | None, local_only: bool) -> Path | None:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        hf_hub_download(source, ADAPTER, revision=revision, local_files_only=local_only)
    except Exception:
        # It has none, or cannot be reached: loading it will tell.
        return None
    patterns = ["adapter_*", "*token*", "*.jinja", "vocab*", "merges*"]
    folder = snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=local_only)
    return Path(folder)


def downloaded(source: str) -> Path:
    """Download a Hub model's folder, without tokenizer and pickles. Raises FileFault for one that cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*"]))
    except Exception as error:  # the Hub and the network fail in many ways
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileFault(f"it cannot be had from the Hub: {reason.rstrip('.')}") from error
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        raise FileFault(f"on the Hub it has neither config.json nor {ADAPTER}")
    return folder


def _on_base(folder: Path) -> Parts:
    """Combine an adapter with the model that its adapter_config.json names.

    A path that is not absolute is looked for from the adapter's folder upwards, never from where a process runs.
    """
    content = read_object(folder / ADAPTER)
    base_name, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(base_name, str) or not base_name or not isinstance(revision, (str, type(None))):
        raise FileFault(f"{folder / ADAPTER} names no base model (base_model_name_or_path)")
    path = Path(base_name).expanduser()
    candidates = [path] if path.is_absolute() else [parent / path for parent in (folder, *folder.absolute().parents)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return Parts(str(candidate), None, folder)
        if candidate != folder and (candidate / ADAPTER).is_file():
            raise FileFault(f"its base {candidate} is an adapter itself; merge that one first")
    if path.is_absolute() or base_name.startswith((".", "~")) or base_name.count("/") > 1:
        raise FileFault(f"its base {base_name} is not here; correct base_model_name_or_path in {folder / ADAPTER}")
    return Parts(base_name, revision or None, folder)


def check_template(model: Model) -> None:
    """Raise InputError where the chat template is surely not there. Of the Hub and GGUF files only loading tells."""
    if model.chat_template:
        read_template(model.chat_template)
    elif not model.trust_remote_code and (model.tokenizer or not model.gguf_file):
        # Where a file is broken, whoever loads it says so.
        with suppress(FileFault):
            folder = Path(model.tokenizer or model.source)
            if folder.is_dir() and not model.tokenizer:
                folder = Path(parts_of(model.source, None).tokenizer[0])
            if lacks_template(folder):
                raise no_template(str(folder))


def check_model(path: Path) -> None:
    """Check a model's folder, or a file of weights. Raises FileFault for the first thing that is wrong with it."""
    if path.is_dir():
        check_folder(path)
        # Of an adapter, also what it was trained on.
        base = Path(parts_of(str(path), None).source)
        if base != path and base.is_dir():
            check_folder(base)
    elif path.suffix == ".gguf":
        check_gguf(path)
    elif path.suffix == ".safetensors":
        check_weights(path)


def fault_of(path: Path) -> str | None:
    """Return what `check_model` finds, or None."""
    try:
        check_model(path)
    except (FileFault, OSError) as error:
        return str(error)
    return None
