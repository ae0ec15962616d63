"""Weights as they are meant: every one from its file, of its shape and finite, or a reason why not."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from slime_ray.errors import InputError, is_memory_error
from slime_ray.model.files import FILE_REMEDY, FileFault, check_texts

Note = Callable[[str], object]
"""Takes a sentence about what was loaded that a user should know."""
WAY_OUT = (
    "Give a folder with config.json and safetensors weights, an adapter's folder, or a hub id that this machine can "
    "reach (HF_HUB_OFFLINE=1 allows only what is already downloaded)."
)
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "base_model",
    "default",
    "language_model",
    "model",
    "module",
    "transformer",
)
QUOTED_NAMES = 3
"""How many names of weights a sentence has."""
logger = logging.getLogger(__name__)


@contextmanager
def errors_as_input_error(refusal: Callable[[str], InputError]) -> Iterator[None]:
    """Raise errors of loading as the InputError that `refusal` makes of the reason and a way out.

    Lack of memory is left as it is: it says nothing about the files.
    """
    verbosity = transformers_logging.get_verbosity()
    # What transformers would print of weights is said here, in one sentence.
    transformers_logging.set_verbosity_error()
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic of tokenizers, which are written in Rust, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if is_memory_error(error):
            raise
        raise refusal(f"{reason_of(error)}. {FILE_REMEDY if isinstance(error, FileFault) else WAY_OUT}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)


def reason_of(error: BaseException) -> str:
    """Return an error's message as part of a sentence: its first line, and the next where that only announces it."""
    if isinstance(error, FileFault):
        return str(error).rstrip(".")
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines.pop(0) if lines else ""
    while lines and text.endswith(":"):
        text = f"{text} {lines.pop(0)}"
    if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) or not text:
        # "KeyError: 'nope'" says more than "'nope'".
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return (text if len(text) <= 300 else f"{text[:300]}…").rstrip(".")


def load_whole(kind: Any, source: str, *, note: Note, adapter_modules: Collection[str] = (), **options: Any) -> Any:
    """Load a model as `kind.from_pretrained` does, every weight of it.

    Args:
        kind: An Auto class of transformers.
        source: A folder or Hub id.
        note: Receives what a user should know of what was loaded.
        adapter_modules: Ends of the names of modules that an adapter brings, so that the files may lack them.
        options: More of `from_pretrained`.

    Raises:
        FileFault: Weights are missing, of another shape or not finite.
    """
    options |= {"output_loading_info": True}
    failure: RuntimeError | None = None
    try:
        lm, info = kind.from_pretrained(source, **options)
    except RuntimeError as error:
        if is_memory_error(error):
            raise
        failure = error.with_traceback(None)
    if failure is not None:
        # transformers says in a report of its own which shapes differ. What is loaded here is only looked at.
        _, info = kind.from_pretrained(source, ignore_mismatched_sizes=True, **options)
        _refuse_mismatched(info["mismatched_keys"])
        raise failure
    missing = {name for name in info["missing_keys"] if not _belongs_to(name, adapter_modules)}
    unexpected = set(info["unexpected_keys"])
    if missing:
        raise FileFault(f"its files lack {quote_names(missing, 'weight')}{rename_hint(missing, unexpected)}")
    if unexpected:
        note(
            f"The files of {source} hold {quote_names(unexpected, 'weight')} that the model has no place for: not used."
        )
    refuse_not_finite(lm, skipped_modules=adapter_modules)
    return lm


def read_tokenizer(source: str, **options: Any) -> Any:
    """Load a tokenizer as AutoTokenizer does. Raises FileFault for a broken file in a local folder."""
    folder = Path(source)
    file = folder / options.get("gguf_file", "tokenizer.json")
    if folder.is_dir() and "gguf_file" not in options:
        check_texts(folder)
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        if file.is_file():
            with errors_as_file_fault(file):
                if "gguf_file" in options:
                    raise error
                Tokenizer.from_file(str(file))
        elif folder.is_dir():
            raise FileFault(_tokenizer_fault(folder, error)) from None
        raise


def _tokenizer_fault(folder: Path, error: Exception) -> str:
    """Say why a folder without tokenizer.json gives no tokenizer."""
    models = sorted(folder.glob("*.model"))
    if not models:
        return f"{folder} has no tokenizer.json"
    packages = [package for package in ("sentencepiece", "tiktoken") if find_spec(package) is None]
    package_hint = f"; it may need the package {' or '.join(packages)}, which is not installed" if packages else ""
    return f"{folder} has no tokenizer.json, and {models[0].name} cannot be used: {reason_of(error)}{package_hint}"


@contextmanager
def errors_as_file_fault(file: Path) -> Iterator[None]:
    """Raise errors within this context as a FileFault of this file."""
    try:
        yield
    except FileFault:
        raise
    except Exception as error:
        if is_memory_error(error):
            raise
        raise FileFault(f"{file} cannot be used: {reason_of(error)}") from None


def _refuse_mismatched(mismatched: Collection[Any]) -> None:
    if mismatched:
        name, shape, expected = sorted(mismatched, key=str)[0]
        raise FileFault(
            f"{quote_names([name for name, *_ in mismatched], 'weight')} have another shape in its files than "
            f"config.json says: {name} is {_format_shape(shape)} instead of {_format_shape(expected)}"
        )


def _format_shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a single number"


def rename_hint(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Return the end of a sentence where missing weights have other names, as a wrapper leaves them."""
    if {_strip_wrappers(name) for name in missing} & {_strip_wrappers(name) for name in unexpected}:
        return (
            f", but have {quote_names(unexpected, 'weight')}, as a wrapped model saves them: save the model unwrapped"
        )
    return ""


def _strip_wrappers(name: str) -> tuple[str, ...]:
    """Strip what wrappers, such as torch.compile's, put before a weight's name."""
    return tuple(part for part in name.split(".") if part not in WRAPPERS)


def refuse_not_finite(lm: Any, *, skipped_modules: Collection[str] = ()) -> None:
    """Raise FileFault where a model has weights that are infinite or not a number.

    A sum costs a hundredth of a look at each; where it is finite, every weight is.
    """
    names_not_finite = [
        name
        for name, weight in lm.named_parameters()
        if weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and not _belongs_to(name, skipped_modules)
        and not (weight.detach().sum().isfinite() or weight.detach().isfinite().all())
    ]
    if names_not_finite:
        raise FileFault(f"numbers that are not finite in {quote_names(names_not_finite, 'weight')}")


def _belongs_to(weight: str, modules: Collection[str]) -> bool:
    """Tell whether a weight belongs to one of the modules, given the ends of their names."""
    return any(f".{module}." in f".{weight}" for module in modules)


def quote_names(names: Collection[str], noun: str) -> str:
    """Return a count with the first names: "12 weights (a, b, c and more)"."""
    first_names = ", ".join(sorted(names)[:QUOTED_NAMES])
    ellipsis = " and more" if len(names) > QUOTED_NAMES else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({first_names}{ellipsis})"


def log_note(sentence: str) -> None:
    """Log a sentence: the `Note` for whoever has no better place."""
    logger.warning(sentence)
