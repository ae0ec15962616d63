"""The cache of verdicts and its ledger."""

import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.config.judge import JudgeBudget, Prices
from slime_ray.errors import RunError
from slime_ray.evaluation.verdict_cache import BudgetSpent, Reply, Spending, Verdicts

FREE = JudgeBudget()


def paid(
    verdicts: Verdicts, key: str, value: str | None, *, judge: str = "j", budget: JudgeBudget = FREE
) -> str | None:
    request = verdicts.begin(judge, key, budget=budget, prices=None)
    return verdicts.finish(request, Reply("text", "m", 10, 2), value)


def another_host(verdicts: Verdicts, name: str) -> Verdicts:
    other = Verdicts(verdicts.folder, run=verdicts.run)
    other.host_file = verdicts.folder / f"{name}.sqlite"
    return other


@pytest.fixture
def verdicts(tmp_path: Path) -> Verdicts:
    return Verdicts(tmp_path / "cache", run="r")


def test_what_was_kept_is_found_and_what_was_invalid_is_not(verdicts):
    assert verdicts.find(["a"]) == {}
    assert paid(verdicts, "a", "A>B") == "A>B"
    assert paid(verdicts, "b", None) is None
    assert verdicts.find(["a", "b", "c"]) == {"a": "A>B"}
    assert verdicts.spent("j") == Spending(2, 20, 4)


def test_the_first_verdict_counts_for_everybody(verdicts):
    """Two processes that ask the same at a time, and are answered differently, both go by the first answer."""
    first = verdicts.begin("j", "a", budget=FREE, prices=None)
    second = verdicts.begin("j", "a", budget=FREE, prices=None)
    assert verdicts.finish(second, Reply("", None, 1, 1), "B>A") == "B>A"
    assert verdicts.finish(first, Reply("", None, 1, 1), "A>B") == "B>A"
    assert verdicts.find(["a"]) == {"a": "B>A"}


def test_spending_is_that_of_one_judge_in_one_run(verdicts, tmp_path):
    paid(verdicts, "a", "A>B")
    paid(verdicts, "b", "A>B", judge="other")
    paid(Verdicts(tmp_path / "cache", run="r2"), "c", "A>B")
    assert verdicts.spent("j") == Spending(1, 10, 2)
    request = verdicts.begin("j", "d", budget=FREE, prices=None)
    assert verdicts.spent("j").requests == 2
    verdicts.abandon(request)
    assert verdicts.spent("j").requests == 1


def test_other_hosts_files_are_read_and_never_written(verdicts):
    paid(another_host(verdicts, "there"), "a", "A>B")
    before = (verdicts.folder / "there.sqlite").read_bytes()
    assert verdicts.find(["a"]) == {"a": "A>B"}
    paid(verdicts, "b", "A=B")
    assert verdicts.spent("j") == Spending(2, 20, 4)
    with pytest.raises(BudgetSpent, match=r"budget.requests 2"):
        paid(verdicts, "c", "A=B", budget=JudgeBudget(requests=2))
    assert (verdicts.folder / "there.sqlite").read_bytes() == before


def test_a_damaged_or_busy_file_of_another_host_counts_as_absent_with_a_warning(verdicts, caplog):
    paid(verdicts, "a", "A>B")
    paid(another_host(verdicts, "busy"), "b", "A>B")
    (verdicts.folder / "damaged.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    (verdicts.folder / "empty.sqlite").touch()
    with sqlite3.connect(verdicts.folder / "busy.sqlite", isolation_level=None) as held:
        held.execute("BEGIN EXCLUSIVE")
        assert verdicts.find(["a", "b"]) == {"a": "A>B"}
        held.execute("ROLLBACK")
    held.close()
    assert all(f"{name}.sqlite" in caplog.text for name in ("damaged", "empty", "busy"))
    assert verdicts.find(["a", "b"]) == {"a": "A>B", "b": "A>B"}


def test_a_damaged_file_of_this_host_is_a_sentence(verdicts):
    verdicts.folder.mkdir()
    verdicts.host_file.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(RunError, match=r"cannot be used.*move it away"):
        verdicts.find(["a"])
    with pytest.raises(RunError, match=r"cannot be used"):
        paid(verdicts, "a", "A>B")


def test_threads_never_spend_more_than_there_is(verdicts):
    refused = []

    def work(number: int) -> None:
        for turn in range(5):
            try:
                paid(verdicts, f"{number}/{turn}", "A>B", budget=JudgeBudget(requests=12))
            except BudgetSpent:
                refused.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (verdicts.spent("j").requests, len(refused)) == (12, 8)


@settings(max_examples=20)
@given(st.floats(allow_nan=False))
def test_scores_come_back_to_the_last_bit(tmp_path_factory, score):
    verdicts = Verdicts(tmp_path_factory.mktemp("cache"), run="r")
    verdicts.keep("j", {"a": repr(score)})
    assert float(verdicts.find(["a"])["a"]) == score


def test_many_keys_are_looked_up_at_a_time(verdicts):
    values = {f"{number:064d}": "A=B" for number in range(1203)}
    verdicts.keep("j", values)
    assert verdicts.find([*values, "unknown"]) == values


def test_cost_follows_from_tokens_and_prices():
    assert Spending(3, 2_000_000, 500_000).cost(Prices(input=2.0, output=8.0)) == 8.0
    assert Spending(3, 1, 1).cost(None) is None


def test_a_file_that_another_process_is_about_to_begin_is_empty(tmp_path):
    verdicts = Verdicts(tmp_path, run="first")
    verdicts.host_file.touch()
    assert verdicts.find(["key"]) == {}
    assert verdicts.spent("judge").requests == 0


def test_a_batch_of_another_host_is_written_down_once_where_trials_come_upon_it_together(verdicts, monkeypatch):
    other = another_host(verdicts, "other")
    other.begin_batch("token", "j", ["a", "b"], 0, budget=FREE)
    other.name_batch("token", "batch-0")
    reading, first = verdicts._read, True

    def read(path, look, otherwise):
        nonlocal first
        found = reading(path, look, otherwise)
        if path == other.host_file and first:
            first = False
            # Another trial of this host is faster by a moment.
            verdicts.open_batches(["a"])
        return found

    monkeypatch.setattr(verdicts, "_read", read)
    (batch,) = verdicts.open_batches(["a"])
    assert (batch.token, set(batch.requests)) == ("token", {"a", "b"})
    assert verdicts.spent("j").requests == 2 * 2


def test_a_request_that_was_forgotten_twice_takes_no_later_one_with_it(verdicts):
    first = verdicts.begin("j", "a", budget=FREE, prices=None)
    verdicts.abandon(first)
    second = verdicts.begin("j", "a", budget=FREE, prices=None)
    verdicts.abandon(first)
    assert verdicts.finish(second, Reply("text", "m", 10, 2), "A>B") == "A>B"
    assert verdicts.spent("j") == Spending(1, 10, 2)
