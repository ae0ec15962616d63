"""Writes trl_losses.json: TRL's own losses and their gradients on random log-probs, float64.

Run in a throwaway environment, since TRL is no dependency of this project:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.13.0 trl==1.16.0
    /tmp/trl/bin/python tests/objectives/make_trl_golden.py

The trainers are made without their constructors and given only the attributes that their loss code reads; the
loss code (`DPOTrainer._compute_loss`, `CPOTrainer.get_batch_loss_metrics`, `ORPOTrainer.odds_ratio_loss`) is TRL's,
untouched, but for ORPO's cast to float32, which is a cast to float64 here. Models are
stand-ins that return prescribed log-probs, so gradients reach the token log-probs themselves.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
import trl
from accelerate import Accelerator
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

LENGTHS = {
    "one-pair": ([3], [2]),
    "batch": ([6, 4, 9, 7], [1, 4, 5, 3]),
    "long": ([40, 1, 23], [31, 37, 2]),
}


def padded(tokens: Tensor, lengths: list[int], width: int) -> Tensor:
    """(pairs, width), the tokens of each pair from the left, zeros after them."""
    rows = torch.split(tokens, lengths)
    return torch.stack([torch.cat([row, row.new_zeros(width - len(row))]) for row in rows])


def bare(trainer: type, **attributes: object) -> Any:
    """A trainer that was never constructed, with these attributes."""
    made: Any = object.__new__(trainer)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def dpo_loss(
    case: SimpleNamespace,
    *,
    loss_type: str,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    sft_weight: float = 0.0,
) -> Tensor:
    """TRL's DPO trainer; its model returns log-probs of shifted labels, 0 outside of the completion."""
    width = max(case.chosen_lengths + case.rejected_lengths)
    logps = torch.cat(
        [padded(case.chosen, case.chosen_lengths, width), padded(case.rejected, case.rejected_lengths, width)]
    )
    lengths = torch.tensor(case.chosen_lengths + case.rejected_lengths)
    # Column 0 is the one prompt token.
    mask = torch.cat([torch.zeros(len(lengths), 1), torch.arange(width) < lengths[:, None]], dim=1).long()
    flat = torch.zeros_like(logps.detach())
    outputs = SimpleNamespace(log_probs=logps, entropy=flat, mean_logits=flat, is_top1=flat.bool())
    trainer = bare(
        DPOTrainer,
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type, "sft"] if sft_weight else [loss_type],
        loss_weights=[1.0, sft_weight] if sft_weight else [1.0],
        args=SimpleNamespace(discopop_tau=discopop_tau),
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": case.reference_chosen,
        "ref_rejected_logps": case.reference_rejected,
    }
    return trainer._compute_loss(lambda **_: outputs, inputs, False)


def cpo_loss(
    case: SimpleNamespace,
    *,
    beta: float,
    cpo_alpha: float,
    simpo_gamma: float = 0.0,
    alpha: float = 0.0,
    loss_type: str = "simpo",
) -> Tensor:
    """TRL's CPO trainer; its model has a vocabulary of two tokens, and token 1 is every label.

    The logits are (log(1 - p), log p), whose log-softmax at token 1 is log p again with derivative 1.
    """
    width = max(case.chosen_lengths + case.rejected_lengths)
    logps = torch.cat(
        [padded(case.chosen, case.chosen_lengths, width), padded(case.rejected, case.rejected_lengths, width)]
    )
    mask = logps.detach() != 0
    labels = torch.where(mask, 1, -100)
    labels = torch.cat([torch.full((len(labels), 1), -100), labels], dim=1)
    safe = torch.where(mask, logps, torch.full_like(logps, -1.0))
    logits = torch.stack([torch.log(-torch.expm1(safe)), safe], dim=-1)
    logits = torch.cat([logits, torch.zeros(len(labels), 1, 2, dtype=logits.dtype)], dim=1)
    trainer = bare(
        CPOTrainer,
        accelerator=Accelerator(cpu=True),
        is_encoder_decoder=False,
        pad_token_id=0,
        aux_loss_enabled=False,
        loss_type=loss_type,
        alpha=alpha,
        label_smoothing=0.0,
        beta=beta,
        simpo_gamma=simpo_gamma,
        cpo_alpha=cpo_alpha,
        args=SimpleNamespace(max_length=width + 1),
    )
    pairs = len(case.chosen_lengths)
    batch = {}
    for side, side_labels in (("chosen", labels[:pairs]), ("rejected", labels[pairs:])):
        batch[f"{side}_labels"] = side_labels
        batch[f"{side}_input_ids"] = side_labels.clamp(min=0)
        batch[f"{side}_attention_mask"] = torch.ones_like(side_labels)
    model = lambda *_, **__: SimpleNamespace(logits=logits)  # noqa: E731
    return trainer.get_batch_loss_metrics(model, batch)[0]


def orpo_loss(case: SimpleNamespace, *, beta: float) -> Tensor:
    """TRL's ORPO trainer: its loss of mean log-probs, beside the likelihood of the chosen tokens alone."""
    means = [
        torch.stack([row.mean() for row in torch.split(getattr(case, side), getattr(case, f"{side}_lengths"))])
        for side in ("chosen", "rejected")
    ]
    trainer = bare(ORPOTrainer, accelerator=Accelerator(cpu=True), beta=beta)
    with mock.patch.object(Tensor, "float", Tensor.double):
        losses = trainer.odds_ratio_loss(*means)[0]
    return -case.chosen.mean() - losses.mean()


def runs() -> list[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    """Objective, its settings here, TRL's code path, and TRL's settings."""
    found: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [("sft", {}, "DPOTrainer sft", {})]
    found += [("dpo", {"beta": beta}, "DPOTrainer sigmoid", {"beta": beta}) for beta in (0.1, 0.5)]
    for beta, gamma, weight in ((2.0, 0.5, 0.0), (0.1, 2.0, 0.0), (2.0, 0.2, 1.0), (10.0, 3.0, 0.25)):
        here = {"beta": beta, "gamma": gamma, "nll_weight": weight}
        there = {"beta": beta, "simpo_gamma": gamma, "cpo_alpha": weight}
        found.append(("simpo", here, "CPOTrainer simpo", there))
    # TRL's sigmoid loss lost its label smoothing; `aot` has the formula, and one pair leaves it none to sort.
    smooth = {"beta": 0.3, "label_smoothing": 0.2}
    found.append(("dpo", smooth, "DPOTrainer aot", smooth))
    found.append(("dpo", {"beta": 0.2, "nll_weight": 0.7}, "DPOTrainer sigmoid", {"beta": 0.2, "sft_weight": 0.7}))
    found.append(("dpo", {"beta": 1.5, "normalization": "mean"}, "DPOTrainer sigmoid_norm", {"beta": 1.5}))
    for name, path in (("ipo", "ipo"), ("hinge", "hinge"), ("nca", "nca_pair"), ("sppo", "sppo_hard")):
        found += [(name, {"beta": beta}, f"DPOTrainer {path}", {"beta": beta}) for beta in (0.1, 0.6)]
    found += [
        ("apo", {"beta": 0.3, "variant": way}, f"DPOTrainer apo_{way}", {"beta": 0.3}) for way in ("zero", "down")
    ]
    for name, path in (("robust", "robust"), ("exo", "exo_pair")):
        found.append((name, smooth, f"DPOTrainer {path}", smooth))
    for beta, tau in ((0.05, 0.05), (0.4, 0.8)):
        here, there = {"beta": beta, "temperature": tau}, {"beta": beta, "discopop_tau": tau}
        found.append(("discopop", here, "DPOTrainer discopop", there))
    found.append(("cpo", {"beta": 0.1, "nll_weight": 1.0}, "CPOTrainer sigmoid", {"beta": 0.1, "cpo_alpha": 1.0}))
    for alpha in (0.25, -0.5):
        here = {"beta": 2.5, "gamma": 0.3, "alpha": alpha, "nll_weight": 0.0}
        there = {"beta": 2.5, "simpo_gamma": 0.3, "alpha": alpha, "cpo_alpha": 0.0}
        found.append(("alphapo", here, "CPOTrainer simpo", there))
    found.append(("orpo", {"beta": 0.4}, "ORPOTrainer odds_ratio", {"beta": 0.4}))
    return found


def make_case(run: tuple[str, dict[str, Any], str, dict[str, Any]], sizes: str, seed: int) -> dict[str, Any]:
    """One golden case: random log-probs, TRL's loss of them, its gradients."""
    objective, settings, path, trl_settings = run
    generator = torch.Generator().manual_seed(seed)
    chosen_lengths, rejected_lengths = LENGTHS[sizes]

    def draw(count: int) -> Tensor:
        tokens = -torch.empty(count, dtype=torch.float64).exponential_(0.6, generator=generator)
        return tokens.clamp(max=-1e-3).requires_grad_()

    def noise(sums: Tensor) -> Tensor:
        return sums + 3 * torch.randn(sums.shape, dtype=torch.float64, generator=generator)

    case = SimpleNamespace(
        chosen=draw(sum(chosen_lengths)),
        rejected=draw(sum(rejected_lengths)),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    with torch.no_grad():
        case.reference_chosen = noise(padded(case.chosen, chosen_lengths, 40).sum(1))
        case.reference_rejected = noise(padded(case.rejected, rejected_lengths, 40).sum(1))
    trainer, loss_type = path.split()
    if trainer == "CPOTrainer":
        loss = cpo_loss(case, loss_type=loss_type, **trl_settings)
    elif trainer == "ORPOTrainer":
        loss = orpo_loss(case, **trl_settings)
    else:
        loss = dpo_loss(case, loss_type=loss_type, **trl_settings)
    grads = torch.autograd.grad(loss, [case.chosen, case.rejected], allow_unused=True)
    # The SFT loss does not depend on the rejected tokens.
    grad_chosen, grad_rejected = (
        torch.zeros_like(tokens) if grad is None else grad
        for grad, tokens in zip(grads, [case.chosen, case.rejected], strict=True)
    )
    return {
        "name": "-".join(
            [
                objective,
                sizes,
                *(f"{value:g}" if isinstance(value, float) else str(value) for value in settings.values()),
            ]
        ),
        "objective": objective,
        "settings": settings,
        "trl": {"code": path, **trl_settings},
        "chosen_lengths": chosen_lengths,
        "rejected_lengths": rejected_lengths,
        "chosen_logps": case.chosen.tolist(),
        "rejected_logps": case.rejected.tolist(),
        "reference_chosen": case.reference_chosen.tolist(),
        "reference_rejected": case.reference_rejected.tolist(),
        "loss": loss.item(),
        "grad_chosen_logps": grad_chosen.tolist(),
        "grad_rejected_logps": grad_rejected.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("trl_losses.json"))
    out = parser.parse_args().out
    # EXO's code makes a tensor of its smoothing, of the default dtype.
    torch.set_default_dtype(torch.float64)
    cases: list[dict[str, Any]] = []
    for run in runs():
        for sizes in ["one-pair"] if run[2] == "DPOTrainer aot" else LENGTHS:
            cases.append(make_case(run, sizes, seed=len(cases)))
    golden = {
        "source": "TRL's loss code called on random log-probs in float64 by make_trl_golden.py; "
        "logps in nats, flat in pair order; reference_* are sums per pair",
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    head = json.dumps(golden, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(case) for case in cases)
    out.write_text(f'{head},\n "cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} cases in {out}")


if __name__ == "__main__":
    main()
