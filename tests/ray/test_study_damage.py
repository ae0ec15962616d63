"""Studies that are damaged, cut off or out of reach. No Ray instance is needed."""

import resource
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from slime_ray.errors import InputError
from slime_ray.on_ray.search import StudyFailed, study_storage
from tests.ray.studies import KNOWN, ask, completed, finished, open_search, play, row, states

pytestmark = pytest.mark.usefixtures("quick_disk")
DATABASE = pytest.mark.parametrize("backend", ["database"], indirect=True)
HOWS = ["garbage", "a bad line", "a bad last line", "not an entry", "another operation", "no beginning", "cut", "empty"]


def damage(content: bytes, how: str) -> bytes:
    lines = content.splitlines(keepends=True)
    return {
        "garbage": b"\x00\xff garbage \x80" * 40 + b"\n",
        "a bad line": b"".join([*lines[:5], b"{not json\n", *lines[5:]]),
        "a bad last line": content + b"{not json\n",
        "not an entry": b"[1, 2]\n" + content,
        "another operation": b'{"op_code": 99}\n' + content,
        "no beginning": b"".join(lines[3:]),
        "cut": content[: len(content) // 2],
        "empty": b"",
    }[how]


def refusal(path: Path, rows: Any) -> str | None:
    """What opening the study is refused with, if it is."""
    try:
        open_search(path, rows=rows)
    except (InputError, StudyFailed) as error:
        return str(error)
    return None


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_journal_is_one_sentence_with_its_name_or_made_again(tmp_path, how):
    rows = play(open_search(tmp_path), "abc")
    journal = tmp_path / "study.journal"
    journal.write_bytes(damage(journal.read_bytes(), how))
    if said := refusal(tmp_path, rows):
        assert said.startswith(f"{journal} is damaged: ")
        assert "Move it away, and give the command with --resume" in said
        journal.unlink()
    resumed = open_search(tmp_path, rows=rows)
    assert completed(resumed) == {name: [kept["win_rate"], 0.9] for name, kept in rows.items()}
    assert ask(resumed, "d") not in [kept["values"] for kept in rows.values()]
    assert len(completed(open_search(tmp_path, rows=rows))) == 3


@DATABASE
@pytest.mark.parametrize("how", ["garbage", "cut", "empty"])
def test_a_damaged_database_is_one_sentence_or_made_again(tmp_path, backend, how):
    rows = play(open_search(tmp_path), "abc")
    file = tmp_path / "study.db"
    file.write_bytes(damage(file.read_bytes(), how))
    if said := refusal(tmp_path, rows):
        assert "study" in said
        assert "made again from the trials' results" in said
        file.unlink()
    resumed = open_search(tmp_path, rows=rows)
    assert completed(resumed) == {name: [kept["win_rate"], 0.9] for name, kept in rows.items()}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "it is no such address"),
        ("nosuch://me:secret@host/db", "Install its driver"),
        ("sqlite:////no/such/folder/study.db", "Start the database or correct the address"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(tmp_path, url, words):
    with pytest.raises(InputError, match=words) as refused:
        study_storage(tmp_path, url)
    assert "secret" not in str(refused.value)


@DATABASE
def test_two_runs_share_a_database_and_no_trial(tmp_path, backend):
    one, other = (open_search(tmp_path, name=name) for name in ("first-1", "first-2"))
    assert ask(one, "a") == ask(other, "a") == KNOWN
    one.tell("a", finished())
    assert states(one) == [TrialState.COMPLETE]
    assert states(other) == [TrialState.RUNNING]


@DATABASE
def test_a_database_that_fails_is_told_again_what_it_missed(tmp_path, backend):
    """The file of the database is overwritten, and put back."""
    file = tmp_path / "study.db"
    search = open_search(tmp_path)
    ask(search, "a")
    kept = file.read_bytes()
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StudyFailed, match=r"The study's database failed \(.*--resume"):
        search.tell("a", finished())
    with pytest.raises(StudyFailed):
        ask(search, "b")
    file.write_bytes(kept)
    search.tell("a", finished())
    assert states(search) == [TrialState.COMPLETE]


def test_a_journal_that_a_full_disk_has_cut_off_is_gone_on_with(tmp_path):
    """RLIMIT_FSIZE lets the next entry be written in part, as a full disk does."""
    search = open_search(tmp_path)
    ask(search, "search-0001")
    journal, before = tmp_path / "study.journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(StudyFailed, match="File too large"):
            search.tell("search-0001", finished())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not journal.read_bytes().endswith(b"\n")
    open_search(tmp_path, rows={"search-0001": row(KNOWN)}).ask(["b"])
    assert list(completed(open_search(tmp_path, rows={"search-0001": row(KNOWN)}))) == ["search-0001"]
