"""The tables of the paper (arXiv 2602.02383) as experiments, and where the paper and its code disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from slime_ray.config.experiment import Experiment, with_values
from slime_ray.config.experiment_file import from_top, load_experiment, parse_seeds
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError

FAMILIES = ("llama3.2-3b", "qwen3-4b", "gemma3-4b")
"""Presets of the models in the paper's Table 3. Tables 4 and 5 are of the last alone."""
SPACES = {3: "table3", 4: "table4", 5: "table5"}
Scale = Literal["paper", "demo"]
GPUS = 8
"""Of the paper's runs, each with 8 pairs a device and 2 accumulation steps."""
GPU = "h100"
PAIRS = 63_000
"""Of binarized UltraFeedback, as the paper has it."""
LENGTHS = (180.0, 250.0, 250.0)
"""Mean tokens of prompt, chosen and rejected that a plan assumes of it; the data itself decides."""


@dataclass(frozen=True)
class Discrepancy:
    """One thing of which paper and released code say two things, and what is run here."""

    what: str
    paper: str
    code: str
    here: str


DISCREPANCIES: Sequence[Discrepancy] = (
    Discrepancy("stabilizer strength (lambda_l)", "0.1", "0.0005", "0.1"),
    Discrepancy("anchor weight (lambda_w)", "0.1", "0.8 in the config, 0.1 in the script", "0.1"),
    Discrepancy("stabilizer threshold (delta)", "1.25", "0.5 in the config, 1.25 in the script", "1.25"),
    Discrepancy("loss", "once", "summed three times, which clipping at 1.0 does not hide", "once, unclipped"),
    Discrepancy("mean over rejected tokens", "an expectation", "of each micro-batch", "of the whole update"),
    Discrepancy("log pi(y|x)", "a sum in the body, a mean in appendix A", "the mean", "the mean"),
    Discrepancy("LoRA dropout", "0.0", "0.05", "0.0"),
    Discrepancy("LoRA scaling", '"alpha/r = 0.5"', "alpha 128, rank 64: alpha/r = 2", "alpha 128, rank 64"),
    Discrepancy("SimPO", "gamma 0.2", "gamma 2.0 and beta 0.1, by the script's defaults", "the preset simpo-paper"),
    Discrepancy("learning rate, epochs", "5e-7, 1", "1e-4, 3 by the script's defaults", "5e-7, 1"),
    Discrepancy("SFT split", "33 %", "34 %", "34 %"),
    Discrepancy("lengths", "not given", "prompts 1,024, total 2,048 tokens", "the code's"),
    Discrepancy("exponents", "1.5 to 3.0 in the text, 1.0 to 3.0 in the table", "2.5", "the table's"),
    Discrepancy("without the hard margin", "not spelt out", "-", "h = 1, and beside it without the clip alone"),
    Discrepancy("seeds", "one, as far as is said", "one", "five, if --seeds says nothing else"),
    Discrepancy("win rate", "Arena-Hard against Gemma3-4B-it's answers", "-", "against the SFT checkpoint's answers"),
    Discrepancy("cost of a model", '1.25 h on 8 H100s, and "30 GPU-hours"', "-", "see the plan"),
)
"""Of the paper's own scale; what is run here can be changed with --set."""


@dataclass(frozen=True)
class Reproduction:
    """One table, ready to run. source: the file that says all of it."""

    table: int
    model: str
    scale: Scale
    experiment: Experiment
    source: Path

    def text(self) -> str:
        """Say what is run, without its design, and where that has to choose between paper and code."""
        lines = [f"The paper's Table {self.table}, {self.model}."]
        if self.table != 3 and self.model != "gemma3-4b" and self.scale == "paper":
            lines.append("The paper has this table for gemma3-4b alone.")
        if self.scale == "demo":
            lines.append(
                "Scale demo: the same design on the embedded task, with its own data, schedule and learning rate. It "
                "shows mechanisms in miniature; it cannot confirm or refute the paper's numbers."
            )
            return "\n".join(lines)
        lines += ["", "Where paper and released code disagree, or say nothing:"]
        width = max(len(item.what) for item in DISCREPANCIES)
        lines += [
            f"  {item.what:<{width}}  paper: {item.paper}; code: {item.code}; here: {item.here}"
            for item in DISCREPANCIES
        ]
        return "\n".join(lines)


def reproduction(
    table: int,
    *,
    spaces: Mapping[str, Path],
    into: Path,
    model: str | None = None,
    scale: Scale = "paper",
    judge: str | None = None,
    questions: Path | None = None,
    seeds: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Reproduction:
    """Write the experiment of one of the paper's tables, on one of its models or in miniature.

    Args:
        table: Number of the table in the paper.
        spaces: Files of the shipped experiments, by name.
        into: File to write.
        model: Preset of a model family, for `scale` paper.
        scale: paper, or demo for the embedded task.
        judge: Model at an OpenAI-compatible endpoint, which judges with Arena-Hard's template.
        questions: File of Arena-Hard's or MT-Bench's questions, answered instead of held-out prompts.
        seeds: As `--seeds` takes them.
        overrides: Values by path, laid over all of this.
        name: Name of the run.

    Raises:
        InputError: The table or model is unknown, or a judge is missing.
    """
    if table not in SPACES:
        raise InputError(f"--table {table}: the tables that can be run are {', '.join(map(str, SPACES))}.")
    if scale == "demo" and model is not None:
        raise InputError(f"--model {model}: --scale demo has the embedded task's model. Leave one of them out.")
    overrides = {from_top(key): value for key, value in (overrides or {}).items()}
    values = _paper_scale(model, judge, overrides) if scale == "paper" else {}
    if questions is not None:
        values["base.evaluation.questions"] = str(questions)
    if seeds is not None:
        values["seeds"] = parse_seeds(seeds)
    data = with_values(load_yaml(spaces[SPACES[table]]).data, {**values, **overrides}) | {
        "name": name or f"table{table}-{model or scale}",
        "summary": f"The paper's Table {table}, {model or scale}",
    }
    # What is wrong with it is said before the file is there.
    load_experiment(data)
    into.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Reproduction(table, model or "on the embedded arithmetic task", scale, load_experiment(into), into)


def _paper_scale(model: str | None, judge: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    if model not in FAMILIES:
        raise InputError(f"--model {model}: give one of {', '.join(FAMILIES)}, or --scale demo.")
    values: dict[str, Any] = {
        "preset": f"{model}/paper",
        "resources": {"workers": GPUS, "gpu_per_worker": 1.0},
    }
    if judge is not None:
        values["base.evaluation.judge"] = {"name": "llm", "model": judge, "template": "arena-hard"}
    elif not any(key.startswith("base.evaluation.judge") for key in overrides):
        raise InputError(
            "The cells are compared by their win rates, which needs a judge. Give --judge MODEL, a model at an "
            "OpenAI-compatible endpoint, or any other with --set evaluation.judge.name=…"
        )
    return values
