"""What an endpoint may send with the status of a success, and what becomes of it."""

import json

import pytest

from slime_ray.errors import RunError
from slime_ray.evaluation.judges.llm import read_label
from slime_ray.evaluation.judges.replies import Failure, read_reply

from .judge_server import Response, completion, pairs, serving

PAIRS = pairs([[{"role": "user", "content": "why?"}]], ["so"], ["thus"])
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "[[B>A]]"}]}
NO_COMPLETION = "an answer that is no chat completion"


def text(value):
    return {"type": "text", "text": value}


def sent(body):
    return (body if isinstance(body, str) else json.dumps(body)).encode()


@pytest.mark.parametrize(
    "content",
    [
        "[[A>B]]",
        [THINKING, text("[[A>B]]")],
        [text("It is [[A>B]]"), {"type": "reasoning", "text": "or [[B>A]]"}],
        [{"type": "output_text", "text": "[[A>B]]", "annotations": []}],
        # Cut anywhere.
        [text("My verdict: [[A"), text(">B]]")],
        ["[[A>B]]"],
        [text("[[A>B]]"), {"type": "image_url", "image_url": {"url": "data:"}}],
    ],
    ids=["text", "thinking", "reasoning", "output_text", "parts", "bare text", "image"],
)
def test_a_judgment_is_the_text_of_its_parts_without_the_reasoning(content):
    reply = read_reply(sent(completion(content)))
    assert (read_label(reply.text), reply.lack) == ("A>B", None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion({"type": "text", "text": "[[A>B]]"}), NO_COMPLETION),
        (completion([text({"value": "[[A>B]]"})]), NO_COMPLETION),
        (completion([["[[A>B]]"]]), NO_COMPLETION),
        (completion([{"text": "[[A>B]]"}]), NO_COMPLETION),
        (completion(7), NO_COMPLETION),
        (completion("", choices=[]), NO_COMPLETION),
        (completion("", choices=None), NO_COMPLETION),
        (completion("", choices={"0": "[[A>B]]"}), NO_COMPLETION),
        (completion("", choices=["[[A>B]]"]), NO_COMPLETION),
        (completion("", choices=[{"text": "[[A>B]]"}]), NO_COMPLETION),
        (completion("", choices=[{"message": "[[A>B]]"}]), NO_COMPLETION),
        ([completion("[[A>B]]")], NO_COMPLETION),
        ('"[[A>B]]"', NO_COMPLETION),
        ("null", NO_COMPLETION),
        ("{}", NO_COMPLETION),
        ("[[A>B]]", "an answer that is no JSON"),
        ("", "an answer that is no JSON"),
        ("<html>[[A>B]]</html>", "an answer that is no JSON"),
        ("9" * 5000, "an answer that is no JSON"),
        ("[" * 100_000, "an answer that is no JSON"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "an answer that is no JSON"),
        (
            {"error": {"message": "Provider returned error\nmore", "code": 502}},
            "an error in place of a judgment: Provider returned error",
        ),
        ({"error": "busy"}, "an error in place of a judgment: busy"),
        ({"error": {"message": None}}, "an error in place of a judgment: it says no more"),
    ],
)
def test_what_is_no_chat_completion_is_said_and_may_have_been_paid_for(body, reason):
    with pytest.raises(Failure) as failure:
        read_reply(sent(body))
    assert (failure.value.reason, failure.value.kind, failure.value.paid) == (reason, "passing", True)


def test_a_judgment_that_was_paid_for_before_one_that_cannot_be_read_is_kept(llm):
    with serving(lambda number, _: Response(body="<html>") if number else "[[A>B]]") as server:
        with pytest.raises(RunError, match=r"stopped: an answer that is no JSON\. What.*pays for nothing twice"):
            llm(server, concurrency=1, retries=0).compare(PAIRS)
        server.behave = lambda *_: "[[B>A]]"
        judged = llm(server).compare(PAIRS)
        assert (judged.comparisons[0].ab, judged.comparisons[0].ba) == ("A>B", "B>A")
        assert (judged.summary.cached, judged.summary.new) == (1, 1)


def test_an_error_that_asking_again_cannot_help_is_not_asked_again(llm):
    error = {"error": {"message": "context length exceeded", "code": 400}}
    with serving(lambda *_: Response(body=error)) as server:
        judged = llm(server, retries=3, on_failure="continue").compare(PAIRS)
        assert len(server.requests) == 2
    assert judged.summary.missing == {"an error in place of a judgment: context length exceeded": 2}


@pytest.mark.parametrize(
    ("body", "lack"),
    [
        (completion([THINKING], finish="length"), "cut off"),
        (completion("<think>[[A>B]] or", finish="length"), "cut off"),
        (completion(None, message={"refusal": "I cannot."}), "the judge refused to answer"),
        (completion([{"type": "refusal", "refusal": "No."}]), "the judge refused to answer"),
        (completion(None, message={"tool_calls": [{"id": "1"}]}), "the judge called a tool in place of judging"),
        (completion("", finish="content_filter"), "a content filter took the judgment away"),
    ],
    ids=["parts", "reasoning", "refusal", "refusal part", "tool call", "filter"],
)
def test_why_a_judgment_holds_no_verdict_is_read(body, lack):
    reply = read_reply(sent(body))
    assert (reply.lack, read_label(reply.text)) == (lack, None)


def test_a_judgment_without_a_verdict_is_counted_by_its_reason_and_stops_nothing(llm):
    with serving(lambda *_: Response(body=completion(None, finish="length"))) as server:
        judged = llm(server, max_tokens=77, asks=2).compare(PAIRS)
        assert len(server.requests) == 2 * 2
    assert judged.comparisons[0].outcome is None
    reason = "cut off by max_tokens 77; raise evaluation.judge.max_tokens"
    assert (judged.summary.missing, judged.summary.invalid) == ({reason: 2}, 0)
    assert f"2 verdicts are missing: {reason}" in judged.summary.sentence
    # They were paid for.
    assert judged.summary.requests == 4


def test_a_verdict_that_was_reached_before_the_cut_counts(llm):
    with serving(lambda *_: Response(body=completion("[[A>B]] since", finish="length"))) as server:
        judged = llm(server).compare(PAIRS)
    assert judged.comparisons[0].ab == "A>B"
    assert judged.summary.complete


@pytest.mark.parametrize("tokens", ["7", -1, True, None, [7], {"a": 1}, 1e300, 10**30, float("nan")])
def test_tokens_that_are_no_number_are_not_counted(tokens):
    body = completion("[[A>B]]", usage={"prompt_tokens": tokens, "completion_tokens": 10}, model=["m"])
    reply = read_reply(json.dumps(body).encode())
    assert (reply.input_tokens, reply.output_tokens, reply.model) == (None, 10, None)
    for usage in (None, "many", [1], 3):
        reply = read_reply(json.dumps(completion("x", usage=usage)).encode())
        assert (reply.input_tokens, reply.output_tokens) == (None, None)


def test_broken_letters_lose_themselves_and_not_the_judgment():
    body = json.dumps(completion("HALF BYTE [[A>B]]"))
    reply = read_reply(b"\xef\xbb\xbf" + body.replace("HALF", r"\ud83d").encode().replace(b"BYTE", b"\xff"))
    assert reply.text == "? \N{REPLACEMENT CHARACTER} [[A>B]]"
