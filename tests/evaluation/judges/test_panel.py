"""Panels and repeats: each judge is asked as it would be alone, and their outcomes are averaged."""

import pytest

from slime_ray.config.presets import preset_base
from slime_ray.config.settings import Settings
from slime_ray.errors import RunError
from slime_ray.evaluation.judges import ExactJudge, Panel, Rater, build_judge
from slime_ray.evaluation.verdicts import Pooled, win_rate

from .judge_server import VARIABLE, pairs, serving
from .test_llm import COUNT, PAIRS, PROMPTS

# By the server's rule: 0, 1 or 2 times good against 1.
BY_RULE = [(0.0, 0.5, 1.0)[n % 3] for n in range(COUNT)]


def built(judges, verdicts, **how):
    """As trials build it, from the settings of the shipped experiment."""
    base = preset_base("arithmetic")
    evaluation = {**base["evaluation"], "judge": judges}
    settings = Settings.model_validate({**base, "evaluation": evaluation, "objective": {"name": "slime"}})
    return build_judge(settings, verdicts=verdicts, **how)


def llm(server, **changes):
    url = server if isinstance(server, str) else server.url
    given = {"name": "llm", "model": "rule", "template": "arena-hard", "base_url": url, "api_key_env": VARIABLE}
    return {**given, "timeout_seconds": 20.0, **changes}


def judge(label, name):
    """A judge that gives every answer the score of its function."""
    return Rater(ExactJudge(label, name=name))


def test_a_prompts_outcome_is_the_mean_over_judges_of_the_mean_over_repeats():
    wins, loses = (lambda prompt, answer: len(answer)), (lambda prompt, answer: -len(answer))
    panel = Panel("p", (judge(wins, "a"), Rater(ExactJudge(loses, name="a"), 2), judge(wins, "b")))
    (one,) = panel.compare(pairs(PROMPTS[:1], ["longer"], ["long"])).comparisons
    # Judge a: a win and a loss, 0.5. Judge b: a win.
    assert one.outcome == pytest.approx((0.5 + 1.0) / 2)
    assert [(rating.judge, rating.repeat, rating.comparison.outcome) for rating in one.ratings] == [
        ("a", 1, 1.0), ("a", 2, 0.0), ("b", 1, 1.0)
    ]  # fmt: skip


def test_a_prompt_that_one_judge_has_no_verdict_on_is_left_out_of_the_pooled_rate():
    def some(prompt, answer):
        return None if prompt == "question 0" else len(answer)

    panel = Panel("p", (judge(lambda prompt, answer: len(answer), "a"), judge(some, "b")))
    judged = panel.compare(pairs(PROMPTS[:2], ["longer", "a"], ["long", "long"]))
    assert [one.outcome for one in judged.comparisons] == [None, 0.0]
    assert win_rate(judged.comparisons) == 0.0
    assert list(judged.summary.missing) == ["b: the scorer gave an answer no score (NaN or None)"]


def test_each_judge_of_a_panel_is_asked_under_its_own_name_budget_and_cache(server, verdicts):
    prices = {"input": 1.0, "output": 10.0}
    judges = [llm(server, prices=prices), llm(server, model="other", prices={"input": 2.0, "output": 0.0})]
    panel = built(judges, verdicts)
    judged = panel.compare(PAIRS)
    assert [one.outcome for one in judged.comparisons] == BY_RULE
    assert {request["model"] for request in server.requests} == {"rule", "other"}
    assert len(server.requests) == 4 * COUNT == judged.summary.requests
    # 16 requests of 100 tokens in and 10 out for each judge.
    assert judged.summary.cost == pytest.approx(16 * (100 * 1 + 10 * 10 + 100 * 2) / 1e6)
    again = built(judges, verdicts, offline=True).compare(PAIRS)
    assert (again.summary.new, again.summary.cached) == (0, 4 * COUNT)
    alone = built(judges[0], verdicts, offline=True).compare(PAIRS)
    assert [one.outcome for one in alone.comparisons] == BY_RULE


def test_a_judge_that_stops_stops_the_panel_and_nothing_is_paid_for_twice(server, verdicts):
    judges = [llm(server), llm(server, model="other", budget={"requests": 5}, concurrency=1)]
    with pytest.raises(RunError, match=r"llm:other.*budget.requests 5 is spent"):
        built(judges, verdicts).compare(PAIRS)
    judges[1]["budget"] = {"requests": 16}
    judged = built(judges, verdicts).compare(PAIRS)
    assert (judged.summary.new, judged.summary.cached) == (11, 21)
    assert len(server.requests) == 4 * COUNT


def test_repeats_are_requests_of_their_own_and_the_first_is_that_of_a_judge_without_any(verdicts):
    with serving() as server:
        built(llm(server), verdicts).compare(PAIRS)
        judged = built(llm(server, repeats=3), verdicts).compare(PAIRS)
        assert (judged.summary.new, judged.summary.cached) == (4 * COUNT, 2 * COUNT)
        assert judged.summary.requests == len(server.requests) == 6 * COUNT
        shown = {str(request["messages"]) for request in server.requests}
        assert len(shown) == 6 * COUNT


def test_a_share_of_the_prompts_is_repeated_and_it_is_the_same_one_for_every_policy(server, verdicts):
    panel = built(llm(server, repeats={"times": 2, "share": 0.25}), verdicts)
    many = [[{"role": "user", "content": f"question {n}"}] for n in range(2000)]
    taken = [panel.raters[1].takes(prompt) for prompt in many]
    assert abs(sum(taken) / len(taken) - 0.25) < 0.04
    later = [[*prompt, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}] for prompt in many]
    assert [panel.raters[1].takes(prompt) for prompt in later] == taken
    judged = panel.compare(PAIRS)
    repeated = [len(one.ratings) == 2 for one in judged.comparisons]
    assert repeated == [panel.raters[1].takes(prompt) for prompt in PROMPTS]
    assert len(server.requests) == 2 * (COUNT + sum(repeated))
    assert all(isinstance(one, Pooled) for one in judged.comparisons)


def test_further_fields_are_sent_as_they_are(server, verdicts):
    request = {"reasoning_effort": "low", "top_p": 0.9, "provider": {"order": ["a"]}}
    built(llm(server, request=request), verdicts).compare(PAIRS[:1])
    sent = server.requests[0]
    assert {name: sent[name] for name in request} == request
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("rule", 0.0, 2048)
