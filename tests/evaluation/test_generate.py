"""Answers are what a plain loop over the model would give, whatever the batches, caches and configurations."""

from typing import Any, Literal

import pytest
import torch

from slime_ray.config.evaluation import Decoding
from slime_ray.config.model import Lora
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.evaluation.generate import Answer, generate_answers
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.model.tiny import tiny_model, tiny_tokenizer
from slime_ray.world import World
from tests.model.conftest import CONFIGS, double_model
from tests.model.families import tiny_family
from tests.rendered import render_prompt

TASK = load_task("arithmetic")
TOKENIZER = tiny_tokenizer(TASK)
STOP = (TOKENIZER.eos_token_id,)
PROMPTS = [render_prompt(TOKENIZER, row) for row in TASK.prompts(9, purpose="selection", seed=0)["prompt"]]
SAMPLING = Decoding(temperature=1.0, max_new_tokens=12, batch=4)
GREEDY = Decoding(temperature=0.0, max_new_tokens=12, batch=4)


@pytest.fixture(scope="module")
def lm():
    return tiny_model(TASK, seed=0)


def generate(lm: Any, decoding: Decoding = SAMPLING, *, seed: int = 0, **more: Any) -> list[Answer]:
    return generate_answers(
        lm, TOKENIZER, more.pop("prompts", PROMPTS), decoding=decoding, stop_tokens=STOP, seed=seed, **more
    )


@torch.no_grad()
def loop(lm: Any, prompt: list[int], *, stop: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """The likeliest token, again and again: one prompt, no padding, no cache, no library."""
    ids: list[int] = []
    while len(ids) < limit:
        logits = lm(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        if (token := int(logits.argmax())) in stop:
            break
        ids.append(token)
    return tuple(ids)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
def test_greedy_answers_are_those_of_a_plain_loop(name, adapted):
    """Prompts of 1 to 9 tokens in batches of 4, so most are padded; in float64, where no two tokens tie."""
    lm = double_model(CONFIGS[name])
    if adapted:
        lm = add_lora(lm, Lora(rank=2, alpha=4, targets=["q_proj", "v_proj"])).double()
        for parameter in lm.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 61, (1 + n % 9,), generator=generator).tolist() for n in range(11)]
    # An id that the plain loop reaches, so that some answers stop and some do not.
    stop = (loop(lm, prompts[2], stop=(), limit=4)[-1],)
    expected = [loop(lm, prompt, stop=stop, limit=14) for prompt in prompts]
    assert {len(ids) < 14 for ids in expected} == {True, False}
    decoding = Decoding(temperature=0.0, max_new_tokens=14, batch=4)
    found = generate_answers(Policy(lm), TOKENIZER, prompts, decoding=decoding, stop_tokens=stop, seed=0)
    assert [answer.token_ids for answer in found] == expected
    assert [answer.stopped for answer in found] == [len(ids) < 14 for ids in expected]


def test_tokens_are_drawn_with_the_probabilities_that_temperature_and_top_p_leave(lm):
    """4,000 first tokens after one prompt, against the softmax cut by hand to its likeliest 80 %."""
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    probabilities, tokens = (logits / 0.1).softmax(0).sort(descending=True)
    kept = int((probabilities.cumsum(0) < 0.8).sum()) + 1
    assert 2 <= kept < len(tokens) / 2
    expected = torch.zeros(len(tokens)).index_copy_(0, tokens[:kept], probabilities[:kept] / probabilities[:kept].sum())
    draws = 4000
    decoding = Decoding(temperature=0.1, top_p=0.8, max_new_tokens=1, batch=draws)
    answers = generate(lm, decoding, prompts=[PROMPTS[0]] * draws)
    first = torch.tensor([answer.token_ids[0] if answer.token_ids else STOP[0] for answer in answers])
    found = first.bincount(minlength=len(tokens)) / draws
    assert not found[expected == 0].any()
    # Five standard errors of each share.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_padding_token_that_the_model_has_not_is_replaced_by_one_that_it_has(lm):
    stop = (STOP[0], generate(lm, GREEDY)[0].token_ids[4])
    expected = generate_answers(Policy(lm), TOKENIZER, PROMPTS, decoding=GREEDY, stop_tokens=stop, seed=0)
    # Some end before others, so that padding follows, too.
    assert len({len(answer.token_ids) for answer in expected}) > 1
    beyond = Beyond(TOKENIZER)
    assert beyond.pad_token_id >= lm.get_input_embeddings().num_embeddings
    assert generate_answers(Policy(lm), beyond, PROMPTS, decoding=GREEDY, stop_tokens=stop, seed=0) == expected


class Beyond:
    """A tokenizer with a padding token that was added to it alone."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.pad_token_id = len(tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_a_prompt_without_room_for_its_answer_is_refused_at_once():
    policy = Policy(tiny_family("gpt2"))
    decoding = Decoding(max_new_tokens=120, batch=2)
    with pytest.raises(InputError, match="A prompt of 9 tokens with an answer of 120 tokens has 129 tokens, more than"):
        generate_answers(policy, TOKENIZER, [[5] * 8, [5] * 9], decoding=decoding, stop_tokens=STOP, seed=0)


def test_what_came_with_the_weights_has_no_say(lm):
    greedy, sampled = generate(lm, GREEDY), generate(lm)
    kept = lm.generation_config
    own = {"no_repeat_ngram_size": 2, "min_p": 0.9, "suppress_tokens": [greedy[0].token_ids[0]], "top_k": 1}
    lm.generation_config = type(kept)(**own, do_sample=True)
    try:
        assert generate(lm, GREEDY) == greedy
        assert generate(lm) == sampled
        assert lm.generation_config.no_repeat_ngram_size == 2
    finally:
        lm.generation_config = kept


def test_the_order_in_which_batches_are_answered_changes_nothing(lm, monkeypatch):
    first = generate(lm)

    def backwards(self: World, items: Any, work: Any) -> list[Any]:
        return [work(item) for item in reversed(items)][::-1]

    monkeypatch.setattr(World, "share", backwards)
    assert generate(lm) == first
    assert generate(lm, seed=1) != first


def test_each_category_has_its_own_temperature_and_zero_is_greedy(lm):
    categories = [("math", "writing", None)[n % 3] for n in range(len(PROMPTS))]
    decoding = SAMPLING.model_copy(update={"temperatures": {"math": 0.0, "writing": 1e-6}})
    batches: list[int] = []
    mixed = generate(lm, decoding, categories=categories, progress=lambda done, of: batches.append(of))
    # Three prompts of each temperature, in a batch of their own.
    assert batches == [3, 3, 3]
    assert mixed == generate(lm, decoding, categories=categories)
    greedy = generate(lm, GREEDY)
    for n, category in enumerate(categories):
        # So cold that sampling takes the likeliest token, too; at 1, all of twelve tokens never agree.
        assert (mixed[n] == greedy[n]) == (category is not None)


def test_no_prompts_have_no_answers(lm):
    assert generate(lm, prompts=[]) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_continuous_batching_gives_the_greedy_answers_of_generate(name):
    """With adapters, in float64; windows are shorter than the sequences. The model is as before afterwards."""
    lm = add_lora(double_model(CONFIGS[name]), Lora(rank=2, alpha=4, targets=["q_proj", "v_proj"])).double()
    for parameter in lm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    policy = Policy(lm)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 61, (1 + n % 9,), generator=generator).tolist() for n in range(11)]
    stop = (loop(lm, prompts[0], stop=(), limit=4)[-1],)

    def answers(engine: Literal["generate", "continuous"]) -> list[Answer]:
        decoding = Decoding(temperature=0.0, max_new_tokens=14, batch=4, engine=engine)
        return generate_answers(policy, TOKENIZER, prompts, decoding=decoding, stop_tokens=stop, seed=0)

    expected = answers("generate")
    assert {answer.stopped for answer in expected} == {True, False}
    assert answers("continuous") == expected == answers("generate")


def test_continuous_batching_repeats_its_random_draws_and_leaves_the_random_state():
    lm = tiny_model(TASK, seed=0)
    decoding = Decoding(temperature=1.0, max_new_tokens=12, engine="continuous")
    state = torch.get_rng_state()
    first, again, other = (generate(lm, decoding, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other


def test_continuous_batching_gives_each_category_its_temperature():
    lm = tiny_model(TASK, seed=0)
    decoding = Decoding(temperature=0.0, temperatures={"free": 5.0}, max_new_tokens=12, engine="continuous")
    found = generate(lm, decoding, categories=["free", *["strict"] * (len(PROMPTS) - 1)])
    expected = generate(lm, Decoding(temperature=0.0, max_new_tokens=12))
    assert found[1:] == expected[1:]
    assert found[0] != expected[0]


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_without_continuous_batching_is_refused_in_a_sentence(name):
    lm = tiny_family(name).eval()
    decoding = Decoding(temperature=0.0, max_new_tokens=2, engine="continuous")
    with pytest.raises(InputError, match=r"evaluation.decoding.engine is continuous.*Set it to generate") as error:
        generate_answers(lm, TOKENIZER, [[5, 6]], decoding=decoding, stop_tokens=[2], seed=0)
    assert "\n" not in str(error.value)


def test_continuous_batching_refuses_logits_that_are_not_numbers():
    lm = tiny_model(TASK, seed=0)
    with torch.no_grad():
        lm.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not numbers"):
        generate(lm, Decoding(temperature=0.0, max_new_tokens=4, engine="continuous"))


class Cramped(torch.nn.Module):
    """A model whose memory holds so many answers at a time."""

    def __init__(self, lm: Any, room: int):
        super().__init__()
        self.lm, self.room = lm, room
        self.batches: list[int] = []
        self.causal_lm = lm

    def generate(self, **options: Any) -> torch.Tensor:
        rows = len(options["input_ids"])
        self.batches.append(rows)
        if rows > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        generated: torch.Tensor = self.lm.generate(**options)
        return generated


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so(lm, caplog):
    cramped = Cramped(lm, room=2)
    greedy = Decoding(temperature=0.0, max_new_tokens=12, batch=8)
    assert generate(cramped, greedy) == generate(lm, greedy)
    # Nine prompts in batches of 8 and 1: the first is tried whole, in halves, in quarters.
    assert cramped.batches == [8, 4, 2, 2, 2, 2, 1]
    assert "8 answers at a time take more memory than there is: 4 from here on" in caplog.text
    assert "evaluation.decoding.batch 2 repeats them" in caplog.text


def test_answers_in_parts_repeat_with_the_memory_and_every_part_has_its_seed(lm):
    sampling = Decoding(temperature=1.0, max_new_tokens=12, batch=8)
    same = [PROMPTS[0]] * 8
    first, again = (generate(Cramped(lm, room=2), sampling, prompts=same) for _ in range(2))
    assert first == again
    # Equal prompts in different parts are not answered alike.
    assert len({answer.token_ids for answer in first[::2]}) > 1
    assert generate(Cramped(lm, room=8), sampling, prompts=same) == generate(lm, sampling, prompts=same)


def test_one_answer_that_does_not_fit_is_an_error(lm):
    with pytest.raises(torch.OutOfMemoryError):
        generate(Cramped(lm, room=0), SAMPLING)


def test_the_default_batch_is_that_of_the_device():
    assert (Decoding().batch_on(gpu=True), Decoding().batch_on(gpu=False)) == (256, 64)
    assert Decoding(batch=7).batch_on(gpu=True) == 7


@pytest.mark.parametrize("engine", ["generate", "continuous"])
def test_answers_leave_the_random_states_of_other_devices_alone(engine, monkeypatch, recwarn):
    """With many of them torch warns of forking all: each GPU would be initialised and its state copied."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    generate(tiny_model(TASK, seed=0), Decoding(max_new_tokens=2, engine=engine), prompts=PROMPTS[:2])
    assert not [warning for warning in recwarn if "available devices" in str(warning.message)]
