"""Fused elementwise work against the modules of transformers, which compute it in many kernels."""

import collections
import copy
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Phi3Config

from slime_ray.config.model import Lora
from slime_ray.data.packing import pack
from slime_ray.model import fused_ops
from slime_ray.model.fused_ops import GRAPHS, fuse
from slime_ray.model.head import Head
from slime_ray.model.logprobs import Policy
from slime_ray.model.lora import add_lora
from slime_ray.model.train_mode import checkpoint_layers

from .conftest import CONFIGS, SIZES, VOCABULARY, all_alone, double_model, gradients, random_pairs

pytestmark = pytest.mark.skipif(
    "recompile_limit" not in inspect.signature(torch.compile).parameters,
    reason="needs torch 2.13, as fused operations do",
)

FAMILIES = {kind.removesuffix("_text").title(): config for kind, config in CONFIGS.items()}


@pytest.fixture
def compile_with(monkeypatch):
    """Have a CPU compute in the fused way, in functions that a backend of torch.compile has made."""
    original = torch.compile
    monkeypatch.setattr(fused_ops, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_ops, "_why_not_compiled", lambda: None)

    def choose(backend) -> None:
        def compiled(function, **options):
            return original(function, **options | {"backend": backend})

        monkeypatch.setattr(torch, "compile", compiled)

    fused_ops._compiled.cache_clear()
    torch.compiler.reset()
    yield choose
    fused_ops._compiled.cache_clear()
    torch.compiler.reset()


def fused_policy(lm: nn.Module, **options) -> Policy:
    policy = Policy(lm, **options)
    policy.fused = fuse(policy.causal_lm)
    return policy


def names(lm: nn.Module) -> set[str]:
    return {type(module).__name__ for module in lm.modules()}


def check_exact(family: str) -> None:
    twin, pairs = double_model(FAMILIES[family]), random_pairs(4)
    # The same weights below transformers' own norms, whose double counterparts the twin has.
    lm = AutoModelForCausalLM.from_config(twin.config, attn_implementation="sdpa").double().eval()
    lm.load_state_dict(twin.state_dict())
    expected = all_alone(twin, pairs)
    logps = fused_policy(lm)(pack(pairs))
    found = torch.cat([logps.chosen, logps.rejected])
    assert {f"Fused{family}RMSNorm", f"Fused{family}MLP"} <= names(lm)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    theirs = dict(zip(dict(twin.named_parameters()), gradients(expected, twin.parameters()), strict=True))
    ours = dict(zip(dict(lm.named_parameters()), gradients(found, lm.parameters()), strict=True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_models_give_log_probabilities_and_gradients_of_each_sequence_alone(family, compile_with):
    compile_with("eager")
    check_exact(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma3", "Qwen3"])
def test_so_do_compiled_kernels(family, compile_with):
    compile_with("inductor")
    check_exact(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma3", "Llama"])
def test_in_bfloat16_compiled_kernels_round_no_more_than_the_modules(family, compile_with):
    """Measured from the same weights in float64: fewer kernels round fewer times."""
    compile_with("inductor")
    lm = double_model(FAMILIES[family])
    rows = pack(random_pairs(16))
    narrow = AutoModelForCausalLM.from_config(lm.config, attn_implementation="sdpa").bfloat16().eval()
    narrow.load_state_dict(lm.state_dict())
    with torch.no_grad():
        lm.load_state_dict(narrow.state_dict())
        truth = Policy(lm)(rows).chosen
        plain = Policy(copy.deepcopy(narrow))(rows).chosen
        fused = fused_policy(narrow)(rows).chosen
    assert not torch.equal(fused, plain)
    assert (fused - truth).abs().mean() <= 1.1 * (plain - truth).abs().mean()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize(("bias", "cap"), [(False, None), (True, 0.7)], ids=["plain", "bias and cap"])
@pytest.mark.parametrize("limit", [50, 10**6], ids="{} logits".format)
def test_the_fused_head_is_autograd_on_the_whole_matrix(compile_with, trained, bias, cap, limit):
    compile_with("eager")
    torch.manual_seed(0)
    linear = nn.Linear(6, 29, bias=bias).double().requires_grad_(trained)
    hidden, targets = torch.randn(13, 6, dtype=torch.float64, requires_grad=True), torch.randint(29, (13,))
    logits = linear(hidden)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    found = Head(linear, cap, 29, limit, fused=True).logps(hidden, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    wanted = [hidden, *(linear.parameters() if trained else [])]
    for ours, theirs in zip(gradients(found, wanted), gradients(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_a_trial_compiles_few_graphs_and_the_next_one_none(compile_with):
    """In its order: held-out pairs, KL and answers before and during training with checkpointing. Beyond its limit a
    function would raise."""
    graphs: collections.Counter[str] = collections.Counter()

    def counting(graph, inputs):
        trace = next(node.stack_trace for node in graph.graph.nodes if node.stack_trace)
        graphs[trace.split(" in ")[1].split("\n")[0]] += 1
        return graph.forward

    def trial(start: int, *, train_head: bool) -> None:
        lm = AutoModelForCausalLM.from_config(FAMILIES["Gemma3"])
        policy = fused_policy(add_lora(lm, Lora(rank=2, alpha=4, train_head=train_head)), chunk_logits=14 * VOCABULARY)
        checkpoint_layers(policy.causal_lm)
        assert policy.shares_prompts
        for seed in range(start, start + 3):
            with torch.no_grad():
                policy.eval()(pack(random_pairs(3 + seed, seed=seed)), statistics=True)
                policy.hidden(pack(random_pairs(2, seed=seed)))
                policy.generate(input_ids=torch.randint(1, VOCABULARY, (2, 9)), max_new_tokens=3)
            for update in range(2):
                policy.train()(pack(random_pairs(4, seed=10 * seed + update))).chosen.sum().backward()

    compile_with(counting)
    trial(0, train_head=False)
    trial(0, train_head=True)
    used = dict(graphs)
    assert used.keys() == {"rms_norm", "gated", "rotary", "softmax_tile", "head_gradient"}
    assert max(used.values()) <= 8 <= GRAPHS // 4
    trial(5, train_head=False)
    assert dict(graphs) == used


def test_answers_are_not_compiled(compile_with):
    compile_with(lambda graph, inputs: pytest.fail("compiled"))
    policy = fused_policy(AutoModelForCausalLM.from_config(FAMILIES["Llama"]))
    policy.generate(input_ids=torch.randint(1, VOCABULARY, (2, 9)), max_new_tokens=3)


def test_other_families_and_other_activations_stay_as_they_are(compile_with):
    compile_with("eager")
    other = AutoModelForCausalLM.from_config(Phi3Config(**SIZES, pad_token_id=0))
    before = names(other)
    assert fuse(other)
    assert names(other) == before


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (
            lambda function, **options: pytest.fail("compiled"),
            f"needs torch 2.13 or newer, and this is {torch.__version__}",
        ),
        (lambda function, recompile_limit, **options: _without_a_compiler, "inductor raised: no C compiler"),
    ],
    ids=["older torch", "no compiler"],
)
def test_where_nothing_compiles_the_modules_stay_and_a_warning_says_why(compiler, reason, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(fused_ops, "DEVICES", ("cpu",))
    for function in (fused_ops._compiled, fused_ops._why_not_compiled):
        function.cache_clear()
    lm = AutoModelForCausalLM.from_config(FAMILIES["Llama"])
    before = names(lm)
    assert not fuse(lm)
    assert names(lm) == before
    assert reason in caplog.text
    for function in (fused_ops._compiled, fused_ops._why_not_compiled):
        function.cache_clear()


def _without_a_compiler(*inputs, **options):
    raise RuntimeError("inductor raised:\nno C compiler\n\nSet TORCHDYNAMO_VERBOSE=1")


@pytest.mark.slow
def test_kernels_for_an_h100_fit_and_do_not_spill(tmp_path):
    """One kernel a function and pass; for rotary one for queries, keys and sines each. Compiled by triton, run nowhere."""
    pytest.importorskip("triton", reason="pip install triton")
    root = Path(__file__).parents[2]
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    run = subprocess.run(
        [sys.executable, "-m", "tests.model.sm90"], cwd=root, env=os.environ | folders, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for name, kernels in json.loads(run.stdout.splitlines()[-1]).items():
        assert len(kernels) == {"rotary, forward": 3, "rotary, backward": 2}.get(name, 1), name
        for kernel in kernels:
            assert kernel["stack"] == 0, (name, kernel)
            assert kernel["shared"] <= 232_448, (name, kernel)
            assert kernel["registers"] <= 128, (name, kernel)
