"""Hashes of all that a run reads beside its experiment's file: data, models, templates, code of the user's.

Rows of one table have to come from one set of inputs, so a run is never resumed with others.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import BinaryIO

from slime_ray.config.experiment import Experiment
from slime_ray.config.judge import Exact, RewardModel
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError

WHOLE_BYTES = 64 << 20
"""Larger files are hashed by samples: weights may be large, and training changes nearly all of them."""
PARTS, SAMPLES, SAMPLE_BYTES = 64, 16, 4096
"""Samples of each part, or of each weight."""
PACKAGE = __name__.partition(".")[0]
HASH_DIGITS = 12
"""Digits of a hash in a message."""
_MODEL = ("config.json", "adapter_config.json", "tokenizer_config.json")
"""Files that only the folder of a model or a tokenizer has."""
_MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".tiktoken", ".jinja", ".py")
"""Files of a model's folder that loading it may read, by suffix."""


def files_of(settings: Settings) -> dict[str, Path]:
    """The files and folders of this machine that a trial of these settings reads, by the setting that names them."""
    model, data, evaluation = settings.model, settings.data, settings.evaluation
    train = {"data.train": data.train} if isinstance(data.train, str) else {
        f"data.train.{number}.source": entry.source for number, entry in enumerate(data.train)
    }  # fmt: skip
    members = evaluation.judge.members
    rewards = {
        f"evaluation.judge.judges.{place}.model" if len(members) > 1 else "evaluation.judge.model": judge.model
        for place, judge in enumerate(members)
        if isinstance(judge, RewardModel)
    }
    places = {
        **({} if data.task else train),
        "evaluation.questions": evaluation.questions,
        "evaluation.retention.prompts": evaluation.retention.prompts if evaluation.retention else None,
        "model.source": None if model.task else model.source,
        "model.tokenizer": model.tokenizer,
        "model.chat_template": model.chat_template,
        **rewards,
    }
    paths = {setting: Path(path).expanduser() for setting, path in places.items() if path}
    return {setting: path for setting, path in paths.items() if path.exists()}


def all_settings(experiment: Experiment) -> list[Settings]:
    """The settings of `base`, of every arm and of every entry of a league."""
    overrides = [*(arm.set for arm in experiment.arms), *(part.set for part in experiment.searches)]
    return [experiment.settings, *map(experiment.settings_with, overrides)]


def hashes_of(experiment: Experiment, extra_inputs: Mapping[str, Path | None] = {}) -> dict[str, str]:
    """A hash of every input of this machine, by the setting that names it; arms' own behind the label of the arm.

    extra_inputs: further ones that are no settings, by what a message calls them; None stands for none.
    """
    paths = files_of(experiment.settings)
    for arm in experiment.arms:
        for setting, path in files_of(experiment.settings_with(arm.set)).items():
            if paths.get(setting) != path:
                paths[f"{arm.label}: {setting}"] = path
    return {name: hash_of(path) if path else "none" for name, path in {**paths, **extra_inputs}.items()}


def digests(experiment: Experiment) -> dict[str, str]:
    """The same by path, with the code by module: what each trial compares with what it finds itself."""
    paths = {path for settings in all_settings(experiment) for path in files_of(settings).values()}
    return {**{str(path): hash_of(path) for path in paths}, **code_of(experiment)}


def change(before: Mapping[str, str], settings: Settings) -> str | None:
    """What has changed, as a sentence, of the inputs that a trial of these settings reads. before: see `digests`."""
    if not before:
        return None
    now = {str(path): hash_of(path) for path in files_of(settings).values()} | _code([settings], ())
    for name, digest in now.items():
        if name in before and before[name] != digest:
            return f"{name} changed while the run was at work ({_hash_change(before[name], digest)})"
    return None


def refuse_changed(run: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise InputError where an input has another hash than when the run was started. Compares what both have."""
    for name, digest in before.items():
        if name in now and now[name] != digest:
            raise InputError(
                f"{run}: {name} has changed since the run was started ({_hash_change(digest, now[name])}). Rows of one "
                "table need the same inputs. Give it back the content it had, or start a new run under another name."
            )


def _hash_change(before: str, now: str) -> str:
    return f"its hash was {before[:HASH_DIGITS]}, and is {now[:HASH_DIGITS]} now"


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder that are read, by name.

    Of an adapter's folder also of the base model that it names, where that is on this machine.
    """
    try:
        if path.is_file():
            return _digest(path)
        listing = "".join(f"{name} {_digest(file)}\n" for name, file in _files(path))
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}. Make it readable.") from None
    return hashlib.sha256(listing.encode()).hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    yield from _own_files(folder)
    if (base := _base_of(folder)) is not None:
        yield from ((f"base/{name}", file) for name, file in _own_files(base))


def _own_files(folder: Path) -> Iterator[tuple[str, Path]]:
    is_model = any((folder / name).is_file() for name in _MODEL)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not file.is_file():
            continue
        # A model's folder also keeps checkpoints of its training, logs and pictures.
        inner = len(name.parts) > 1 and name.parts[0] != "additional_chat_templates"
        if not is_model or (file.suffix in _MODEL_SUFFIXES and not inner):
            yield name.as_posix(), file


def _base_of(adapter: Path) -> Path | None:
    try:
        base_name = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        base = Path(base_name).expanduser()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if base.is_dir() and base.resolve() != adapter.resolve() else None


def _digest(file: Path) -> str:
    stat = file.stat()
    return _cached_digest(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _cached_digest(file: Path, size: int, time: int) -> str:
    """Size and time tell whether the file is still the one that was hashed."""
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for start, end in _spans(stream, size):
            last = max(start, end - SAMPLE_BYTES)
            # A span of a few samples is read as a whole.
            count = min(SAMPLES, -(-(end - start) // SAMPLE_BYTES))
            for sample in range(count):
                stream.seek(start + sample * (last - start) // max(1, count - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _spans(stream: BinaryIO, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are sampled, from and to which byte: each weight, since one alone may differ.

    Of what are no safetensors as many equal parts as a model has weights.
    """
    try:
        begin = 8 + int.from_bytes(stream.read(8), "little")
        if begin > size:
            raise ValueError("no safetensors")
        header = json.loads(stream.read(begin - 8))
        offsets = [weight["data_offsets"] for name, weight in header.items() if name != "__metadata__"]
        return [(0, begin), *((begin + start, begin + end) for start, end in offsets)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return [(size * part // PARTS, size * (part + 1) // PARTS) for part in range(PARTS)]


# ---------------------------------------------------------------------------------------------------------------------
# Code of the user's


def code_of(experiment: Experiment, *, scorers: bool = True) -> dict[str, str]:
    """SHA-256 of the file of every objective and scorer of the user's, by the `module:name` of the experiment.

    Modules next to it that it imports have a hash of their own, by their name. What has no file, or cannot be found
    from here, is left out. scorers: whether code that scores answers counts, too, or only code of the training.
    """
    dimensions = (dimension for part in experiment.searches for dimension in part.search.dimensions.values())
    choices = (str(value) for dimension in dimensions for value in dimension.choice or ())
    return _code(all_settings(experiment), choices, scorers=scorers)


def _code(all_settings: Iterable[Settings], names: Iterable[str], *, scorers: bool = True) -> dict[str, str]:
    code_names = {name for name in names if ":" in name}
    hashes = {}
    for name in sorted(code_names.union(*(user_code_names(settings, scorers=scorers) for settings in all_settings))):
        module = name.partition(":")[0]
        files = _modules(module)
        if module in files:
            hashes[name] = _digest(files.pop(module))
        hashes |= {inner: _digest(file) for inner, file in files.items()}
    return hashes


def user_code_names(settings: Settings, *, scorers: bool = True) -> set[str]:
    """The `module:name` of all code of the user's that the settings name. scorers: whether those that score answers."""
    names, retention = {settings.objective.name, *settings.training.callbacks}, settings.evaluation.retention
    if scorers:
        names |= _judge_scorers(settings) | ({retention.scorer} if retention else set())
    return {name for name in names if ":" in name}


def _judge_scorers(settings: Settings) -> set[str]:
    return {str(judge.scorer) for judge in settings.evaluation.judge.members if isinstance(judge, Exact)}


def judge_code(settings: Settings) -> dict[str, str]:
    """The same as `code_of`, of the scorers that judge alone."""
    return _code([], _judge_scorers(settings))


def _modules(module: str) -> dict[str, Path]:
    """Files of a module and of those that it imports from its own folder, by name; installed ones from its package."""
    top = module.partition(".")[0]
    home = _file_of(top)
    if home is None:
        return {}
    package = home.parent if home.name == "__init__.py" else home
    is_installed = _is_installed(package)
    root = package if is_installed else (package.parent if package != home else home.parent)
    files: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        top_file = _file_of(name.partition(".")[0])
        if name in files or top_file is None or not (top_file == root or root in top_file.parents):
            continue
        if _is_installed(top_file) and not is_installed:
            # An environment may lie in the user's own folder.
            continue
        if name.partition(".")[0] == PACKAGE:
            # A file of the user's may lie in this package's checkout; its version stands in the manifest.
            continue
        if (file := _file_of(name)) is None:
            continue
        files[name] = file
        is_package = file.name == "__init__.py"
        queue += _imports(file, name if is_package else name.rpartition(".")[0])
        if "." in name:
            queue.append(name.rpartition(".")[0])
    return files


def _is_installed(path: Path) -> bool:
    places = {Path(place) for place in sysconfig.get_paths().values()}
    return bool(places & set(path.parents))


def _file_of(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except Exception:  # The packages above it are imported, and may do anything.
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _imports(file: Path, package: str) -> list[str]:
    """Names of all that a file may import. package: which it belongs to."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            except ImportError:
                continue
            names += [str(base), *(f"{base}.{alias.name}" for alias in node.names)]
    return names
