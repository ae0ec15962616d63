"""Folders that are made once: whole or not at all, by one maker, and again when what they depend on has changed."""

import os
import threading
from pathlib import Path

import pytest

from slime_ray.mirror import Mirror
from slime_ray.training.cache import cached, content_of
from slime_ray.training.outcome import StageError


def silent(told: object) -> None:
    return None


def test_a_folder_is_made_once_and_found_afterwards(tmp_path):
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    first = cached(Mirror(tmp_path), "sft", "k1", make, silent)
    assert cached(Mirror(tmp_path), "sft", "k1", make, silent) == first
    assert cached(Mirror(tmp_path), "sft", "k2", make, silent) != first
    assert (first / "file").read_text() == "whole"
    assert len(made) == 2


def test_what_fails_half_way_leaves_nothing_and_is_made_again(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(StageError, match="could not be made: RuntimeError: no space"):
        cached(Mirror(tmp_path), "sft", "k", fail, silent)
    assert [path.name for path in (tmp_path / ".stages").iterdir() if path.is_dir()] == []
    assert cached(Mirror(tmp_path), "sft", "k", lambda folder: None, silent).is_dir()


def test_two_at_once_make_one_folder(tmp_path):
    making, made = threading.Barrier(2, timeout=20), []

    def make(folder: Path) -> None:
        made.append(folder)

    def ask() -> None:
        making.wait()
        cached(Mirror(tmp_path), "sft", "k", make, silent)

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
