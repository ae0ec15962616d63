"""The judges that ask a language model, against a server that really answers."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from ast import literal_eval
from pathlib import Path

import pytest

from slime_ray.errors import InputError, RunError
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.verdict_cache import Verdicts

from .judge_server import KEY, VARIABLE, Response, completion, pairs, serving, settings

COUNT = 8
PROMPTS = [[{"role": "user", "content": f"question {n}"}] for n in range(COUNT)]
OURS = [f"{n} " + "good " * (n % 3) for n in range(COUNT)]
THEIRS = [f"{n} plain good" for n in range(COUNT)]
PAIRS = pairs(PROMPTS, OURS, THEIRS)
# By the server's rule: 0, 1 or 2 times good against 1.
AB = [("B>A", "A=B", "A>B")[n % 3] for n in range(COUNT)]
BA = [("A>B", "A=B", "B>A")[n % 3] for n in range(COUNT)]


def labels(judged):
    return [one.ab for one in judged.comparisons], [one.ba for one in judged.comparisons]


def test_both_orders_of_all_prompts_are_asked_and_judged(server, llm):
    judged = llm(server).compare(PAIRS)
    assert labels(judged) == (AB, BA)
    assert len(server.requests) == 2 * COUNT
    assert {request["temperature"] for request in server.requests} == {0.0}
    assert judged.summary.new == 2 * COUNT
    assert (judged.summary.input_tokens, judged.summary.output_tokens) == (1600, 160)
    assert judged.summary.models == ("rule-2026-01-01",)


def test_single_grading_rates_each_answer_once_and_both_orders_follow(server, llm):
    judged = llm(server, template="mt-bench-single").compare(PAIRS)
    assert labels(judged) == (AB, BA)
    assert [(one.score, one.baseline_score) for one in judged.comparisons] == [(1.0 + n % 3, 2.0) for n in range(COUNT)]
    assert len(server.requests) == 2 * COUNT


def test_all_requests_of_an_evaluation_are_on_their_way_together(llm):
    """Nobody is answered before all 16 are there: with fewer at a time the barrier would break."""
    barrier = threading.Barrier(2 * COUNT)

    def together(number, judgment):
        barrier.wait(timeout=60)

    with serving(together) as server:
        assert labels(llm(server, concurrency=2 * COUNT).compare(PAIRS)) == (AB, BA)
        assert server.at_once == 2 * COUNT


def test_no_more_requests_than_allowed_are_on_their_way(server, llm):
    llm(server, concurrency=3).compare(PAIRS)
    assert server.at_once <= 3


def test_a_finished_evaluation_repeats_offline_without_a_key(server, llm, monkeypatch):
    online = llm(server).compare(PAIRS)
    monkeypatch.delenv(VARIABLE)
    offline = llm("http://127.0.0.1:9/v1", offline=True).compare(PAIRS)
    assert offline.comparisons == online.comparisons
    assert (offline.summary.new, offline.summary.cached) == (0, 2 * COUNT)
    assert len(server.requests) == 2 * COUNT


def test_offline_says_how_many_verdicts_are_missing(server, llm):
    llm(server).compare(PAIRS[:5])
    with pytest.raises(RunError, match="6 of 16 verdicts"):
        llm(server, offline=True).compare(PAIRS)


def test_rate_limits_and_failing_servers_are_asked_again(llm):
    troubles = [
        Response(429, {"error": {"message": "slow down"}}, {"retry-after": "0"}),
        Response(500, {"error": {"message": "oh"}}),
        Response(503, "<html>", {"content-type": "text/html"}),
        Response(200, '{"id": "1", "choi'),
        Response(200, {"id": "1", "object": "chat.completion", "choices": []}),
        Response(200, "<html>hello</html>", {"content-type": "text/html"}),
        Response(200, '{"id": ', length=1000),
    ]

    def behave(number, judgment):
        return troubles[number] if number < len(troubles) else None

    with serving(behave) as server:
        judged = llm(server, retries=len(troubles)).compare(PAIRS)
        assert labels(judged) == (AB, BA)
        assert len(server.requests) == 2 * COUNT + len(troubles)
    # Refused requests are not paid for; those that were answered in whatever way may have been.
    assert judged.summary.requests == 2 * COUNT + 4


def test_a_slow_endpoint_is_a_time_out_that_may_have_been_paid_for(llm):
    release = threading.Event()
    with serving(lambda *_: release.wait(20) and None) as server:
        with pytest.raises(RunError, match=r"no answer within 0.2 s.*with --resume"):
            llm(server, timeout_seconds=0.2, retries=0, concurrency=1).compare(PAIRS)
        release.set()
    judge = llm(server, offline=True)
    assert judge.asker.verdicts.spent(judge.name).requests == 1


def test_where_nobody_listens_the_trial_stops_or_goes_on_as_it_was_told(llm):
    with pytest.raises(RunError, match="no connection"):
        llm("http://127.0.0.1:9/v1", retries=1).compare(PAIRS)
    judged = llm("http://127.0.0.1:9/v1", retries=1, on_failure="continue").compare(PAIRS)
    assert labels(judged) == ([None] * COUNT, [None] * COUNT)
    ((reason, count),) = judged.summary.missing.items()
    assert (reason.startswith("no connection"), count) == (True, 2 * COUNT)
    assert judged.summary.requests == 0


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_refused_key_stops_at_once_names_its_variable_and_is_not_shown(server, llm, monkeypatch, caplog, policy):
    monkeypatch.setenv(VARIABLE, "sk-wrong-9999")
    with pytest.raises(RunError, match=VARIABLE) as stopped:
        llm(server, on_failure=policy, concurrency=1).compare(PAIRS)
    assert "sk-wrong" not in str(stopped.value) + caplog.text
    assert len(server.requests) <= 2


def test_an_unknown_model_stops_at_once_with_what_the_endpoint_says(llm):
    with serving(lambda *_: Response(404, {"error": {"message": "The model `rule` does not exist"}})) as server:
        with pytest.raises(RunError, match=r"does not know the model rule.*does not exist.*base_url"):
            llm(server, on_failure="continue", concurrency=1).compare(PAIRS)
        assert len(server.requests) <= 2


def test_an_endpoint_that_wants_max_completion_tokens_gets_them(llm):
    def behave(number, judgment):
        if "max_tokens" in server.requests[number]:
            return Response(400, {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens'."}})
        return None

    with serving(behave) as server:
        assert labels(llm(server, concurrency=1).compare(PAIRS)) == (AB, BA)
        assert len(server.requests) == 2 * COUNT + 1


@pytest.mark.parametrize(
    "judgment",
    ["I cannot say.", None],
    ids=["none", "null"],
)
def test_an_invalid_judgment_is_asked_again_twice_and_then_missing(llm, verdicts, judgment):
    with serving(lambda *_: Response(body=completion(judgment))) as server:
        judged = llm(server).compare(PAIRS[:2])
        assert labels(judged) == ([None, None], [None, None])
        assert len(server.requests) == 3 * 4
        assert len({json.dumps(request["messages"]) for request in server.requests}) == 3 * 4
        assert (judged.summary.invalid, judged.summary.new, judged.summary.missing) == (4, 0, {})
        # They were paid for, and are asked for again another time.
        assert judged.summary.input_tokens == 1200
        server.behave = lambda *_: None
        assert labels(llm(server).compare(PAIRS[:2])) == (AB[:2], BA[:2])
    with sqlite3.connect(verdicts.host_file) as database:
        assert database.execute("SELECT COUNT(*) FROM requests WHERE judgment = ?", (judgment or "",)).fetchone() == (
            12,
        )


def test_a_judge_that_dies_half_way_loses_nothing(llm):
    def behave(number, judgment):
        return Response(500, {}) if number >= 9 else None

    with serving(behave) as server:
        with pytest.raises(RunError, match=" 9 requests"):
            llm(server, retries=0, concurrency=4).compare(PAIRS)
        server.behave = lambda *_: None
        asked = len(server.requests)
        judged = llm(server).compare(PAIRS)
        assert labels(judged) == (AB, BA)
        assert (judged.summary.cached, len(server.requests) - asked) == (9, 2 * COUNT - 9)


@pytest.mark.parametrize("template", ["arena-hard", "mt-bench-single"])
def test_a_kept_value_that_is_no_verdict_is_refused_and_not_counted(server, llm, verdicts, template):
    llm(server, template=template).compare(PAIRS)
    for value in ("better", "nan", "11.0", "A>B>C", ""):
        with sqlite3.connect(verdicts.host_file) as database:
            database.execute("UPDATE verdicts SET value = ?", (value,))
        with pytest.raises(RunError, match=r"keeps .* as a verdict, which is none. .*move it away"):
            llm(server, template=template).compare(PAIRS)


def test_prompts_that_repeat_share_verdicts_only_on_the_same_answers(server, llm):
    prompts = [PROMPTS[0]] * 4
    judged = llm(server).compare(
        pairs(prompts, ["good good", "good good", "bad", "good"], ["good", "good", "good", "good"])
    )
    # Of three different comparisons one ties without being asked for.
    assert [one.outcome for one in judged.comparisons] == [1.0, 1.0, 0.0, 0.5]
    assert len(server.requests) == 2 * 2


CHILD = """
import os
import sys
from pathlib import Path
from slime_ray.evaluation.judges.asking import Asker
from slime_ray.evaluation.judges.endpoint import Endpoint
from slime_ray.evaluation.judges.llm import PairwiseLlmJudge
from slime_ray.evaluation.verdict_cache import Verdicts
from tests.evaluation.judges.judge_server import settings
from tests.evaluation.judges.test_llm import PAIRS, labels
url, folder, concurrency, budget, twice = sys.argv[1:]
# What takes long is imported once; from here on there are two.
other = os.fork() if twice == "True" else None
chosen = settings(url, concurrency=int(concurrency), budget={"requests": int(budget)}, on_failure="continue", retries=0)
asker = Asker(chosen, verdicts=Verdicts(Path(folder), run="first"), endpoint=Endpoint(chosen))
# In one write, so that the lines of two processes stay apart.
print(f"{labels(PairwiseLlmJudge(chosen, asker).compare(PAIRS))}\\n", end="", flush=True)
if other:
    sys.exit(os.waitpid(other, 0)[1])
"""


def child(server, verdicts, *, concurrency=4, budget=1000, twice=False):
    root = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url, verdicts.folder, str(concurrency), str(budget), str(twice)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_judge_whose_process_is_killed_has_kept_what_had_arrived(llm, verdicts):
    """The sixth request is not answered before the process is dead, and with one at a time five are through."""
    reached, release = threading.Event(), threading.Event()

    def behave(number, judgment):
        if number == 5:
            reached.set()
            release.wait(30)

    with serving(behave) as server:
        process = child(server, verdicts, concurrency=1)
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        release.set()
        asked = len(server.requests)
        assert labels(llm(server).compare(PAIRS)) == (AB, BA)
        assert len(server.requests) - asked == 2 * COUNT - 5


def test_two_processes_share_a_cache_and_keep_one_budget(verdicts):
    with serving() as server:
        processes = child(server, verdicts, budget=10, twice=True)
        outputs = processes.communicate(timeout=100)[0].splitlines()
        assert (processes.returncode, len(outputs)) == (0, 2)
        assert len(server.requests) == 10
    assert verdicts.spent(settings("http://x").identity).requests == 10
    valid = [sum(bool(label) for side in literal_eval(output) for label in side) for output in outputs]
    # One may have spent it all before the other asked.
    assert 0 < max(valid) <= 10


def test_a_budget_holds_over_all_evaluations_of_a_run_and_not_over_another(server, llm, tmp_path):
    limited = {"budget": {"requests": 20}}
    llm(server, **limited).compare(PAIRS)
    others = [answer + " good" for answer in OURS]
    with pytest.raises(RunError, match=r"budget.requests 20 is spent.*pays for nothing twice"):
        llm(server, **limited).compare(pairs(PROMPTS, others, THEIRS))
    assert len(server.requests) == 20
    other_run = Verdicts(tmp_path / ".verdicts", run="second")
    llm(server, kept=other_run, **limited).compare(pairs(PROMPTS, others, THEIRS))
    # Four of the sixteen had been paid for by the first run.
    assert len(server.requests) == 20 + 12


@pytest.mark.parametrize("budget", [{"tokens": 550}, {"cost": 0.00055}])
def test_tokens_and_cost_end_a_budget_too(server, llm, budget):
    """110 tokens a judgment, at a price of 1 for each million: five judgments take all of both budgets."""
    judge = llm(
        server, budget=budget, prices={"input": 1, "output": 1}, concurrency=1, on_failure="continue", retries=0
    )
    judged = judge.compare(PAIRS)
    assert len(server.requests) == 5
    (name,) = budget
    assert judged.summary.missing == {f"budget.{name} {budget[name]:g} is spent": 11}
    assert judged.summary.cost == pytest.approx(0.00055)
    assert "11 verdicts are missing" in judged.summary.sentence


def test_a_budget_of_tokens_needs_an_endpoint_that_counts_them(llm):
    with serving(lambda number, judgment: Response(body=completion(judgment, usage=None))) as server:
        with pytest.raises(RunError, match=r"does not say how many tokens.*budget.requests"):
            llm(server, budget={"tokens": 10**6}, concurrency=1).compare(PAIRS)
        assert labels(llm(server).compare(PAIRS)) == (AB, BA)


def test_the_key_is_neither_in_the_cache_nor_in_the_settings(server, llm, verdicts):
    judge = llm(server)
    judge.compare(PAIRS)
    assert KEY.encode() not in verdicts.host_file.read_bytes()
    assert KEY not in judge.settings.model_dump_json()


def test_a_key_that_the_endpoint_sends_back_is_neither_kept_nor_reported(llm, verdicts):
    def echo(number, judgment):
        return Response(body=completion(f"Bearer {KEY}\n{judgment}", model=f"rule {KEY}"))

    with serving(echo) as server:
        judged = llm(server).compare(PAIRS)
    assert labels(judged) == (AB, BA)
    assert judged.summary.models == ("rule ***",)
    assert KEY.encode() not in verdicts.host_file.read_bytes()


def test_a_missing_key_or_package_is_a_sentence(server, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match=rf"{VARIABLE} holds no key.*api_key_env"):
        Endpoint(settings(server))
    assert settings(server, api_key_env=None).lacks() is None
    monkeypatch.setattr("slime_ray.config.judge.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"slime-ray\[llm\]"):
        Endpoint(settings(server))


def test_a_users_own_template_is_asked(server, llm, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("user: 'Q {question} first {answer_a} second {answer_b}, please {not_a_place}'\n")
    judge = llm(server, template=str(own))
    assert labels(judge.compare(PAIRS)) == (AB, BA)
    assert "please {not_a_place}" in server.requests[0]["messages"][1]["content"]
    own.write_text("user: 'Q {question} first {answer_a} second {answer_b}!'\n")
    assert judge.name.startswith("llm:rule:mine#")
    assert settings(server, template=str(own)).identity != judge.name
