"""A judge asked through a batch interface, against a server that really has one."""

import sqlite3
from pathlib import Path

import pytest
from pydantic import ValidationError

from slime_ray.errors import RunError
from slime_ray.evaluation.verdict_cache import Verdicts

from .batch_server import Ended, batching
from .judge_server import KEY, VARIABLE, Response, serving, settings
from .test_llm import AB, BA, COUNT, PAIRS, labels

ALL = 2 * COUNT
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}


@pytest.fixture
def batch(llm):
    """A judge in batches, and what it says of all the answers."""

    def judged(server, **changes):
        given = {"mode": "batch", "poll_seconds": 1e-3, "retries": 0, **changes}
        return llm(server, **given).compare(PAIRS)

    return judged


def failed(lines, error):
    return [{**line, "response": None, "error": error} for line in lines]


def test_a_batch_gives_the_verdicts_that_single_requests_give(batch):
    """In whatever order, and however often it has to be looked at."""
    with batching(looks=5) as server:
        judged = batch(server)
        assert labels(judged) == (AB, BA)
        assert (server.requests, [len(lines) for lines in server.asked]) == ([], [ALL])
        assert {line["body"]["model"] for line in server.asked[0]} == {"rule"}
        summary = judged.summary
        assert (summary.new, summary.requests, summary.input_tokens) == (ALL, ALL, 100 * ALL)
        assert summary.models == ("rule-2026-01-01",)
        again = batch(server)
        assert (again.summary.cached, len(server.batches)) == (ALL, 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda lines: Ended(lines[6:], failed(lines[:6], EXPIRED), "expired"), "completion window"),
        (lambda lines: Ended(lines[6:], [], "cancelled"), "was cancelled"),
        (lambda lines: Ended([], [], "failed", "Enqueued token limit reached"), "was refused: Enqueued token limit"),
    ],
    ids=["expired", "cancelled", "failed"],
)
def test_what_a_batch_did_not_answer_is_counted_and_alone_asked_for_again(batch, shape, words):
    answered = len(shape([{}] * ALL).output)
    with batching(shape) as server:
        with pytest.raises(RunError, match=rf"{ALL - answered} of {ALL} have .*{words}.* in {answered} requests"):
            batch(server)
        server.shape = Ended
        judged = batch(server)
        assert labels(judged) == (AB, BA)
        assert [len(lines) for lines in server.asked] == [ALL, ALL - answered]
        assert (judged.summary.cached, judged.summary.requests) == (answered, ALL)


def test_an_expired_batch_may_leave_verdicts_missing(batch):
    with batching(lambda lines: Ended(lines[6:], failed(lines[:6], EXPIRED), "expired")) as server:
        judged = batch(server, on_failure="continue")
    assert (judged.summary.new, list(judged.summary.missing.values())) == (ALL - 6, [6])


def test_requests_that_fail_in_a_batch_are_no_verdicts_and_not_paid_for(batch):
    def say(number, body):
        return Response(429, {"error": {"message": f"Slow down, {KEY}"}}) if number < 3 else None

    with batching(lambda lines: Ended(lines[:-3], lines[-3:])) as server:
        server.say = say
        with pytest.raises(RunError, match=r"3 of 16 have refused in a batch: Slow down, \*\*\*") as stopped:
            batch(server)
        assert KEY not in str(stopped.value)
        server.say = lambda number, body: None
        assert labels(batch(server)) == (AB, BA)
        assert [len(lines) for lines in server.asked] == [ALL, 3]


def test_garbled_repeated_and_unknown_lines_are_told_and_do_no_harm(batch, caplog):
    def shape(lines):
        others = [{**line, "response": {"status_code": 200, "body": {"choices": []}}} for line in lines[:4]]
        unknown = {**lines[0], "custom_id": "nobody"}
        return Ended([b"{", b"[1]", b'{"custom_id": 3}', b"\xff\xfe", b"", unknown, *lines[2:], *others[2:]])

    with batching(shape) as server:
        judged = batch(server, on_failure="continue")
    assert judged.summary.missing == {"no result in a batch that completed": 2}
    # Lines of these two may have been the garbled ones, so they may have been paid for.
    assert (judged.summary.new, judged.summary.requests) == (ALL - 2, ALL)
    assert "7 lines are garbled, repeated or of no request" in caplog.text


def test_a_batch_that_is_not_waited_for_is_found_again(batch):
    with batching(looks=3) as server:
        for _ in range(3):
            with pytest.raises(RunError, match="the batch batch-0 has not ended after 0 s, and is looked for"):
                batch(server, wait_seconds=0)
        assert labels(batch(server, wait_seconds=0)) == (AB, BA)
        assert len(server.batches) == 1


def test_an_interrupt_while_waiting_leaves_the_batch_to_be_found_again(llm, batch):
    def interrupt(done, of):
        if server.batches:
            raise KeyboardInterrupt

    with batching(looks=10**9) as server:
        judge = llm(server, mode="batch", poll_seconds=1e-3)
        judge.asker.progress = interrupt
        with pytest.raises(KeyboardInterrupt):
            judge.compare(PAIRS)
        server.looks = 0
        assert labels(batch(server)) == (AB, BA)
        assert len(server.batches) == 1


def test_what_another_machine_found_without_a_verdict_is_asked_for_again(llm, verdicts):
    def asked(kept, **changes):
        judge = llm(server, kept=kept, mode="batch", poll_seconds=1e-3, on_failure="continue", retries=0, **changes)
        return judge.compare(PAIRS)

    other = Verdicts(verdicts.folder, run=verdicts.run)
    other.host_file = verdicts.folder / "other.sqlite"
    with batching(lambda lines: Ended(lines[6:], failed(lines[:6], EXPIRED), "expired"), looks=10**9) as server:
        for kept in (verdicts, other):
            with pytest.raises(RunError, match="has not ended"):
                asked(kept, wait_seconds=0)
        server.looks = 0
        assert sum(asked(verdicts).summary.missing.values()) == 6
        server.shape = Ended
        assert labels(asked(other)) == (AB, BA)
        assert [len(lines) for lines in server.asked] == [ALL, 6]


def test_another_machine_finds_the_batch_too(llm, verdicts):
    def asked(kept, **changes):
        judge = llm(server, kept=kept, mode="batch", poll_seconds=1e-3, **changes)
        return judge.compare(PAIRS)

    with batching() as server:
        with pytest.raises(RunError, match="has not ended"):
            asked(verdicts, wait_seconds=0)
        other = Verdicts(verdicts.folder, run=verdicts.run)
        other.host_file = verdicts.folder / "other.sqlite"
        assert labels(asked(other)) == (AB, BA)
        assert len(server.batches) == 1
        # For the first machine, too, the batch is done with.
        assert verdicts.open_batches([line["custom_id"] for line in server.asked[0]]) == []


def test_a_list_of_batches_that_tells_no_status_is_asked_for_each(batch):
    with batching() as server:
        server.lose = "after"
        with pytest.raises(RunError, match="--resume"):
            batch(server)
        server.lose, page = None, server._page
        server._page = lambda asked: {
            **page(asked), "data": [{"id": one["id"], "metadata": one["metadata"]} for one in page(asked)["data"]]
        }  # fmt: skip
        assert labels(batch(server)) == (AB, BA)


def test_a_batch_whose_id_was_lost_is_found_behind_many_later_ones(batch):
    with batching() as server:
        server.lose, server.page = "after", 2
        with pytest.raises(RunError, match="--resume"):
            batch(server)
        server.lose = None
        server.batches |= {f"other-{n}": {"id": f"other-{n}", "status": "completed", "metadata": {}} for n in range(5)}
        assert labels(batch(server)) == (AB, BA)
        assert len(server.asked) == 1


def test_what_another_trial_asked_for_and_got_meanwhile_is_taken(llm, verdicts, monkeypatch):
    """Its batch was open when this one was written down, and done with when it was looked for."""

    def begun(token, judge, keys, rounds, *, budget):
        verdicts.keep(judge, dict.fromkeys(keys, "A>B"))
        return [], None

    monkeypatch.setattr(verdicts, "begin_batch", begun)
    with batching() as server:
        judged = llm(server, mode="batch", poll_seconds=1e-3, retries=0).compare(PAIRS)
        assert not server.batches
    assert {label for both in labels(judged) for label in both} == {"A>B"}
    assert judged.summary.missing == {}


def test_a_batch_that_was_never_created_is_submitted_again_once_that_is_certain(batch, verdicts):
    with batching() as server:
        server.lose = "before"
        with pytest.raises(RunError, match="--resume"):
            batch(server)
        server.lose = None
        with pytest.raises(RunError, match="has not ended after 0 s"):
            batch(server, wait_seconds=0)
        assert not server.batches
        with sqlite3.connect(verdicts.host_file) as database:
            database.execute("UPDATE batched SET time = 0")
        judged = batch(server)
        assert labels(judged) == (AB, BA)
        assert (len(server.batches), judged.summary.requests) == (1, ALL)


def test_judgments_without_a_verdict_are_asked_for_in_another_batch(batch):
    with batching() as server:
        server.say = lambda number, body: "I cannot say." if number < 4 or number == ALL else None
        judged = batch(server, asks=2)
        assert [len(lines) for lines in server.asked] == [ALL, 4]
        assert (judged.summary.new, judged.summary.invalid, judged.summary.requests) == (ALL - 1, 1, ALL + 4)
        first = {line["custom_id"]: line["body"]["messages"] for line in server.asked[0]}
        assert all(first[line["custom_id"]] != line["body"]["messages"] for line in server.asked[1])


def test_a_model_that_wants_max_completion_tokens_gets_them_in_another_batch(batch):
    def say(number, body):
        wrong = {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens'."}}
        return Response(400, wrong) if "max_tokens" in body else None

    with batching(
        lambda lines: Ended([], lines) if server.say(0, server.asked[-1][0]["body"]) else Ended(lines)
    ) as server:
        server.say = say
        judged = batch(server, asks=1)
        assert labels(judged) == (AB, BA)
        assert (len(server.batches), judged.summary.requests) == (2, ALL)


def test_a_batch_is_no_larger_than_what_is_left_of_the_budget(batch):
    with batching() as server:
        judged = batch(server, budget={"requests": 10}, on_failure="continue")
        assert [len(lines) for lines in server.asked] == [10]
        assert (judged.summary.new, judged.summary.missing) == (10, {"budget.requests 10 is spent": 6})


def test_large_evaluations_are_several_batches(batch, monkeypatch):
    monkeypatch.setattr("slime_ray.evaluation.judges.batches.MOST_REQUESTS", 6)
    with batching() as server:
        assert labels(batch(server)) == (AB, BA)
        assert [len(lines) for lines in server.asked] == [6, 6, 4]


def test_an_endpoint_without_batches_is_named_with_the_way_out(batch):
    with serving() as server, pytest.raises(RunError, match=r"has no batch interface \(404\).*mode: live"):
        batch(server)


def test_a_batch_that_the_endpoint_does_not_know_is_not_submitted_again(batch):
    with batching() as server:
        with pytest.raises(RunError, match="has not ended"):
            batch(server, wait_seconds=0)
        server.batches.clear()
        with pytest.raises(RunError, match=r"does not know the batch batch-0 .*mode: live"):
            batch(server)
        assert labels(batch(server, mode="live")) == (AB, BA)


def test_results_that_are_gone_are_asked_for_again(batch, caplog):
    with batching() as server:
        look = server._look

        def gone(asked):
            found = look(asked)
            server.files.pop(found.get("output_file_id"), None)
            return found

        server._look = gone
        with pytest.raises(RunError, match=f"{ALL} of {ALL} have no result in a batch that completed"):
            batch(server)
        assert "of a batch are gone from" in caplog.text
        server._look = look
        judged = batch(server)
        assert labels(judged) == (AB, BA)
        # The first ones were paid for.
        assert judged.summary.requests == 2 * ALL


def test_a_refused_key_is_not_shown(batch, monkeypatch, caplog, verdicts):
    monkeypatch.setenv(VARIABLE, "sk-wrong-9999")
    with batching() as server, pytest.raises(RunError, match=VARIABLE) as stopped:
        batch(server)
    assert "sk-wrong" not in str(stopped.value) + caplog.text
    assert all(b"sk-wrong" not in path.read_bytes() for path in Path(verdicts.folder).iterdir())


def test_a_batch_has_no_budget_of_tokens_and_is_no_part_of_the_judges_name():
    with pytest.raises(ValidationError, match=r"Use budget\.requests"):
        settings("http://x", mode="batch", budget={"tokens": 5})
    assert settings("http://x", mode="batch").identity == settings("http://x").identity
