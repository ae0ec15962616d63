"""Answers of a server are those of the policy whose adapter it has loaded, or there is a sentence instead."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from slime_ray.config.evaluation import Decoding
from slime_ray.config.judge import outcome_settings
from slime_ray.config.model import Lora
from slime_ray.config.settings import Settings
from slime_ray.data.tasks import load_task
from slime_ray.errors import RunError
from slime_ray.evaluation import served
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.evaluation.judges.replies import Failure
from slime_ray.evaluation.served import Served, answering, read_completion
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from tests.rendered import render_prompt

from .answer_server import BASE, KEY, VARIABLE, Call, completion, model_server, settings

TASK = load_task("arithmetic")
TOKENIZER = tiny_tokenizer(TASK)
STOP = (TOKENIZER.eos_token_id,)
PROMPTS = [render_prompt(TOKENIZER, row) for row in TASK.prompts(6, purpose="selection", seed=0)["prompt"]]
GREEDY = Decoding(temperature=0.0, max_new_tokens=8)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "FIRST_WAIT", 1e-3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(TASK, seed=0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(base: Path) -> Policy:
    """With adapters that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lm = add_lora(tiny_model(TASK, seed=0), Lora(rank=2, alpha=4, targets=["q_proj", "v_proj"]))
        for parameter in lm.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
    return Policy(lm).eval()


@pytest.fixture(scope="module")
def adapter(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    policy.lm.save_pretrained(folder)
    return folder


def drawn(source: Served, decoding: Decoding = GREEDY, *, prompts: Any = PROMPTS, seed: int = 0) -> list[Answer]:
    return source.answers(TOKENIZER, prompts, decoding=decoding, stop_tokens=STOP, seed=seed)


def given_up(server: Any, adapter: Path | None, policy: Policy | None = None, **changes: Any) -> str:
    """What is said where a set of answers is not given."""

    def ask() -> None:
        with Served(settings(server, **changes), adapter) as source:
            if policy is not None:
                source.check(policy, TOKENIZER, PROMPTS)
            drawn(source)

    with pytest.raises(RunError) as error:
        ask()
    return str(error.value)


def once(path: str, *replies: Any) -> Any:
    """The first calls of a path are answered so."""
    return lambda call: replies[call.number] if call.path == path and call.number < len(replies) else None


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_greedy_answers_are_those_that_the_policy_gives_here(base, policy, adapter, kind):
    endless = generate_answers(policy, TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=STOP, seed=0)
    # A token that some answers reach.
    stop = (endless[0].token_ids[-1],)
    expected = generate_answers(policy, TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=stop, seed=0)
    assert {answer.stopped for answer in expected} == {True, False}
    with model_server(base, prefix="/v1" if kind == "vllm" else "") as server:
        with answering(settings(server, server=kind), policy, TOKENIZER, PROMPTS, adapter=adapter) as source:
            assert source.answers(TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=stop, seed=0) == expected
            assert len(server.adapters) == 1
        assert not server.adapters
        (own,) = {body["model"] for body in server.called("/v1/completions")}
        assert own.startswith("slime-" if kind == "vllm" else f"{BASE}:slime-")


def test_the_base_answers_without_an_adapter_and_nothing_is_loaded(base, policy):
    plain = Policy(tiny_model(TASK, seed=0)).eval()
    with model_server(base) as server:
        with answering(settings(server), plain, TOKENIZER, PROMPTS) as source:
            found = drawn(source)
        assert {call.path for call in server.calls} == {"/v1/models", "/v1/completions"}
    assert found == generate_answers(plain, TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=STOP, seed=0)


def test_without_a_server_the_policy_itself_answers(policy):
    with answering(None, policy, TOKENIZER, PROMPTS) as source:
        assert source is policy


def test_sampling_is_asked_for_in_full_with_a_seed_for_each_prompt(base, adapter):
    decoding = Decoding(temperature=0.7, temperatures={"math": 0.1}, top_p=0.9, max_new_tokens=5)
    with model_server(base) as server, Served(settings(server), adapter) as source:
        categories = ["math", *[None] * (len(PROMPTS) - 1)]
        first, again, other = (
            source.answers(TOKENIZER, PROMPTS, decoding=decoding, stop_tokens=STOP, seed=seed, categories=categories)
            for seed in (3, 3, 4)
        )
        assert first == again != other
        bodies = server.called("/v1/completions")[: len(PROMPTS)]
        assert sorted(body["prompt"] for body in bodies) == sorted(map(list, PROMPTS))
        assert len({body["seed"] for body in bodies}) == len(PROMPTS)
        by_prompt = {tuple(body["prompt"]): body for body in bodies}
        assert [by_prompt[tuple(prompt)]["temperature"] for prompt in PROMPTS] == [0.1, *[0.7] * (len(PROMPTS) - 1)]
        wanted = {
            "top_p": 0.9, "max_tokens": 5, "stop_token_ids": list(STOP), "top_k": -1, "min_p": 0.0, "n": 1,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True,
        }  # fmt: skip
        assert all(wanted.items() <= body.items() for body in bodies)


def test_an_answer_that_is_cut_off_has_not_stopped(base):
    def cut(call: Call) -> Any:
        ids = [7, 8] if call.number % 2 else [7, STOP[0]]
        return (200, completion(BASE, ids, stop=STOP)) if call.path == "/v1/completions" else None

    with model_server(base, cut) as server, Served(settings(server, concurrency=1), None) as source:
        found = drawn(source)
    assert [(answer.token_ids, answer.stopped) for answer in found] == [((7,), True), ((7, 8), False)] * 3


def test_a_server_without_token_ids_is_read_by_its_text(base):
    ids = [token for token in PROMPTS[0] if token not in TOKENIZER.all_special_ids]
    text = TOKENIZER.decode(ids)
    assert TOKENIZER(text, add_special_tokens=False)["input_ids"] == ids
    reply = (200, completion(BASE, [1], text=text, token_ids=None, finish_reason="stop"))
    with model_server(base, once("/v1/completions", reply)) as server, Served(settings(server), None) as source:
        (answer,) = drawn(source, prompts=PROMPTS[:1])
    assert (list(answer.token_ids), answer.stopped) == (ids, True)


GARBLED = {
    "no JSON": (200, "<html>busy</html>"),
    "no object": (200, [1]),
    "no choice": (200, {"model": BASE, "choices": []}),
    "no text": (200, completion(BASE, [1], text=None)),
    "text for ids": (200, completion(BASE, [1], token_ids="12")),
    "negative ids": (200, completion(BASE, [-1])),
    "ids that are true": (200, completion(BASE, [True])),
    "aborted": (200, completion(BASE, [1], finish_reason="abort")),
    "log-probabilities as text": (200, completion(BASE, [1], logprobs={"token_logprobs": ["-1"]})),
    "an error of the server": (503, {"error": {"message": "starting"}}),
    "a rate limit": (429, {"error": {"message": "slow down"}}),
}


@pytest.mark.parametrize("reply", [reply for status, reply in GARBLED.values() if status == 200])
def test_what_is_no_completion_may_pass(reply):
    with pytest.raises(Failure) as failure:
        read_completion((reply if isinstance(reply, str) else json.dumps(reply)).encode(), model=BASE, max_tokens=8)
    assert failure.value.kind == "passing"


@pytest.mark.parametrize("name", ["no JSON", "an error of the server", "a rate limit"])
def test_what_may_pass_is_asked_again(base, name):
    expected = [answer.text for answer in generate(base)]
    with model_server(base, once("/v1/completions", GARBLED[name], GARBLED[name])) as server:
        with Served(settings(server), None) as source:
            assert [answer.text for answer in drawn(source)] == expected
        assert len(server.called("/v1/completions")) == len(PROMPTS) + 2


def generate(base: Path) -> list[Answer]:
    plain = Policy(tiny_model(TASK, seed=0)).eval()
    return generate_answers(plain, TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=STOP, seed=0)


def test_what_does_not_pass_ends_at_the_deadline(base):
    with model_server(base, lambda call: (503, "") if call.path == "/v1/completions" else None) as server:
        said = given_up(server, None, deadline_seconds=0.3)
    assert "error of the server (503), again and again (evaluation.engine.deadline_seconds is 0.3)" in said
    assert said.endswith("give the same command again with --resume.")


def test_a_server_that_hangs_is_asked_again_until_the_deadline(base):
    released = threading.Event()

    def hang(call: Call) -> Any:
        if call.path == "/v1/completions":
            released.wait(20)
        return None

    with model_server(base, hang) as server:
        said = given_up(server, None, timeout_seconds=0.1, deadline_seconds=0.4, concurrency=2)
        released.set()
    assert "no answer within" in said
    assert "deadline_seconds is 0.4" in said


def test_no_server_is_a_sentence(base):
    with model_server(base) as server:
        url = server.url
    assert "no connection" in given_up(url, None, deadline_seconds=0.2)


WRONG = {
    "another name": ({"model": "other"}, None, r"serves base, not other. Correct evaluation.engine.model"),
    "another model": (
        {},
        lambda call: (200, completion("other", [1])),
        "answers with the model other in place of base",
    ),
    "too long": ({}, lambda call: (200, completion(BASE, [7] * 20)), "20 tokens, where max_tokens is 8"),
    "refused": ({}, lambda call: (400, {"error": {"message": "bad prompt"}}), r"refused \(400\): .*bad prompt"),
}


@pytest.mark.parametrize(("changes", "reply", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_pass_is_said_at_once(base, changes, reply, sentence):
    behave = (lambda call: reply(call) if call.path == "/v1/completions" else None) if reply else lambda call: None
    with model_server(base, behave) as server:
        assert re.search(sentence, given_up(server, None, **changes))
        assert len(server.called("/v1/completions")) <= len(PROMPTS)


def test_a_list_of_models_that_is_none_is_said(base):
    with model_server(base, once("/v1/models", (200, {"data": [7]}))) as server:
        assert "its list of models is none" in given_up(server, None)


def test_a_server_that_loads_no_adapters_is_told_what_to_be_started_with(base, adapter):
    with model_server(base, prefix="/elsewhere") as server:
        said = given_up(server, adapter)
        assert "it loads no adapters (404). Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING" in said
        assert not server.called("/v1/completions")


@pytest.mark.parametrize(
    "reply",
    [
        (400, {"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16."}}),
        (200, {"success": False, "error_message": "LoRA rank 64 is greater than max_lora_rank 16."}),
    ],
    ids=["vllm", "sglang"],
)
def test_an_adapter_that_the_server_refuses_is_named_with_its_reason(base, adapter, reply):
    with model_server(base, once("/v1/load_lora_adapter", reply)) as server:
        said = given_up(server, adapter)
    assert f"did not load the adapter {adapter}" in said
    assert "LoRA rank 64 is greater than max_lora_rank 16" in said
    assert "It has to see this path" in said


def test_a_path_that_the_server_does_not_see_is_named(base, tmp_path):
    with model_server(base) as server:
        assert f"No adapter found at {tmp_path}" in given_up(server, tmp_path)


def test_an_adapter_that_the_server_forgets_is_loaded_again(base, policy, adapter):
    expected = generate_answers(policy, TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=STOP, seed=0)

    def forget(call: Call) -> None:
        if call.path == "/v1/completions" and call.number == 3:
            server.adapters.clear()

    with model_server(base, forget) as server:
        with Served(settings(server, concurrency=2), adapter) as source:
            assert drawn(source) == expected
        assert len(server.called("/v1/load_lora_adapter")) >= 2


def test_an_adapter_of_an_attempt_that_was_killed_is_replaced(base, policy, adapter):
    with model_server(base) as server:
        first = Served(settings(server), adapter)
        first.__enter__()
        server.adapters[first.adapter_name] = server.model
        with answering(settings(server), policy, TOKENIZER, PROMPTS, adapter=adapter):
            assert server.adapters[first.adapter_name] is not server.model


def test_a_server_that_does_not_use_the_adapter_is_noticed(base, policy, adapter):
    def without(call: Call) -> Any:
        if call.path != "/v1/completions":
            return None
        status, reply = server._complete({**call.body, "model": BASE})
        return status, {**reply, "model": call.body["model"]}

    with model_server(base, without) as server:
        said = given_up(server, adapter, policy)
    assert "nats from this policy's" in said
    assert "or the adapter is not in use" in said


def test_a_base_of_other_weights_is_noticed(policy, adapter, tmp_path):
    tiny_model(TASK, seed=7).save_pretrained(tmp_path)
    with model_server(tmp_path) as server:
        assert "is not the SFT checkpoint of this run" in given_up(server, adapter, policy)


def test_a_server_without_log_probabilities_cannot_be_checked(base, policy, adapter):
    def silent(call: Call) -> Any:
        return (200, completion(call.body["model"], [7], logprobs=None)) if call.path == "/v1/completions" else None

    with model_server(base, silent) as server:
        assert "cannot be told which model answers" in given_up(server, adapter, policy)


def test_an_adapter_that_stays_loaded_is_a_warning_alone(base, adapter, caplog, monkeypatch):
    monkeypatch.setattr(served, "UNLOADING", 0.1)
    broken = lambda call: (500, "") if call.path == "/v1/unload_lora_adapter" else None  # noqa: E731
    with model_server(base, broken) as server, Served(settings(server), adapter) as source:
        drawn(source)
    assert "An adapter stays loaded" in caplog.text


def test_the_key_comes_from_the_environment_and_is_never_repeated(base, monkeypatch):
    with model_server(base) as server:
        monkeypatch.setenv(VARIABLE, KEY)
        with Served(settings(server, api_key_env=VARIABLE), None) as source:
            drawn(source)
        monkeypatch.setenv(VARIABLE, "sk-wrong-9876")
        said = given_up(server, None, api_key_env=VARIABLE)
    assert f"refuses the key in {VARIABLE} (401)" in said
    assert "sk-wrong" not in said


SETTINGS: dict[str, Any] = {
    "model": {"source": "embedded/arithmetic", "lora": {"rank": 4}},
    "data": {"train": "embedded/arithmetic"},
    "objective": {"name": "slime"},
    "training": {"learning_rate": 1e-4},
    "evaluation": {"engine": {"name": "openai", "model": "base"}},
}


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [(None, "model.lora is null, which trains every weight"), ({"train_head": True}, "output head in full")],
)
def test_what_no_server_can_load_is_refused_before_anything_starts(lora, sentence):
    Settings.model_validate(SETTINGS)
    with pytest.raises(ValidationError, match=sentence):
        Settings.model_validate({**SETTINGS, "model": {"source": "embedded/arithmetic", "lora": lora}})


def test_where_the_server_is_does_not_change_what_a_trial_is():
    def kept(**engine: Any) -> Any:
        return outcome_settings({"evaluation": {"engine": {"name": "openai", "model": "base", **engine}}})

    assert kept(base_url="http://a/v1", concurrency=3, deadline_seconds=5.0) == kept(base_url="http://b/v1")
    assert kept(server="vllm") != kept(server="sglang")
