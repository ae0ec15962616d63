"""The probe: a model whose log-probabilities here would not be its own is refused, and one that works is not."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GptOssPreTrainedModel, LlamaForCausalLM

from slime_ray.config.model import Lora
from slime_ray.data.packing import pack
from slime_ray.errors import InputError
from slime_ray.model import attention
from slime_ray.model.head import logit_cap, logit_scale
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora

from .conftest import all_alone, random_pairs
from .families import config_of, tiny_family

SCALED = {
    "granite": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.3},
    "cohere": {"logit_scale": 0.25},
    "falcon_h1": {"lm_head_multiplier": 0.4},
    "recurrent_gemma": {"logits_soft_cap": 3.0, "num_hidden_layers": 3},
    "nanochat": {"final_logit_softcapping": 3.0},
}


def difference(policy: Policy, *, count: int = 5) -> float:
    pairs = random_pairs(count)
    with torch.no_grad():
        logps = policy(pack(pairs, shared_prompt=policy.shares_prompts))
        return float((torch.cat([logps.chosen, logps.rejected]) - all_alone(policy.lm, pairs)).abs().max())


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("head", ["frozen", "trained", "adapted"])
def test_scales_and_caps_are_computed_by_every_kind_of_head(kind, head):
    lm = tiny_family(kind, **SCALED[kind], tie_word_embeddings=False)
    if head == "frozen":
        lm.requires_grad_(False)
    if head == "adapted":
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    pairs = random_pairs(4)
    policy = Policy(lm.eval(), chunk_logits=61 * 5)
    logps = policy(pack(pairs, shared_prompt=policy.shares_prompts))
    ours, own = torch.cat([logps.chosen, logps.rejected]), all_alone(lm, pairs)
    torch.testing.assert_close(ours, own.float(), rtol=0, atol=1e-5)
    if head != "frozen":
        weights = [parameter for name, parameter in lm.named_parameters() if "lm_head" in name]
        weights = [weight for weight in weights if weight.requires_grad]
        assert weights
        for mine, other in zip(
            torch.autograd.grad(ours.sum(), weights), torch.autograd.grad(own.sum(), weights), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_every_scale_and_cap_is_read_from_the_configuration():
    assert logit_scale(config_of("granitemoe", logits_scaling=4.0)) == 0.25
    assert logit_scale(config_of("hyperclovax", logits_scaling=4.0)) == 4.0
    assert logit_scale(config_of("llama", logits_scaling=4.0)) == 1.0
    assert logit_cap(config_of("recurrent_gemma", logits_soft_cap=30.0)) == 30.0
    assert logit_cap(config_of("gemma2", final_logit_softcapping=None)) is None


class Louder(LlamaForCausalLM):
    """Does to its logits what nobody knows of."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits * 1.5
        return output


class Narrower(LlamaForCausalLM):
    """Scales what its head is given."""

    def forward(self, input_ids: Any, **options: Any) -> Any:
        output = super().forward(input_ids, **options)
        output.logits = self.lm_head(self.model(input_ids).last_hidden_state / 3)
        return output


@pytest.mark.parametrize("kind", [Louder, Narrower])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_model_that_does_more_to_its_logits_is_refused_by_name(kind, dtype, adapters):
    lm = _loud(kind).to(dtype)
    if adapters:
        lm = add_lora(lm, Lora(rank=2, targets=["q_proj"], train_head=True))
    with pytest.raises(
        InputError, match=rf"{kind.__name__}: log-probabilities .* differ by .* nat .* logit_factor 1.5"
    ):
        assert Policy(lm).shares_prompts


def _loud(kind: Any) -> Any:
    torch.manual_seed(0)
    lm = kind(config_of("llama", logit_factor=1.5)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return lm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2", "qwen3_moe", "gemma2"])
def test_rounding_refuses_nothing(kind, dtype):
    policy = Policy(tiny_family(kind).to(dtype))
    assert policy.shares_prompts == (kind != "gemma2")


def test_a_model_that_takes_no_text_alone_is_refused(monkeypatch):
    def forward(self: Any, input_ids: Any, pixel_values: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Louder, "forward", forward)
    with pytest.raises(InputError, match=r"Louder computes no logits of text alone: TypeError .*pixel_values"):
        assert Policy(_loud(Louder)).shares_prompts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_named_before_training(value):
    lm = tiny_family("llama")
    with torch.no_grad():
        lm.model.norm.weight[3] = value
    with pytest.raises(InputError, match=r"LlamaForCausalLM gives logits that are not finite.*float32"):
        assert Policy(lm).shares_prompts


def test_what_the_head_has_hooked_to_it_counts():
    lm = tiny_family("llama", tie_word_embeddings=False)
    lm.lm_head.register_forward_hook(lambda module, args, output: output.roll(1, -1))
    assert difference(Policy(lm).eval()) <= 1e-5


def test_attention_that_leaves_something_out_is_refused(monkeypatch):
    """gpt-oss has sinks, which sdpa passes over in silence."""
    monkeypatch.setattr(GptOssPreTrainedModel, "_supports_sdpa", True)
    lm = tiny_family("gpt_oss")
    monkeypatch.setattr(attention, "_LOCAL_SETTINGS", ())
    with pytest.raises(
        InputError, match=r"GptOssForCausalLM: its attention called sdpa differs by .* nat from the one"
    ):
        assert Policy(lm).shares_prompts


def test_attention_that_knows_functions_by_name_gets_its_own_back(monkeypatch):
    """DeepSeek's sparse attention masks only for names that it knows: beyond its index, other tokens would be seen."""
    sparse = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2, "head_dim": 4, "num_key_value_heads": 4}
    lm = tiny_family("deepseek_v32", **sparse)
    policy = Policy(lm).eval()
    assert policy.why_not_packed == "its index_topk of 4 positions is not known to be honoured in packed rows"
    assert policy.limits.positions == 4
    # Were that setting not known by name, the numbers would show it.
    monkeypatch.setattr(attention, "_LOCAL_SETTINGS", ())
    policy = Policy(lm).eval()
    assert "its attention with the function of ours differs by" in policy.why_not_packed
    assert not policy.takes_row_attention


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("doge", {"keep_window_size": 64, "sliding_window": None}),
        (
            "minimax_m3_vl_text",
            {"index_topk_blocks": 4, "index_block_size": 16, "index_n_heads": 2, "index_head_dim": 8}
            | {"layer_types": ["full_attention", "minimax_m3_sparse"]},
        ),
    ],
)
def test_attention_that_is_sparse_beyond_what_a_probe_sees_gets_a_row_for_every_sequence(kind, settings):
    policy = Policy(tiny_family(kind, **settings)).eval()
    setting = next(iter(settings))
    assert policy.why_not_packed.startswith(f"its {setting} of ")
    assert policy.limits.positions == 64
    assert setting in policy.limits.reason
    # Together longer than that, and each of them shorter.
    assert difference(policy, count=12) <= 1e-5


def test_sinks_and_soft_caps_of_attention_are_left_to_the_model(caplog):
    for kind in ("gpt_oss", "gemma2"):
        policy = Policy(tiny_family(kind)).eval()
        assert "sliding_window of 4" in policy.why_not_packed
        assert not policy.takes_row_attention
        assert difference(policy) <= 1e-5


def test_a_model_that_sees_the_padding_behind_it_is_refused():
    with pytest.raises(
        InputError, match="BertGenerationDecoder gives a sequence other log-probabilities beside a long"
    ):
        assert Policy(tiny_family("bert-generation")).shares_prompts


def test_a_known_architecture_that_packs_wrongly_is_found_out_as_any_other(monkeypatch):
    monkeypatch.setattr(attention, "segment_mask", lambda segment, window, like: like.new_zeros((sum(segment),) * 2))
    policy = Policy(tiny_family("llama"))
    assert "packed rows give log-probabilities that differ by" in policy.why_not_packed


def test_the_probe_runs_once_and_leaves_the_mode_and_the_random_state_alone(monkeypatch):
    policy = Policy(tiny_family("llama")).train()
    calls = []
    own = Policy.own_logits
    monkeypatch.setattr(Policy, "own_logits", lambda self, ids: calls.append(ids) or own(self, ids))
    state = torch.get_rng_state()
    for _ in range(3):
        assert policy.shares_prompts
        policy(pack(random_pairs(2)))
    assert len(calls) == 5
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_that_padding_changes_are_answered_one_at_a_time(caplog, monkeypatch):
    policy = Policy(tiny_family("granite"))
    assert policy.prompts_at_a_time(9, max_new_tokens=4, batch=8) == 8
    deaf = Policy(copy.deepcopy(policy.lm))
    generate = deaf.lm.generate
    monkeypatch.setattr(
        deaf.lm,
        "generate",
        lambda attention_mask, **options: generate(attention_mask=torch.ones_like(attention_mask), **options),
    )
    assert deaf.prompts_at_a_time(9, max_new_tokens=4, batch=8) == 1
    assert "Prompts are answered one at a time" in caplog.text
