"""How each number of a report was made, in words."""

from dataclasses import asdict

from slime_ray.runs.notes import data_notes
from slime_ray.runs.results import Run
from slime_ray.runs.stability_v1 import TOLERANCES

from . import effects, judging, statistics
from .findings import Findings
from .printing import one_line
from .rows import PARTS, version_of


def methods(found: Findings) -> list[str]:
    """A note for each estimator that the report uses, after what of the data was not trained on as it was given."""
    return [
        *map(one_line, data_notes(found.run.manifest.get("data") or {})),
        *_of_rows(found.run),
        *(_of_judging() if len(judging.judging(found.run, found.main).frame) else []),
        *(_of_ablations() if found.cells else []),
        *(_of_factorials() if found.factorial is not None and len(found.factorial.frame) else []),
        *(_of_searches() if found.search else []),
    ]


def _of_rows(run: Run) -> list[str]:
    limits = ", ".join(f"{PARTS[name]} {value:.2f}" for name, value in asdict(TOLERANCES).items())
    version = version_of(run)
    return [
        "Win rate: mean over prompts and seeds of an answer's outcome against the baseline's answer, itself the "
        "mean over both presentation orders of 1 win, 0.5 tie, 0 loss. Prompts without any valid verdict are left out; "
        "missing verdicts are counted in the note, with the win rate if all were losses and if all were wins.",
        f"Interval of a win rate: 95 % percentile bootstrap over prompts, {statistics.RESAMPLES:,} seeded resamples, "
        "both orders and all seeds of a prompt kept together.",
        "Separable: the 95 % interval of the paired difference on the same prompts leaves 0 out. With "
        f"{statistics.FEWEST_SEEDS} or more common seeds it is over seeds and prompts (two-way analysis of variance, "
        "random effects, Student's t, Satterthwaite's degrees of freedom); with fewer it is of these checkpoints, by "
        "bootstrap over prompts. Every row is compared with the best one; nothing is corrected for the number of "
        "comparisons.",
        f"Stability ({version}): S = g / (1 + sum of (x/h)²) with the tolerances h: {limits}; g is 0 for a trial that "
        "failed or diverged, else 1. Mean over all seeds. S is 0.5 when one part is at its tolerance. Its interval, "
        "where pairs were recorded: 95 % percentile bootstrap, S computed anew in every resample of held-out pairs, "
        "prompts and blocks of updates.",
        "K: full-vocabulary KL divergence from the SFT checkpoint per generated token, on the policy's own answers.",
        "σ: standard deviation (n − 1) of the win rate over seeds. Drift: mean log-probability per token of the "
        "held-out chosen completions, minus that of the SFT checkpoint.",
        "The sentinel estimates the parts of stability during training, on a few held-out pairs and prompts; its "
        "alarms are no part of any score.",
    ]


def _of_ablations() -> list[str]:
    return [
        "Effect of a cell: its outcomes minus those of the cell that it is compared with, paired by seed and prompt. "
        f"Tests: {'; '.join(effects.TESTS.values())}. Each is corrected by Holm over all comparisons of its table, in "
        f"one metric that was declared beforehand; a cell matters where all stay below {effects.LEVEL}, with "
        f"{statistics.FEWEST_SEEDS} seeds or more.",
        "Seeds that would settle a comparison: at which the t over seeds and the t over seeds and prompts would, with "
        "the variance components seen here, each find a true difference of the size observed in four of five tries.",
    ]


def _of_judging() -> list[str]:
    return [
        "W_AH: Arena-Hard's score, in which a strong verdict counts as three votes. LC: the length-controlled win "
        "rate, the value at equal lengths of a binomial GLM of the outcome on tanh(d/sd), d the answer's tokens more "
        "than the baseline's (Dubois et al. 2024, without terms for model and prompt). Their intervals: percentile "
        "bootstrap over prompts. Consistent: share of answers whose two valid verdicts name the same winner, or a tie.",
    ]


def _of_factorials() -> list[str]:
    return [
        "Main effect: mean of the cells with a component minus mean of those without. Interaction of two: half the "
        "change that one's presence makes to the effect of the other. Shapley value: exact, over all cells. All are "
        "linear in the cells, and their intervals those of the same sum for each seed and prompt.",
    ]


def _of_searches() -> list[str]:
    return [
        "The search is measured on the selection prompts, arms and confirmed winners on the report prompts.",
        "Front: finished search trials that no other finished one equals or beats in all goals and beats in one. Knee: "
        "the trial of the front farthest beyond the line through its two ends, each goal as a share of the front's "
        "range (Das 1999); how sure it is: resamples of the prompts.",
        "Importance: PED-ANOVA (Watanabe et al. 2023), the divergence between a knob's values among the best trials "
        "and among all; its intervals are percentiles over resampled trials.",
        "Hypervolume: what the trials so far dominate above the reference point. Expected best of k trials: unbiased, "
        "without replacement, over the trials at hand (Tang et al. 2020).",
    ]
