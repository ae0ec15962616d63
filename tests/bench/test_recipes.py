"""All recipes compute one loss, and what they compute it from is what their names say."""

import pytest
import torch
from torch import nn

from slime_ray.bench.cases import Case, build_case
from slime_ray.bench.lengths import BenchPair
from slime_ray.bench.options import RECIPES, Shape
from slime_ray.bench.recipes import OBJECTIVE, lay_out_sequences, released_loss
from slime_ray.bench.stepper import Stepper
from tests.model.conftest import make_norms_double

VOCABULARY = 53
SHAPE = Shape(
    hidden=32, layers=3, heads=4, key_heads=2, head_size=8, intermediate=48, sliding_to_full=2, rank=4,
    vocabulary=VOCABULARY, shrink=1, dtype="float32", window=6,
)  # fmt: skip
CPU = torch.device("cpu")


def tiny_case() -> Case:
    case = build_case(SHAPE, vocabulary=VOCABULARY, shrink=1, dtype=torch.float32, device=CPU, seed=3)
    for name, parameter in case.lm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return case


class DoubleRotary(nn.Module):
    """Rotary angles in float64: in float32 they depend on where a row begins, and so on its padding."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, x, position_ids, layer_type):
        angles = position_ids[..., None].double() * getattr(self.rotary, f"{layer_type}_inv_freq").double()
        both = torch.cat((angles, angles), -1)
        return both.cos(), both.sin()


@pytest.fixture(scope="module")
def case() -> Case:
    case = tiny_case()
    case.lm.double()
    make_norms_double(case.lm)
    decoder = case.lm.get_base_model().get_decoder()
    decoder.rotary_emb = DoubleRotary(decoder.rotary_emb)
    return Case(case.lm, CPU, torch.float64)


def pairs(count: int = 5, seed: int = 0) -> list[BenchPair]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())

    return [BenchPair(draw(3, 12), draw(1, 14), draw(1, 14)) for _ in range(count)]


def loss_and_gradients(case: Case, recipe: str, *, micro: int = 5):
    stepper = Stepper(recipe, case)
    stepper.release()
    loss = float(stepper.gradients(stepper.collate(pairs(), micro)))
    found = {name: p.grad for name, p in case.lm.named_parameters() if p.grad is not None}
    stepper.release()
    return loss, found


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_recipes_compute_one_loss_and_gradient_but_for_the_authors_factor_of_three(case, recipe):
    expected, expected_gradients = loss_and_gradients(case, "packed")
    loss, gradients = loss_and_gradients(case, recipe)
    factor = 3 if recipe == "authors" else 1
    assert loss / factor == pytest.approx(expected, rel=0, abs=1e-10)
    trained = "lm_head.modules_to_save" in " ".join(gradients)
    assert trained == (not recipe.endswith("frozen-head"))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient / factor, expected_gradients[name], rtol=0, atol=1e-10)
    assert set(expected_gradients) - set(gradients) <= {name for name in expected_gradients if "lm_head" in name}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "authors"])
def test_a_step_in_several_forward_passes_has_the_same_loss(case, recipe):
    assert loss_and_gradients(case, recipe, micro=2)[0] == pytest.approx(
        loss_and_gradients(case, recipe)[0], rel=0, abs=1e-10
    )


def test_the_released_loss_by_hand():
    """One pair: chosen -1 and -3, rejected -2, in rows of three positions with a prompt and padding.

    lw = -2, ll = -2, D = 0; h = 1.5, s = sigmoid(2.5) = 0.924142; L_dist = 1.386213; L_w = 0.2;
    softplus(2 - 1.25) = 1.136871, to the power of 2.5 = 1.378094, L_l = 0.137809.
    """
    logps = torch.tensor([[0, -1.0, -3.0], [0, -2.0, 0]], dtype=torch.float64)
    completion = torch.tensor([[0, 1, 1], [0, 1, 0]])
    assert float(released_loss(logps, completion, OBJECTIVE)) == pytest.approx(1.386213 + 0.2 + 0.137809, abs=1e-5)


def test_prompts_are_padded_left_and_completions_right_in_the_authors_rows():
    both = [BenchPair((1, 2), (3,), (4, 5)), BenchPair((6,), (7, 8, 9), (1,))]
    rows = lay_out_sequences(both, CPU, prompts_end_together=True)
    assert rows.input_ids.tolist() == [[1, 2, 3, 0, 0], [0, 6, 7, 8, 9], [1, 2, 4, 5, 0], [0, 6, 1, 0, 0]]
    assert rows.completion.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]
    right = lay_out_sequences(both, CPU, prompts_end_together=False)
    assert right.input_ids.tolist() == [[1, 2, 3, 0], [6, 7, 8, 9], [1, 2, 4, 5], [6, 1, 0, 0]]
    assert right.attention_mask.sum().item() == 3 + 4 + 4 + 2
    assert right.targets.tolist() == [3, 7, 8, 9, 4, 5, 1]
    assert right.input_ids.flatten()[right.predict_at].tolist() == [2, 6, 7, 8, 2, 4, 6]
    assert right.chosen_tokens == 4


def test_the_authors_second_forward_pass_runs_without_adapters(case):
    stepper = Stepper("authors", case)
    lm, seen = stepper.recipe.lm, []
    lm.get_base_model().get_decoder().register_forward_pre_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), lm.get_base_model().lm_head.disable_adapters))
    )
    stepper.gradients(stepper.collate(pairs(), 5))
    stepper.release()
    assert seen == [(True, False), (False, True)]
    assert all(p.requires_grad for name, p in lm.named_parameters() if "lora_" in name)


def test_twins_share_weights_and_not_modules(case):
    one, other = case.twin(), case.twin()
    assert all(a is b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not set(map(id, one.modules())) & set(map(id, other.modules()))
    assert one.get_base_model().config is not other.get_base_model().config


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_trains_what_it_says_and_leaves_no_gradients(recipe):
    case = tiny_case()
    before = {name: parameter.detach().clone() for name, parameter in case.lm.named_parameters()}
    stepper = Stepper(recipe, case)
    stepper.run(stepper.collate(pairs(), 5))
    changed = {name for name, p in case.lm.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name or "modules_to_save" in name for name in changed)
    assert any("modules_to_save" in name for name in changed) == stepper.trains_head
    assert any("lora_B" in name for name in changed)
    assert all(parameter.grad is None for parameter in case.lm.parameters())


def test_a_step_in_bfloat16_is_about_the_same():
    shape_loss = []
    for dtype in (torch.float32, torch.bfloat16):
        case = build_case(SHAPE, vocabulary=VOCABULARY, shrink=1, dtype=dtype, device=CPU, seed=3)
        stepper = Stepper("packed", case)
        shape_loss.append(float(stepper.run(stepper.collate(pairs(), 5))))
    assert shape_loss[1] == pytest.approx(shape_loss[0], rel=0.02)
