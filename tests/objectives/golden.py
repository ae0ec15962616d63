"""The authors' released loss in float64 (slime_loss.json), and batches written as lists."""

import json
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = json.loads(Path(__file__).with_name("slime_loss.json").read_text())["cases"]
KNOBS = {
    "lambda_chosen": "anchor_weight",
    "lambda_rejected": "stabilizer_strength",
    "lambda_dist": "margin_weight",
    "delta": "stabilizer_threshold",
    "hard_margin": "hard_margin",
    "soft_margin": "soft_margin",
    "kappa": "gate_sharpness",
    "p": "stabilizer_exponent",
}


def leaves(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """(tokens,) leaves of all rows, end to end, and (pairs,) lengths."""
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.float64, requires_grad=True)
    return flat, torch.tensor([len(row) for row in rows])
