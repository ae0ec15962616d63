"""Working copies of a storage that is not a folder. `file://` stands for the object stores, which share its interface."""

import json
import pickle
import platform
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_ray.errors import InputError, RunError
from slime_ray.runs import files
from slime_ray.runs import store as mirror
from slime_ray.runs.redaction import has_secret, strip_credentials
from slime_ray.runs.store import RunStore, join_address, split_address
from slime_ray.training.cache import cached


def two(tmp_path: Path) -> tuple[RunStore, RunStore]:
    """Two machines with one storage."""
    url = f"file://{tmp_path}/bucket"
    return RunStore(tmp_path / "here", url), RunStore(tmp_path / "there", url)


def write(mirror: RunStore, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = mirror.root / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stage(folder: Path) -> dict[str, bytes]:
    """What a stage holds, which its record agrees with."""
    assert files.damage(folder) is None
    return {name: content for name, content in read(folder).items() if name != files.RECORD}


names = st.sampled_from(["a", "b.json", "trial.json", "resume/step-1/state.json", "resume/step-2/x", "checkpoint/m"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.dictionaries(names, st.binary(max_size=8)), min_size=1, max_size=4))
def test_the_other_machine_sees_what_was_pushed_and_nothing_that_is_gone(tmp_path_factory, steps):
    here, there = two(tmp_path_factory.mktemp("storage"))
    for content in steps:
        for path in sorted(here.root.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        write(here, content)
        (here.root / "run").mkdir(parents=True, exist_ok=True)
        here.push(here.root / "run", prune=True)
        there.pull(there.root / "run")
        assert read(there.root / "run") == content


def test_what_is_half_written_and_what_nobody_needs_stays_here(tmp_path):
    here, there = two(tmp_path)
    write(
        here, {"scratch/x": b"1", ".step-1.abc/state.json": b"2", "model.partial": b"3", "x.lock": b"4", "kept": b"5"}
    )
    here.push(here.root / "run")
    there.pull(there.root / "run")
    assert read(there.root / "run") == {"kept": b"5"}


def test_skipped_folders_are_neither_fetched_nor_deleted(tmp_path):
    here, there = two(tmp_path)
    write(here, {"checkpoint/model": b"1", "row": b"2"})
    here.push(here.root / "run")
    write(there, {"checkpoint/mine": b"3", "old": b"4"})
    there.pull(there.root / "run", skip=("checkpoint",))
    assert read(there.root / "run") == {"checkpoint/mine": b"3", "row": b"2"}


def test_only_what_changed_is_sent_and_fetched_again(tmp_path):
    here, there = two(tmp_path)
    write(here, {"a": b"1", "b": b"2"})
    here.push(here.root / "run")
    sent = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bucket" / "run").iterdir()}
    write(here, {"b": b"changed"})
    here.push(here.root / "run")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bucket" / "run").iterdir()}
    assert again["a"] == sent["a"]
    assert again["b"] > sent["b"]
    there.pull(there.root / "run")
    before = (there.root / "run" / "a").stat().st_mtime_ns
    there.pull(there.root / "run")
    assert (there.root / "run" / "a").stat().st_mtime_ns == before


def test_what_one_machine_wrote_over_is_fetched_though_this_one_has_it(tmp_path):
    here, there = two(tmp_path)
    write(here, {"attempts.json": b"1"})
    here.push(here.root / "run")
    there.pull(there.root / "run")
    write(there, {"attempts.json": b"2"})
    there.push_files(there.root / "run")
    here.pull(here.root / "run")
    assert read(here.root / "run") == {"attempts.json": b"2"}


def test_another_process_sends_what_this_one_has_sent(tmp_path, monkeypatch):
    """What was sent is known by process: a mirror that travels starts without it."""
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "scratch"))
    here, _ = two(tmp_path)
    write(here, {"a": b"1"})
    here.push(here.root / "run")
    assert here.stamps
    assert pickle.loads(pickle.dumps(here)).stamps == {}


def test_a_stage_is_made_on_one_machine_and_fetched_on_the_other(tmp_path):
    here, there = two(tmp_path)
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "weights").write_text("w")

    folder = cached(here, "sft", "k", make, lambda told: None)
    other = cached(there, "sft", "k", make, lambda told: None)
    assert len(made) == 1
    assert stage(folder) == stage(other) == {"weights": b"w"}
    # Half of an upload is no stage: the last object is missing.
    (tmp_path / "bucket" / ".stages" / "sft-k" / ".complete").unlink()
    third = RunStore(tmp_path / "third", here.url)
    cached(third, "sft", "k", make, lambda told: None)
    assert len(made) == 2


@pytest.mark.parametrize("where", ["on the disk", "in the store", "in both"])
def test_a_damaged_copy_is_fetched_again_and_a_damaged_store_gets_a_new_one(tmp_path, where):
    here, there = two(tmp_path)
    made, notices = [], []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "weights").write_text("whole")

    def report(told: Any) -> None:
        notices.extend([told["notice"]] if "notice" in told else [])

    cached(here, "sft", "k", make, report)
    far, near = tmp_path / "bucket" / ".stages" / "sft-k", there.root / ".stages" / "sft-k"
    cached(there, "sft", "k", make, report)
    if where != "in the store":
        (near / "weights").write_text("half"[:2])
    if where != "on the disk":
        (far / "weights").write_text("half"[:2])
        third = RunStore(tmp_path / "third", here.url)
        near = third.root / ".stages" / "sft-k"
        cached(third, "sft", "k", make, report)
    else:
        cached(there, "sft", "k", make, report)
    assert stage(near) == stage(far) == {"weights": b"whole"}
    assert len(made) == (1 if where == "on the disk" else 2)
    assert len(notices) == 1
    assert f"{near / 'weights'} has 2 bytes instead of 5" in notices[0]


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_store_that_refuses_a_stage_for_a_while_is_waited_for(tmp_path, where):
    """A file stands in the way of the folder, in the store where it is made, on the other machine's disk later."""
    here, there = two(tmp_path)
    far, near, waited = tmp_path / "bucket" / ".stages" / "sft-k", there.root / ".stages" / "sft-k", []

    def make(folder: Path) -> None:
        (folder / "weights").write_text("w")

    def report(told: Any) -> None:
        if told["doing"].startswith("waiting for storage"):
            waited.append(told)
            (far if where == "here" else near).unlink()

    if where == "here":
        far.parent.mkdir(parents=True)
        far.write_text("in the way")
        assert stage(cached(here, "sft", "k", make, report)) == {"weights": b"w"}
    else:
        cached(here, "sft", "k", make, report)
        near.parent.mkdir(parents=True)
        near.write_text("in the way")
        assert stage(cached(there, "sft", "k", make, report)) == {"weights": b"w"}
    assert len(waited) == 1


def test_a_folder_is_its_own_working_copy(tmp_path):
    mirror = RunStore.of(str(tmp_path), "driver")
    assert mirror == RunStore.of(str(tmp_path), "trials")
    write(mirror, {"a": b"1"})
    mirror.pull(tmp_path / "run")
    mirror.push(tmp_path / "run", prune=True)
    assert read(tmp_path) == {"run/a": b"1"}
    assert mirror.address(tmp_path / "run") == str(tmp_path / "run")


def test_ray_is_given_the_address_with_its_query(tmp_path):
    mirror = RunStore(tmp_path, "s3://bucket/runs/?endpoint_override=host")
    assert mirror.address(tmp_path / "first" / "ray") == "s3://bucket/runs/first/ray?endpoint_override=host"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://host/runs", "begins with s3://, gs:// or abfs://"),
        ("nonsense://x", "begins with s3://, gs:// or abfs://"),
        ("hf://datasets/me/runs", "The Hub takes models"),
        ("abfs://no-account/runs", "a valid account name"),
    ],
)
def test_an_address_that_nothing_reads_is_refused(url, sentence):
    with pytest.raises(InputError, match=sentence):
        RunStore.of(url, "driver").check()


def test_an_address_of_azure_is_read_by_pyarrow():
    store, base = mirror._store("abfs://runs@account.dfs.core.windows.net/first")
    assert (store.type_name, base) == ("abfs", "runs/first")


def test_a_storage_that_cannot_be_used_is_a_sentence_without_its_secrets(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="it cannot be used") as refused:
        RunStore(tmp_path / "copy", f"file://{tmp_path}/file/runs?secret_key=abc").check()
    assert "abc" not in str(refused.value)


def test_a_run_in_a_store_is_held_by_one(tmp_path, monkeypatch):
    here, there = two(tmp_path)
    with here.claim_folder(here.root / "run"):
        monkeypatch.setattr("slime_ray.runs.store.os.getpid", lambda: 1)
        with pytest.raises(InputError, match="Another sweep"), there.claim_folder(there.root / "run"):
            pass
        # What says so is no part of the run.
        there.pull(there.root / "run")
        assert read(there.root / "run") == {}
    with there.claim_folder(there.root / "run"):
        pass


@pytest.mark.parametrize(("who", "age"), [("elsewhere 1", 1000.0), (f"{platform.node()} 99999999", 1.0)])
def test_who_held_it_and_is_gone_holds_it_no_more(tmp_path, who, age):
    here, _ = two(tmp_path)
    claim = tmp_path / "bucket" / "run" / ".held"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"who": who, "time": time.time() - age}))
    with here.claim_folder(here.root / "run"):
        assert who not in claim.read_text()
    assert not claim.exists()


def test_working_copies_are_not_put_where_somebody_else_could_read_them(tmp_path, monkeypatch):
    monkeypatch.delenv("SLIME_RAY_SCRATCH", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    root = RunStore.of("s3://bucket/runs", "driver").root
    [scratch] = tmp_path.iterdir()
    assert scratch in root.parents
    assert scratch.stat().st_mode & 0o077 == 0
    scratch.rmdir()
    (tmp_path / "elsewhere").mkdir()
    scratch.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="belongs to somebody else"):
        RunStore.of("s3://bucket/runs", "driver")


def test_what_is_removed_is_gone_here_and_there(tmp_path):
    here, there = two(tmp_path)
    write(here, {"checkpoint/model": b"1", "row": b"2"})
    here.push(here.root / "run")
    here.remove(here.root / "run" / "checkpoint")
    there.pull(there.root / "run")
    assert not (here.root / "run" / "checkpoint").exists()
    assert read(there.root / "run") == {"row": b"2"}


@given(
    st.sampled_from(["s3://bucket", "gs://bucket/runs/", "s3://bucket/a/b"]),
    st.from_regex(r"[a-z0-9-]+", fullmatch=True),
    st.sampled_from(["", "?region=eu", "?endpoint_override=host/path&scheme=http"]),
)
def test_a_runs_address_is_its_storage_and_its_name(storage, name, query):
    assert split_address(join_address(storage + query, name)) == (storage.rstrip("/") + query, name)
    assert join_address("/a folder?/", name) == f"/a folder?/{name}"


@pytest.mark.parametrize("address", ["s3://bucket", "s3://bucket/", "s3://k:v@bucket?region=eu"])
def test_a_storage_is_no_runs_address(address):
    with pytest.raises(InputError, match=r"give a run's address") as refused:
        split_address(address)
    assert "k:v" not in str(refused.value)


SECRETIVE = [
    "s3://KEY:SECRET@bucket/runs?bad_option=1", "s3://KEY:SE CRET@bucket/runs", "s3://KEY:SEC/RET@bucket/runs",
    "s3://KEY:SEC?RET@bucket/runs", "s3://KEY:SEC@RET@bucket/runs", "s3://bucket/runs?secret_key=SECRET",
    "ftp://KEY:SECRET@host/runs", "gs://KEY:SECRET@bucket/runs",
]  # fmt: skip


@pytest.mark.parametrize("address", SECRETIVE)
def test_no_refusal_of_an_address_tells_its_secrets(address):
    with pytest.raises(InputError) as refused:
        RunStore.of(address, "driver").check()
    assert not [part for part in ("KEY", "SEC", "RET", "CRET") if part in str(refused.value)]


def test_an_address_is_shown_as_far_as_it_is_no_secret():
    assert strip_credentials("s3://bucket/runs") == "s3://bucket/runs"
    assert strip_credentials("s3://KEY:SECRET@bucket/runs?region=eu") == "s3://bucket/runs"
    assert has_secret("s3://KEY:SEC/RET@bucket/runs")
    assert not has_secret("hdfs://user@host:8020/runs")
    assert not has_secret("s3://bucket/runs?endpoint_override=host:9000")


def test_a_storage_that_is_only_read_is_not_written(tmp_path):
    here, _ = two(tmp_path)
    here.check(write=False)
    assert not (tmp_path / "bucket").exists()
    (tmp_path / "bucket").write_text("in the way")
    with pytest.raises(InputError, match="it cannot be used"):
        here.check(write=False)


def test_a_storage_that_may_not_be_listed_is_refused_before_anything_starts(tmp_path, monkeypatch):
    here, _ = two(tmp_path)
    (tmp_path / "bucket").mkdir()
    store, base = mirror._store(here.url)
    monkeypatch.setattr(mirror, "_store", lambda url: (NoListing(store), base))
    with pytest.raises(InputError, match=r"it cannot be used: ACCESS_DENIED during ListObjectsV2"):
        here.check()


class NoListing:
    """A store whose credentials lack ListBucket."""

    def __init__(self, store: object):
        self.store = store

    def get_file_info(self, asked: object) -> None:
        raise OSError("ACCESS_DENIED during ListObjectsV2")

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


def test_a_store_that_fails_while_a_run_is_taken_or_fetched_is_a_sentence(tmp_path):
    here, _ = two(tmp_path)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "run").write_text("in the way")
    with pytest.raises(RunError, match="could not be used"), here.claim_folder(here.root / "run"):
        pass
    (tmp_path / "bucket" / "run").unlink()
    write(here, {"x": b""})
    here.push(here.root / "run")
    # A folder stands where the copy's file belongs.
    (tmp_path / "there" / "run" / "x").mkdir(parents=True)
    there = RunStore(tmp_path / "there", here.url)
    with pytest.raises(RunError, match="could not be used"), there.claim_folder(there.root / "run"):
        pass
    assert not (tmp_path / "bucket" / "run" / ".held").exists()


def test_there_is_no_copy_of_what_the_storage_has_nothing_of(tmp_path):
    """Neither what was never sent, nor what was deleted there; a claim alone is nothing."""
    here, _ = two(tmp_path)
    write(here, {"manifest.json": b"1", ".sweep.lock": b"", "trials/a/scratch/x": b"2"})
    with here.claim_folder(here.root / "run"):
        here.pull(here.root / "run")
        assert not (here.root / "run").exists()


def test_each_machine_has_its_own_place_for_its_copies(tmp_path, monkeypatch):
    """What SLIME_RAY_SCRATCH says there counts, not what it says where the sweep was started."""
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "driver"))
    mirror = RunStore.of("s3://bucket/runs", "trials")
    travels = pickle.dumps(mirror)
    monkeypatch.setenv("SLIME_RAY_SCRATCH", str(tmp_path / "node"))
    arrived = pickle.loads(travels)
    assert arrived.root == tmp_path / "node" / mirror.root.relative_to(tmp_path / "driver")
    assert arrived.url == mirror.url
    # A folder that all machines share is the same everywhere.
    assert pickle.loads(pickle.dumps(RunStore(tmp_path))).root == tmp_path
