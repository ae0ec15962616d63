"""Files and folders are whole or not there; what is wrong with a folder is told; a full disk is known in any library."""

import mmap
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from slime_ray.runs import files
from tests.damage import DAMAGES, change, truncate


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Errors of a storage


@contextmanager
def no_room() -> Iterator[None]:
    """Every write of more than so many bytes fails, as on a full disk, and a library says so in words of its own.

    No fixture: pytest's own report may go to a file, which is longer than that.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


NUMBERS = np.random.default_rng(0).random(100_000)
WRITERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": lambda path: save_file({"x": torch.from_numpy(NUMBERS)}, path),
    "torch": lambda path: torch.save(torch.from_numpy(NUMBERS), path),
    "numpy": lambda path: np.savez(path, x=NUMBERS),
    "parquet": lambda path: pq.write_table(pa.table({"x": NUMBERS}), path),
    "datasets": lambda path: Dataset.from_dict({"x": NUMBERS}).to_parquet(path),
    "tokenizers": lambda path: Tokenizer(models.BPE({f"word{n}": n for n in range(9000)}, [])).save(str(path)),
    "text": lambda path: path.write_text("x" * 100_000),
    "whole": lambda path: files.write(path, b"x" * 100_000),
}


# numpy 1.26 closes its archive once more when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_an_os_error_whatever_library_meets_it(tmp_path, library):
    with pytest.raises(Exception) as raised, no_room():
        WRITERS[library](tmp_path / "file")
    found = files.storage_error(raised.value)
    assert isinstance(found, OSError)
    assert str(found)


def test_an_error_that_another_one_hides_is_found():
    hidden, shown = OSError(28, "No space left on device"), RuntimeError("the data set could not be made")
    shown.__cause__ = hidden
    assert files.storage_error(shown) is hidden


@pytest.mark.parametrize(
    "error", [ValueError("28"), FileNotFoundError(2, "No such file"), RuntimeError("no such layer")]
)
def test_other_errors_are_not_the_storages(error):
    assert files.storage_error(error) is None


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    files.write(path, "old")
    with files.atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_a_private_file_is_its_owners_alone(tmp_path, private, mode):
    before = os.umask(0o022)
    try:
        files.write(tmp_path / "file", "secret", private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("folder", [True, False])
def test_what_is_cut_off_leaves_the_old_one_and_nothing_else(tmp_path, error, folder):
    path = tmp_path / "it"
    if folder:
        path.mkdir()
        (path / "inner").write_text("old")
    else:
        path.write_text("old")

    def begin() -> None:
        with files.atomic_path(path) as partial:
            partial.mkdir() if folder else partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        begin()
    assert names(tmp_path) == ["it"]
    assert (path / "inner" if folder else path).read_text() == "old"


def test_who_has_a_file_of_a_replaced_folder_mapped_still_reads_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with files.atomic_path(path) as partial:
            partial.mkdir()
            (partial / "weights").write_text(content)
        if content == "old":
            stream = (path / "weights").open("rb")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with stream, mapped:
        assert mapped[:] == b"old"
    assert (path / "weights").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_a_folder_takes_the_place_of_a_file_and_a_file_not_that_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with files.atomic_path(tmp_path / "file") as partial:
        partial.mkdir()
    assert (tmp_path / "file").is_dir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "file", "text")
    assert names(tmp_path) == ["file"]


def test_only_what_was_left_half_written_is_cleared(tmp_path):
    kept = ["answers.parquet", ".sweep.lock", ".held", ".complete", ".stages"]
    for name in [*kept, ".answers.parquet.0123abcd"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".checkpoint.89abcdef" / "inner").mkdir(parents=True)
    files.clear_partials(tmp_path)
    assert names(tmp_path) == sorted(kept)
    files.clear_partials(tmp_path / "no such folder")


# ---------------------------------------------------------------------------------------------------------------------
# What a folder has to hold


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_text("some weights")
    (folder / "inner" / "tokens").write_text("some tokens")
    (folder / "nothing").write_text("")
    files.seal(folder)
    return folder


def test_a_sealed_folder_is_whole_wherever_it_is_moved(sealed):
    assert files.damage(sealed) is None
    assert files.damage(sealed.rename(sealed.with_name("moved"))) is None
    # What somebody puts beside it is no damage.
    (sealed.with_name("moved") / "note").write_text("mine")
    assert files.damage(sealed.with_name("moved")) is None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "inner/tokens"])
def test_a_damaged_file_is_named(sealed, name, damage):
    assert files.damage(sealed) is None
    DAMAGES[damage](sealed / name)
    assert str(sealed / name) in str(files.damage(sealed))


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
def test_without_its_record_a_folder_is_not_whole(sealed, damage):
    DAMAGES[damage](sealed / files.RECORD)
    assert files.RECORD in str(files.damage(sealed))


def test_sizes_alone_do_not_see_another_content(sealed):
    files.seal(sealed, digests=False)
    change(sealed / "weights")
    assert files.damage(sealed) is None
    truncate(sealed / "weights")
    assert f"{sealed / 'weights'} has 6 bytes instead of 12" == files.damage(sealed)


def test_a_folder_that_is_not_there_or_is_a_file_is_not_whole(tmp_path):
    (tmp_path / "file").write_text("")
    assert files.damage(tmp_path / "none") == f"{tmp_path / 'none'} is missing"
    assert files.damage(tmp_path / "file") is not None
