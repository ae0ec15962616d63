"""Where preference data may lie: files, folders and the Hub. Each source names the place of every row."""

import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk

from slime_ray.data.columns import UNREAD, holds_bytes, is_metadata, may_hold_text, renaming
from slime_ray.data.forms import COLUMNS, KNOWN_FORMS, BadRow
from slime_ray.data.places import SUFFIXES, may_be_hub_id, whereabouts
from slime_ray.errors import InputError

_BATCH = 1000

Rows = Iterator[tuple[str, Any]]
"""Pairs of a place ("line 7" from 1, or "row 6" from 0) and the row, or the BadRow it turned out to be."""


def open_source(source: str | Path, *, split: str, subset: str | None, revision: str | None) -> Rows:
    """The rows of a file, a folder or a data set on the Hub. Raises InputError, at once or while reading."""
    path = Path(source).expanduser()
    if not path.exists():
        if isinstance(source, Path) or path.is_symlink() or not may_be_hub_id(source):
            raise InputError(f"{source}: there is no such file or folder{whereabouts(path)}. Check the path.")
        return _arrow_rows(_from_hub(source, split=split, subset=subset, revision=revision), source)
    for name, value in (("subset", subset), ("revision", revision)):
        if value is not None:
            raise InputError(
                f"{source}: {name} {value!r} is for data sets on the Hub, and this is a local file or folder. Leave it "
                "out."
            )
    if path.is_file():
        _pick_split(source, {"train": None}, split)
        return _file_rows(path, "")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _arrow_rows(_from_disk(path, split), str(source))
    files = _pick_split(source, _folder_files(path), split)
    return _rows_of_files(path, files)


def _pick_split(source: str | Path, splits: Mapping[Any, Any], split: str) -> Any:
    names = {str(name): value for name, value in splits.items()}
    if split not in names:
        raise InputError(f"{source}: there is no split {split!r}. It has {', '.join(names)}. Set split to one of them.")
    return names[split]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _from_hub(source: str, *, split: str, subset: str | None, revision: str | None) -> Dataset:
    try:
        splits = load_dataset(source, name=subset, revision=revision)
    except Exception as error:  # the Hub, the network and the data set's own files fail in many ways
        raise InputError(
            f"{source}: no such file or folder here, and it cannot be read as a data set on the Hub: {_reason(error)}. "
            "Check the name, log in if the data set is gated, name the subset if it has several, or download it and "
            "give the folder (HF_HUB_OFFLINE=1 allows only what was downloaded before)."
        ) from error
    return _pick_split(source, splits, split)


def _from_disk(path: Path, split: str) -> Dataset:
    try:
        stored = load_from_disk(str(path))
    except Exception as error:  # a half-written folder fails in many ways
        raise InputError(
            f"{path}: this looks like a folder that Dataset.save_to_disk wrote, but it cannot be read: "
            f"{_reason(error)}. Write it again."
        ) from error
    if isinstance(stored, DatasetDict):
        return _pick_split(path, stored, split)
    name = str(stored.split or "train")
    # A saved split often carries the name it had before; the default then means this one.
    return stored if split == "train" else _pick_split(path, {name: stored}, split)


def _folder_files(path: Path) -> dict[str, list[Path]]:
    """Split name to files, by the conventions of `datasets` (file names, or the README's configuration)."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            splits = load_dataset_builder(str(path), cache_dir=scratch).config.data_files
        except Exception as error:  # unreadable README, mixed file types, scripts, no files at all
            raise InputError(
                f"{path}: no data set can be made out in this folder: {_reason(error)}. Give one file, or a folder "
                f"whose files are all of one kind ({', '.join(SUFFIXES)})."
            ) from error
    return {str(split): [Path(str(file)) for file in files] for split, files in (splits or {}).items()}


def _rows_of_files(folder: Path, files: list[Path]) -> Rows:
    for file in files:
        name = file.relative_to(folder.absolute()) if file.is_relative_to(folder.absolute()) else file
        yield from _file_rows(file, f"{name} " if len(files) > 1 else "")


def _file_rows(path: Path, label: str) -> Rows:
    kinds = {
        ".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows,
    }  # fmt: skip
    read = kinds.get(_kind(path))
    if read is None or (read is _parquet_rows and _is_gzip(path)):
        raise InputError(f"{path}: files of this kind are not read. Give one of {', '.join(SUFFIXES)}.")
    try:
        if read is not _parquet_rows:
            _check_encoding(path)
        yield from read(path, label)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked: {_reason(error)}. Write the file again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _reason(error)}. Check the file.") from error


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _kind(path: Path) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    return (Path(path.stem) if _is_gzip(path) else path).suffix.lower()


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _check_encoding(path: Path) -> None:
    """Raise InputError for what would otherwise be an error in every line."""
    with _open(path) as file:
        start = file.read(4)
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise InputError(f"{path}: is compressed. Unpack it and give the file that was in it.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise InputError(f"{path}: looks like UTF-16 or UTF-32. Save the file as UTF-8.")


def _csv_rows(path: Path, label: str) -> Rows:
    """Rows of a file whose first line names the columns. A row is named by the line on which it begins.

    What is wrong with one row shifts the cells of others, so it ends the reading.
    """
    csv.field_size_limit(2**31 - 1)  # the module's own is 128 KiB, less than a long conversation
    with _open(path) as file:
        reader = csv.reader(_lines(path, file), delimiter="\t" if _kind(path) == ".tsv" else ",", strict=True)
        names: list[str] = []
        end = 0
        try:
            for cells in reader:
                start, end = end + 1, reader.line_num
                if not cells:
                    continue
                if not names:
                    names = cells
                    _needs_columns(path, names)
                    continue
                if len(cells) != len(names):
                    raise InputError(
                        f"{path}:{start}: the row has {len(cells)} cells, and the header names {len(names)} columns. "
                        "Put quotes around cells with separators or line breaks in them, and double quotes in those."
                    )
                yield f"{label}line {start}", {name: _cell(name, text) for name, text in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise InputError(f"{path}:{end + 1}: no row that can be read: {error}. Mend its quotes.") from error


def _lines(path: Path, file: BufferedIOBase) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8. Save the file as UTF-8.") from error


def _cell(name: str, text: str) -> str | None:
    """A cell's text; None for a number in a further column, which a file of text cannot tell from text."""
    if name in COLUMNS:
        return text
    try:
        float(text)
    except ValueError:
        return text
    return None


def _jsonl_rows(path: Path, label: str) -> Rows:
    """Blank lines are no rows. Lines end with a line feed only: text may hold any other separator."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield f"{label}line {number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
    except (ValueError, RecursionError):
        return BadRow("not JSON")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object, or a BadRow in its place where a key stands twice: json would keep the last one alone."""
    mapping = dict(pairs)
    return mapping if len(mapping) == len(pairs) else BadRow("a key stands twice in it")


def _json_rows(path: Path, label: str) -> Rows:
    """One array of rows; or JSON lines, which many tools write under this suffix too."""
    with _open(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start != b"[":
        yield from _jsonl_rows(path, label)
        return
    try:
        with _open(path) as file:
            rows = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}. Mend it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON that can be read: {_reason(error)}. Mend it.") from error
    for number, row in enumerate(rows):
        yield f"{label}row {number}", row


def _parquet_rows(path: Path, label: str) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            _needs_columns(path, file.schema_arrow.names)
            columns, unread = _columns_to_read(file.schema_arrow)
            yield from _batch_rows(file.iter_batches(batch_size=_BATCH, columns=columns), unread, label)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as parquet: {_reason(error)}. Write the file again.") from error


def _arrow_rows(dataset: Dataset, source: str) -> Rows:
    _needs_columns(source, dataset.column_names)
    columns, unread = _columns_to_read(dataset.features.arrow_schema)
    tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH)
    try:
        yield from _batch_rows(tables, unread, "")
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source}: cannot be read: {_reason(error)}. Write or download it again.") from error


def _needs_columns(source: str | Path, names: list[str]) -> None:
    if not {"chosen", "rejected"} <= set(names):
        raise unknown_form(str(source), names)
    if twice := sorted(name for name in COLUMNS if names.count(name) > 1):
        raise InputError(f"{source}: the column {twice[0]} is there twice. Rename or remove one.")


def _columns_to_read(schema: pa.Schema) -> tuple[list[str], dict[str, Any]]:
    """Return the columns that may hold text, and what the first row has for the others, so that a report names them."""
    columns: list[str] = []
    unread: dict[str, Any] = {}
    for column in schema:
        if column.name in COLUMNS:
            columns.append(column.name)
        elif is_metadata(column.name) or not (may_hold_text(column.type) or holds_bytes(column.type)):
            unread[column.name] = None
        elif holds_bytes(column.type):
            unread[column.name] = UNREAD
        else:
            columns.append(column.name)
    return columns, unread


def _batch_rows(batches: Iterable[Any], unread: dict[str, Any], label: str) -> Rows:
    first = 0
    for batch in batches:
        try:
            rows: list[Any] = [_without_nulls(row) for row in batch.to_pylist()]
        except UnicodeDecodeError:  # Arrow does not check its text columns; find the rows one by one
            rows = [_row_of(batch, index) for index in range(batch.num_rows)]
        if first == 0 and rows and isinstance(rows[0], dict):
            rows[0] |= unread
        for index, row in enumerate(rows, start=first):
            yield f"{label}row {index}", row
        first += len(rows)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its objects as they were written. Arrow gives each the fields of all, and null where it had none."""

    def written(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: written(inner) for name, inner in value.items() if inner is not None}
        return [written(inner) for inner in value] if isinstance(value, list) else value

    return {name: written(cell) for name, cell in row.items()}


def _row_of(batch: Any, index: int) -> Any:
    try:
        return _without_nulls(batch.slice(index, 1).to_pylist()[0])
    except UnicodeDecodeError:
        return BadRow("not UTF-8")


def unknown_form(source: str, columns: Iterable[Any]) -> InputError:
    """The error of data whose columns are those of no known form."""
    names = sorted(map(str, columns))
    return InputError(
        f"{source}: the columns are {', '.join(names) or 'none'}, which is no known form of preference data: chosen "
        f"and rejected are needed. {renaming(names)}. The known forms are {KNOWN_FORMS}."
    )
