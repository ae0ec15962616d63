"""Folders that are made once: whole or not at all, by one maker, and again when what they depend on has changed."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file

from slime_ray.errors import InputError
from slime_ray.runs.store import RunStore
from slime_ray.training.cache import cached, clear_unfinished, content_of, stage_errors
from slime_ray.training.orders import ending
from slime_ray.training.outcome import StageError
from tests.damage import DAMAGES

from .small_trials import nothing


def test_a_folder_is_made_once_and_found_afterwards(tmp_path):
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    first = cached(RunStore(tmp_path), "sft", "k1", make, nothing)
    assert cached(RunStore(tmp_path), "sft", "k1", make, nothing) == first
    assert cached(RunStore(tmp_path), "sft", "k2", make, nothing) != first
    assert (first / "file").read_text() == "whole"
    assert len(made) == 2


def test_what_fails_half_way_leaves_nothing_and_is_made_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(StageError, match="could not be made: RuntimeError: no space"):
        cached(RunStore(tmp_path), "sft", "k", fail, nothing)
    assert [path.name for path in (tmp_path / ".stages").iterdir() if path.is_dir()] == []
    assert cached(RunStore(tmp_path), "sft", "k", lambda folder: None, nothing).is_dir()


def test_two_at_once_make_one_folder(tmp_path):
    making, made = threading.Barrier(2, timeout=60), []

    def make(folder: Path) -> None:
        made.append(folder)

    def ask() -> None:
        making.wait()
        cached(RunStore(tmp_path), "sft", "k", make, nothing)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_the_content_of_a_file_is_its_bytes_and_not_its_time(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("one")
    before = content_of(str(file))
    os.utime(file, ns=(1, 1))
    assert content_of(str(file)) == before
    assert content_of(str(file), by_time=True) != content_of(str(tmp_path / "pairs.jsonl"))
    file.write_text("two")
    assert content_of(str(file)) != before


def test_the_content_of_a_folder_is_that_of_its_files_and_of_a_name_nothing(tmp_path):
    (tmp_path / "a.json").write_text("1")
    before = content_of(str(tmp_path))
    (tmp_path / "b.json").write_text("2")
    assert content_of(str(tmp_path)) != before
    assert content_of("HuggingFaceH4/ultrafeedback_binarized") is None
    assert content_of(None) is None


def fill(folder: Path) -> None:
    (folder / "weights").write_text("whole")


class Told:
    """What a report was told, in order."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def __call__(self, told: Any) -> None:
        self.notices += [told["notice"]] if "notice" in told else []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again_and_that_is_said_once(tmp_path, damage):
    told = Told()
    folder = cached(RunStore(tmp_path), "sft", "k", fill, told)
    assert told.notices == []
    DAMAGES[damage](folder / "weights")
    for _ in range(2):
        assert cached(RunStore(tmp_path), "sft", "k", fill, told) == folder
        assert (folder / "weights").read_text() == "whole"
    assert len(told.notices) == 1
    assert str(folder / "weights") in told.notices[0]


def test_a_folder_of_an_earlier_version_is_made_again(tmp_path):
    told, folder = Told(), tmp_path / ".stages" / "sft-k"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("who knows")
    cached(RunStore(tmp_path), "sft", "k", fill, told)
    assert (folder / "weights").read_text() == "whole"
    assert "has no record of its files" in told.notices[0]


def test_what_a_killed_maker_left_is_deleted_and_what_is_being_made_is_not(tmp_path):
    stages = tmp_path / ".stages"
    for name in (".sft-k.0123abcd", ".step0-k.0123abcd", ".tokens-k.0123abcd"):
        (stages / name).mkdir(parents=True)
        (stages / name / "weights").write_text("half")
    with FileLock(stages / "tokens-k.lock"):
        cached(RunStore(tmp_path), "sft", "k", fill, nothing)
    assert sorted(path.name for path in stages.iterdir() if path.is_dir()) == [".tokens-k.0123abcd", "sft-k"]
    clear_unfinished(RunStore(tmp_path))
    assert sorted(path.name for path in stages.iterdir() if path.is_dir()) == ["sft-k"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_maker_leaves_nothing(tmp_path, number):
    def make(folder: Path) -> None:
        fill(folder)
        signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt), ending():
        cached(RunStore(tmp_path), "sft", "k", make, nothing)
    assert [path.name for path in (tmp_path / ".stages").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("content", [b"", b"\x07\x00\x00\x00\x00\x00\x00\x00{}", b"PK\x03\x04", b"PAR1"])
@pytest.mark.parametrize(
    "read",
    [
        load_file,
        pq.read_table,
        lambda path: np.load(path)["chosen"],
        lambda path: json.loads(path.read_text())["hashes"],
    ],
    ids=["safetensors", "parquet", "npz", "json"],
)
def test_whatever_a_file_cannot_be_read_with_is_an_error_of_the_stages(tmp_path, read, content):
    folder = cached(RunStore(tmp_path), "step0", "k", fill, nothing)
    (folder / "weights").write_bytes(content)
    with pytest.raises(StageError, match="could not be used: ") as raised, stage_errors("used", RunStore(tmp_path)):
        read(folder / "weights")
    assert str(folder / "weights") in str(raised.value)


@pytest.mark.parametrize("error", [InputError("no such data"), MemoryError(), torch.OutOfMemoryError("out of memory")])
def test_what_a_user_can_mend_and_memory_keep_their_own_words(tmp_path, error):
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        cached(RunStore(tmp_path), "sft", "k", fail, nothing)


def test_a_full_disk_names_the_storage_and_the_way_out(tmp_path):
    def fail(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(StageError) as raised:
        cached(RunStore(tmp_path), "sft", "k", fail, nothing)
    assert str(raised.value) == (
        "The shared stages could not be made: OSError: Error while serializing: I/O error: No space left on device "
        f"(os error 28). Make room in {tmp_path}, and give the same command with --resume."
    )
    assert [path.name for path in (tmp_path / ".stages").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_weights_that_come_out_otherwise_are_refused_once(tmp_path, damaged):
    """As on another machine: trials that have finished began with the old ones."""
    content = ["old"]

    def make(folder: Path) -> None:
        (folder / "model.safetensors").write_text(content[0])
        (folder / "config.json").write_text("config")

    folder = cached(RunStore(tmp_path), "sft", "k", make, nothing)
    (folder / damaged).unlink()
    content[0] = "new"
    with pytest.raises(StageError, match=r"other weights \(model.safetensors\).* another name"):
        cached(RunStore(tmp_path), "sft", "k", make, nothing)
    # A run that begins now has no such trials.
    cached(RunStore(tmp_path), "sft", "k", make, nothing)
    assert (folder / "model.safetensors").read_text() == "new"
