"""Faults of a model's files that show without loading it: Git LFS pointers, cut files, absent shards, broken JSON.

Nothing heavy is imported here: every node of a cluster looks at its own copy.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OBJECTS = (
    ADAPTER, "added_tokens.json", "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""JSON files that transformers reads. Trainers leave others next to a model, which nobody reads."""
PACKED = ("I8", "U8", "F8_E4M3", "F8_E5M2")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FILE_REMEDY = "Mend that, download or save it again, or give another one."
"""The way out of a fault."""
_LFS = b"version https://git-lfs"


class FileFault(ValueError):
    """Why a model's files cannot be used; whoever asked for them adds the place and the way out."""


def check_folder(folder: Path) -> None:
    """Check a model's or an adapter's folder. Raises FileFault for the first thing that is wrong with it."""
    check_texts(folder)
    if (folder / ADAPTER).is_file():
        check_adapter(folder)
        return
    config = folder / "config.json"
    if not config.is_file():
        names = sorted(path.name for path in folder.iterdir())
        content = f"it holds {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "it is empty"
        raise FileFault(f"{folder} has no config.json: {content}")
    is_quantized = "quantization_config" in read_object(config)
    for file in weight_files(folder):
        check_weights(file)
        # Read as they are, they would count as weights without their scales.
        quantized_weights = [
            name for name, kind in weight_dtypes(file).items() if kind in PACKED and name.endswith(".weight")
        ]
        if quantized_weights and not is_quantized:
            raise FileFault(
                f"{file} holds quantized weights, such as {quantized_weights[0]}, and config.json does not say how"
            )


def check_adapter(folder: Path) -> None:
    """Check an adapter's weights. Raises FileFault where there are none, or a whole model's as well."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileFault(f"{folder} has {ADAPTER} but no {ADAPTER_WEIGHTS}{_pickled(folder)}")
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        raise FileFault(
            f"{folder} holds both an adapter ({ADAPTER_WEIGHTS}) and a whole model, which may have it merged already; "
            "move one of them to a folder of its own"
        )
    check_weights(folder / ADAPTER_WEIGHTS)


def check_texts(folder: Path) -> None:
    """Check a folder's JSON files, those of a tokenizer among them. Raises FileFault for one that cannot be read."""
    if not folder.is_dir():
        raise FileFault(f"{folder} is no folder")
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise FileFault(f"{folder} cannot be read: {error.strerror}") from None
    for file in files:
        if file.name in OBJECTS:
            read_object(file)
        elif file.suffix in (".model", ".jinja", ".txt") and _start(file).startswith(_LFS):
            raise FileFault(f"{file} {_POINTER}")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FileFault where the file holds none."""
    if _start(file).startswith(_LFS):
        raise FileFault(f"{file} {_POINTER}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFault(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FileFault(f"{file} is not valid JSON, so it may be cut short: {error}") from None
    if not isinstance(content, dict):
        raise FileFault(f"{file} holds a {type(content).__name__} instead of a JSON object")
    return content


def weight_files(folder: Path) -> Iterator[Path]:
    """List a whole model's safetensors files, as transformers chooses them. Raises FileFault where there are none."""
    # A configuration may name another file.
    file_name = read_object(folder / "config.json").get("transformers_weights")
    index = folder / (file_name if isinstance(file_name, str) and file_name.endswith(".index.json") else INDEX)
    single = folder / (file_name if isinstance(file_name, str) else WEIGHTS)
    if single != index and single.is_file():
        yield single
    elif index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise FileFault(f"{index} has no weight_map from names of weights to files")
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise FileFault(f"{folder / shard} is absent, and {index.name} names it")
            yield folder / shard
    else:
        raise FileFault(f"{folder} has no {single.name}{_pickled(folder)}")


def weight_dtypes(file: Path) -> dict[str, str]:
    """Return the dtype of each weight in a safetensors file, such as F32, by name."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def check_weights(file: Path) -> None:
    """Compare a safetensors file's size with its header's. Raises FileFault where it is cut short or no such file."""
    start = _start(file)
    if start.startswith(_LFS):
        raise FileFault(f"{file} {_POINTER}")
    size = file.stat().st_size
    if size < 8:
        raise FileFault(f"{file} is cut short: it has {size} bytes")
    length = struct.unpack("<Q", start[:8])[0]
    if length > min(size - 8, 100_000_000):
        raise FileFault(
            f"{file} is cut short or no safetensors file: its header alone would take {length} bytes of {size}"
        )
    try:
        with file.open("rb") as stream:
            stream.seek(8)
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected_size = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise FileFault(f"{file} is no safetensors file: its header cannot be read") from None
    if expected_size != size:
        fault = "is cut short" if size < expected_size else "is too long"
        raise FileFault(f"{file} {fault}: it has {size} bytes of {expected_size}")


def check_gguf(file: Path) -> None:
    """Look at the start of a GGUF file. Raises FileFault for one that is none."""
    start = _start(file)
    if start.startswith(_LFS):
        raise FileFault(f"{file} {_POINTER}")
    if not start.startswith(b"GGUF"):
        raise FileFault(f"{file} is no GGUF file: it does not begin with GGUF")


_POINTER = "is a Git LFS pointer instead of the file: get it with `git lfs pull`"


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise FileFault(f"{file} cannot be read: {error.strerror}") from None


def _pickled(folder: Path) -> str:
    """Return the end of a sentence that names pickled weights, where there are any."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return ""
    return f", only {pickles[0]}, which is pickled and never read: save it as safetensors with transformers"
