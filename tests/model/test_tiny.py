"""The tiny model and its tokenizer: exact texts, right stops, and a model that follows from its seed alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_ray.data.chat_template import stop_token_ids
from slime_ray.data.tasks import TASKS, Task
from slime_ray.model.tiny import CONTEXT, SPECIAL_TOKENS, tiny_model, tiny_tokenizer
from tests.rendered import render_pair, render_prompt

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@every_task
def test_every_text_of_the_task_is_given_back_to_the_character_and_no_token_is_there_for_nothing(task: Task) -> None:
    tokenizer, examples = tiny_tokenizer(task), task.sft_examples(2000, seed=0)
    texts = [messages[0]["content"] for column in examples.column_names for messages in examples[column]]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts
    unused = set(range(len(tokenizer))) - {token for ids in encoded for token in ids}
    assert set(tokenizer.convert_ids_to_tokens(sorted(unused))) == set(SPECIAL_TOKENS)


def test_a_foreign_text_becomes_unknown_tokens() -> None:
    tokenizer = tiny_tokenizer(TASKS["arithmetic"])
    assert tokenizer.tokenize("What is Rome?") == ["What", " is", "<|unk|>", "?"]
    assert tokenizer.encode("") == []


@every_task
def test_a_turn_ends_with_the_end_of_sequence_token_and_generation_stops_there(task: Task) -> None:
    tokenizer = tiny_tokenizer(task)
    row = task.pairs(1, seed=0)[0]
    pair = render_pair(tokenizer, prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"])
    assert list(stop_token_ids(tokenizer)) == [tokenizer.eos_token_id]
    question, answer = row["prompt"][0]["content"], row["chosen"][0]["content"]
    assert tokenizer.decode(pair.prompt_ids) == f"<|user|>{question}<|end|><|assistant|>"
    assert tokenizer.decode(pair.chosen_ids) == f"{answer}<|end|>"
    whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
    assert tokenizer.encode(whole) == pair.prompt_ids + pair.chosen_ids


def test_a_role_that_the_model_never_saw_is_refused() -> None:
    tokenizer = tiny_tokenizer(TASKS["arithmetic"])
    with pytest.raises(Exception, match="only user and assistant turns are known, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


@every_task
def test_the_longest_conversation_fits_twice_over(task: Task) -> None:
    tokenizer = tiny_tokenizer(task)
    talks = [row["prompt"] + row["chosen"] for row in task.sft_examples(500, seed=0)]
    assert 2 * max(map(len, tokenizer.apply_chat_template(talks, return_dict=False))) < CONTEXT


@every_task
def test_tokenizer_and_model_come_back_equal_from_a_folder(task: Task, tmp_path: Path) -> None:
    tokenizer, model = tiny_tokenizer(task), tiny_model(task, seed=3)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt")] == []
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    row = task.pairs(1, seed=0)[0]
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.all_special_ids == tokenizer.all_special_ids
    assert again.chat_template == tokenizer.chat_template
    ids = render_prompt(tokenizer, row["prompt"])
    assert render_prompt(again, row["prompt"]) == ids
    assert again.decode(ids) == tokenizer.decode(ids)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(inputs).logits, model.eval()(inputs).logits)


@every_task
def test_the_model_has_about_a_tenth_of_a_million_float32_parameters(task: Task) -> None:
    """By hand: two layers of four 64x64, three 64x176 and two norms, a last norm, tokens in and out untied."""
    model = tiny_model(task, seed=0)
    tokens = len(tiny_tokenizer(task))
    by_hand = 2 * (4 * 64 * 64 + 3 * 64 * 176 + 2 * 64) + 64 + 2 * tokens * 64
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand
    assert 100_000 < by_hand < 120_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_follow_from_the_seed_and_leave_the_global_random_state_alone() -> None:
    task = TASKS["arithmetic"]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tiny_model(task, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = tiny_model(task, seed=5).state_dict(), tiny_model(task, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
