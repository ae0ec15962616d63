"""README.md and docs/commands.md, word by word: commands are run in their order; those that take minutes are looked up."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import ray
import torch

from slime_ray import cli
from tests.end_to_end.conftest import SMALLEST

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
MINE = f"""\
name: mine
{SMALLEST}\
arms: {{slime: {{}}}}
search: {{objective.anchor_weight: {{log_uniform: [0.01, 2.0]}}}}
budget: {{trials: 1}}
resources: {{concurrent_trials: 1}}
"""
"""What stands for a reader's `mine.yaml`."""
NOT_RUN = {
    "slime-ray plan mine.yaml --probe": "a minute of measuring; tests/planning runs it",
    "slime-ray ablate leave_one_out --seeds 8": "112 trials; tests/end_to_end/test_ablate.py runs a small one",
    "slime-ray league league_arithmetic --name compared": "minutes; tests/ray/test_league.py runs a small one",
    "slime-ray reproduce --table 4 --scale demo": "minutes; tests/test_reproduction.py resolves it",
    "slime-ray launch mine.yaml --name first --storage /shared/runs": "a cluster; tests/ray/test_launch.py has one",
    "slime-ray bench step": "minutes; tests/bench runs it small",
    "slime-ray bench gpu --minutes 20": "minutes; tests/bench/test_gpu.py runs its parts small",
}
"""Lines that are only read by the parser, each with where it is tried."""


def blocks(page: str, kind: str) -> list[str]:
    """Return a page's code blocks of one kind."""
    every = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [text for language, text in every if language == kind]


def lines(page: str, program: str) -> list[str]:
    """Return a program's command lines in the page's order, without their comments."""
    every = [re.split(r"\s+#", line)[0] for block in blocks(page, "") for line in block.splitlines()]
    return [line for line in every if line.startswith(f"{program} ")]


def test_what_is_not_run_is_a_line_of_the_page_and_of_the_command_line():
    assert set(NOT_RUN) <= set(lines(COMMANDS, "slime-ray"))
    for line in NOT_RUN:
        assert callable(cli.make_parser().parse_args(shlex.split(line)[1:]).command)


def test_the_two_commands_are_targets_that_do_what_is_said_of_them():
    assert lines(README, "make") == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^([\w-]+):.*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    assert recipes["demo"].split() == ["$(BIN)/slime-ray", "demo"]
    assert re.search(r"^test: lint types tests$", makefile, re.MULTILINE)
    assert recipes["tests"].strip() == '$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not faults"'


def test_the_objective_in_python_runs():
    [code] = blocks(README, "python")
    logps = {side: torch.tensor([-1.0, -2.0, -0.5], requires_grad=True) for side in ("chosen", "rejected")}
    lengths = torch.tensor([2, 1])
    names = {f"{side}_logps": tokens for side, tokens in logps.items()}
    exec(code, names | {"chosen_lengths": lengths, "rejected_lengths": lengths})
    assert all(tokens.grad is not None and tokens.grad.abs().sum() > 0 for tokens in logps.values())


@pytest.mark.ray
def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capfd):
    """In this process and on one Ray instance: what a process and an instance take would be paid for by each line."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE, encoding="utf-8")
    ran = []
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        for line in lines(COMMANDS, "slime-ray"):
            if line in NOT_RUN or "|" in line:
                continue
            words = shlex.split(line.replace("CHECKPOINT", "runs/first/trials/arm-slime-s0/checkpoint"))[1:]
            if words[0] == "compare":
                # A reader's second run.
                shutil.copytree("runs/first", "runs/second")
            code = cli.main(words)
            assert code == 0, f"{line}\n{capfd.readouterr()}"
            ran.append(words[0])
    finally:
        ray.shutdown()
    assert ran[:5] == ["spaces", "reference", "presets", "check", "doctor"]
    assert {"sweep", "status", "train", "evaluate", "report", "compare", "export"} <= set(ran)
    assert Path("runs/first/report/report.html").is_file()
    assert any(Path("arena").iterdir())
