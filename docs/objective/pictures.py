"""Draws the pictures of docs/objective.md from the objective itself: python docs/objective/pictures.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from slime_ray.objectives import SlimeObjective

FOLDER = Path(__file__).parent
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""


def push_on_a_token(objective: SlimeObjective, logps: torch.Tensor) -> torch.Tensor:
    """-dL/dl_t of the stabilizer for one rejected token of each log-prob, before the mean over tokens."""
    logps = logps.clone().requires_grad_()
    one = torch.ones(len(logps), dtype=torch.int64)
    objective(torch.zeros(len(logps), dtype=logps.dtype), one, logps, one).terms["stabilizer"].total.backward()
    assert logps.grad is not None
    return -logps.grad


def push_on_the_margin(objective: SlimeObjective, margins: torch.Tensor) -> torch.Tensor:
    """-dL/dD of the margin term for one pair of each margin, before the mean over pairs."""
    chosen = margins.clone().requires_grad_()
    one = torch.ones(len(margins), dtype=torch.int64)
    # The rejected completion stays where it is, so that the margin moves as the chosen one does.
    objective(chosen, one, torch.zeros_like(margins), one).terms["margin"].total.backward()
    return torch.zeros_like(margins) if chosen.grad is None else -chosen.grad


def main() -> None:
    """Write stabilizer.svg and margin.svg beside this file."""
    plt.rcParams.update({"svg.hashsalt": "slime_ray", "font.size": 9, "svg.fonttype": "none"})
    logps = torch.linspace(-8, 0, 400, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for exponent, colour in zip((1.0, 1.5, 2.0, 2.5, 3.0), COLOURS, strict=True):
        pushed = push_on_a_token(SlimeObjective(stabilizer_exponent=exponent), logps)
        axes.plot(logps, pushed, color=colour, label=f"p = {exponent}")
    axes.axvline(-1.25, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xlabel="log-probability of a rejected token, nats", ylabel="push upwards", yscale="log", ylim=(1e-4, 30))
    axes.legend(frameon=False)
    _save(figure, "stabilizer")

    margins = torch.linspace(-1.5, 3, 451, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    shown = {
        "full": (),
        "without soft margin": ("soft_margin",),
        "without hard margin": ("hard_margin",),
        "without the clip alone": ("hard_margin_clip",),
    }
    for (label, gone), colour in zip(shown.items(), COLOURS, strict=False):
        # The full one and that without the clip are the same up to the hard margin.
        style = {"linewidth": 3.0} if not gone else {"linestyle": "--"} if gone == ("hard_margin_clip",) else {}
        axes.plot(margins, push_on_the_margin(SlimeObjective(remove=gone), margins), color=colour, label=label, **style)
    for place in (1.0, 1.5):
        axes.axvline(place, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xlabel="margin D, nats per token", ylabel="push apart")
    axes.legend(frameon=False)
    _save(figure, "margin")


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
