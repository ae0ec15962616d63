"""Packed rows against every sequence run alone, unpadded, in float64, on every architecture that is promised exact."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config, GPT2Config, MambaConfig, Olmo2Config, Phi3Config

from slime_ray.config.model import Lora
from slime_ray.data.packing import pack
from slime_ray.errors import InputError
from slime_ray.model import attention
from slime_ray.model.logprobs import EXACT_ARCHITECTURES, Policy, kl_divergence
from slime_ray.model.lora import add_lora
from slime_ray.objectives import SlimeObjective

from .conftest import CONFIGS, SIZES, VISION, VOCABULARY, all_alone, double_model, gradients, random_pairs


def test_every_architecture_that_is_promised_exact_is_tested():
    assert {config.model_type for config in CONFIGS.values()} == EXACT_ARCHITECTURES


@pytest.mark.parametrize("short", [0, 10**9], ids=["two calls a segment", "one call a segment"])
@pytest.mark.parametrize("shared", [True, False], ids=["packed", "one sequence per row"])
def test_logps_and_gradients_equal_each_sequence_run_alone(policy, shared, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_SEGMENT", short)
    pairs = random_pairs(7)
    logps = policy(pack(pairs, shared_prompt=shared))
    ours, expected = torch.cat([logps.chosen, logps.rejected]), all_alone(policy.lm, pairs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert logps.chosen_lengths.tolist() == [len(pair.chosen_ids) for pair in pairs]
    parameters = list(policy.parameters())
    for mine, other in zip(gradients(ours, parameters), gradients(expected, parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_loss_and_gradient_of_a_step_are_those_of_each_sequence_alone_however_it_is_divided(policy):
    pairs, parameters, objective = random_pairs(8), list(policy.parameters()), SlimeObjective()
    counts = pack(pairs).counts
    lengths = [torch.tensor([len(ids) for ids in side]) for side in zip(*map(sides, pairs), strict=True)]
    chosen, rejected = all_alone(policy.lm, pairs).split([int(side.sum()) for side in lengths])
    expected = objective(chosen, lengths[0], rejected, lengths[1]).loss
    gradient = torch.autograd.grad(expected, parameters)
    for parts in (1, 2, 4):
        loss, summed = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
        for part in range(parts):
            logps = policy(pack(pairs[part::parts]))
            output = objective(logps.chosen, logps.chosen_lengths, logps.rejected, logps.rejected_lengths)
            share = output.loss_over(counts)
            loss += float(share.detach())
            summed = list(map(torch.add, summed, torch.autograd.grad(share, parameters)))
        assert loss == pytest.approx(float(expected.detach()), rel=0, abs=1e-12)
        for ours, theirs in zip(summed, gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def sides(pair) -> tuple:
    return pair.chosen_ids, pair.rejected_ids


@pytest.mark.parametrize("policy", ["llama", "gemma3_text"], indirect=True)
def test_logps_and_gradients_do_not_depend_on_the_chunk_size(policy):
    rows = pack(random_pairs(4))

    def run(chunk_logits: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        chunked = Policy(policy.lm, chunk_logits=chunk_logits)
        logps = chunked(rows)
        every = torch.cat([logps.chosen, logps.rejected])
        return every.detach(), gradients(every, policy.parameters())

    whole, whole_gradients = run(None)
    # Less than the logits of one position is one position.
    for chunk_logits in (VOCABULARY * 3, 1):
        pieces, pieces_gradients = run(chunk_logits)
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-13)
        for a, b in zip(pieces_gradients, whole_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["frozen", "trained", "adapted"])
@pytest.mark.parametrize("chunk_logits", [None, VOCABULARY * 5])
def test_adapters_get_the_gradients_that_autograd_gives_on_each_sequence(head, chunk_logits):
    lm = double_model(CONFIGS["gemma3_text"])
    targets = ["q_proj", "down_proj", *(["lm_head"] if head == "adapted" else [])]
    if head == "adapted":
        from slime_ray.model.lora import untie_head

        untie_head(lm)
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules=targets))
    else:
        lm = add_lora(lm, Lora(rank=2, targets=targets, train_head=head == "trained"))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lm = lm.double()
    policy, pairs = Policy(lm, chunk_logits=chunk_logits), random_pairs(4)
    logps = policy(pack(pairs))
    ours = gradients(torch.cat([logps.chosen, logps.rejected]), lm.parameters())
    expected = gradients(all_alone(lm, pairs), lm.parameters())
    assert any(gradient.shape[0] == VOCABULARY for gradient in ours) == (head != "frozen")
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_entropy_and_top_probability_are_those_of_the_whole_distribution(policy):
    pairs = random_pairs(3, seed=2)
    with torch.no_grad():
        logps = Policy(policy.lm, chunk_logits=VOCABULARY * 4)(pack(pairs), statistics=True)
        distributions = [
            policy.lm(input_ids=torch.tensor([pair.prompt_ids + pair.chosen_ids]), use_cache=False)
            .logits[0, len(pair.prompt_ids) - 1 : -1]
            .softmax(-1)
            for pair in pairs
        ]
        plain = policy(pack(pairs))
    expected = torch.cat(distributions)
    entropy = torch.distributions.Categorical(probs=expected).entropy()
    torch.testing.assert_close(logps.chosen_entropy, entropy, rtol=0, atol=1e-12)
    torch.testing.assert_close(logps.chosen_top_probability, expected.amax(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(logps.rejected, plain.rejected, rtol=0, atol=1e-13)


def test_generation_is_what_it_was_before(policy):
    """The model's attention function is exchanged; without a packed row it must be the model's own."""
    prompt = torch.tensor([random_pairs(1)[0].prompt_ids])
    untouched = AutoModelForCausalLM.from_config(policy.lm.config, attn_implementation="sdpa").double().eval()
    untouched.load_state_dict(policy.lm.state_dict(), strict=False)
    exchanged = Policy(copy.deepcopy(untouched)).lm
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = exchanged.generate(prompt, **options), untouched.generate(prompt, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=0, atol=0)


def test_gemma_3_with_its_vision_tower_is_packed_as_its_text_model():
    """So are the 4B checkpoints of the paper: a text model inside another."""
    text = CONFIGS["gemma3_text"].to_dict() | {"final_logit_softcapping": None}
    lm = double_model(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4))
    policy, pairs = Policy(lm), random_pairs(4)
    assert policy.shares_prompts
    with torch.no_grad():
        logps = policy(pack(pairs))
        torch.testing.assert_close(torch.cat([logps.chosen, logps.rejected]), all_alone(lm, pairs), rtol=0, atol=1e-12)


def test_gradient_checkpointing_runs_the_same_attention_again(policy):
    rows, lm = pack(random_pairs(4)), copy.deepcopy(policy.lm)
    plain = gradients(Policy(lm)(rows).chosen, lm.parameters())
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(Policy(lm).train()(rows).chosen, lm.parameters())
    for mine, other in zip(again, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


class TestOtherArchitectures:
    """Two pairs are run both ways; what cannot be packed gets a row for every sequence."""

    def test_one_that_packs_exactly_is_packed(self, caplog):
        lm = AutoModelForCausalLM.from_config(Olmo2Config(**SIZES), attn_implementation="sdpa").double()
        with caplog.at_level(logging.WARNING):
            assert Policy(lm).shares_prompts
        assert "row of its own" not in caplog.text

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1), "takes no attention function"),
            (Phi3Config(**SIZES, sliding_window=4, pad_token_id=0), "its sliding_window of 4 positions"),
        ],
        ids=["mamba", "phi3 with a window"],
    )
    def test_one_that_cannot_be_trusted_gets_a_row_a_sequence_and_says_so(self, config, reason, caplog):
        lm = AutoModelForCausalLM.from_config(config).double()
        policy, pairs = Policy(lm).eval(), random_pairs(3)
        with caplog.at_level(logging.WARNING):
            assert not policy.shares_prompts
        assert reason in policy.why_not_packed
        assert reason in caplog.text
        assert "Every sequence gets a row of its own" in caplog.text
        with torch.no_grad():
            logps = policy(pack(pairs, shared_prompt=False))
            torch.testing.assert_close(
                torch.cat([logps.chosen, logps.rejected]), all_alone(lm, pairs), rtol=0, atol=1e-6
            )

    def test_one_whose_packed_rows_differ_is_found_out(self, caplog, monkeypatch):
        """Were the layout ignored, rejected would see chosen, and one pair another."""
        lm = AutoModelForCausalLM.from_config(Olmo2Config(**SIZES), attn_implementation="sdpa")
        policy = Policy(lm)
        monkeypatch.setattr(
            attention.RowLayout, "__init__", lambda self, segments, spans, kernel: _one_segment(self, segments)
        )
        with caplog.at_level(logging.WARNING):
            assert not policy.shares_prompts
        assert "packed rows give log-probabilities that differ by" in caplog.text

    def test_learned_positions_are_probed_as_any_other(self):
        lm = AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64),
            attn_implementation="sdpa",
        ).double()
        policy, pairs = Policy(lm).eval(), random_pairs(3)
        with torch.no_grad():
            logps = policy(pack(pairs, shared_prompt=policy.shares_prompts))
            torch.testing.assert_close(
                torch.cat([logps.chosen, logps.rejected]), all_alone(lm, pairs), rtol=0, atol=1e-6
            )


def _one_segment(layout, segments) -> None:
    """A layout that takes the whole row for one sequence."""
    whole = attention.Segment(sum(map(sum, segments)), 0, 0)
    layout.segments, layout.kernel, layout._masks = (whole,), "segments", {}


def test_a_model_without_a_head_and_a_chunk_of_nothing_are_refused():
    lm = double_model(CONFIGS["llama"])
    with pytest.raises(ValueError, match="chunk_logits is 0: must be at least 1"):
        Policy(lm, chunk_logits=0)
    with pytest.raises(InputError, match="LlamaModel has no output head that can be found"):
        Policy(lm.model)


def test_kl_of_a_distribution_to_itself_is_zero_and_matches_torch_otherwise():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 11, dtype=torch.float64)
    assert kl_divergence(a, a).abs().max() == 0
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    )
    torch.testing.assert_close(kl_divergence(a, b), expected)
