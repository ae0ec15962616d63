"""The commands, run small, and what they refuse."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slime_ray.benchmarks import exact, memory, memory_child, step
from slime_ray.benchmarks.command import add_bench_parser
from slime_ray.benchmarks.machine import describe_machine
from slime_ray.benchmarks.options import RECIPES, Options

from slime_ray.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--shrink", "40", "--pairs", "2", "--rounds", "2", "--device", "cpu"]


def bench(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_bench_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["bench", *arguments])
    options.command(options)


def test_step_prints_a_table_and_writes_every_timing(tmp_path, capsys):
    out = tmp_path / "step.json"
    bench("step", *TINY, "--vocab", "64,128", "--steps", "2", "--json", str(out))
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["benchmark"] == "step"
    assert found["schema"] == 1
    assert found["options"]["pairs"] == 2
    assert set(found) >= {"date", "machine", "device", "dtype", "threads", "shrink", "options", "vocabularies"}
    assert [at["vocabulary"] for at in found["vocabularies"]] == [64, 128]
    for at in found["vocabularies"]:
        assert [recipe["name"] for recipe in at["recipes"]] == list(RECIPES)
        assert at["pairs"] == 4
        for recipe in at["recipes"]:
            assert [len(taken) for taken in recipe["seconds"]] == [2, 2]
            assert recipe["share_of_peak"] is None
            assert recipe["failure"] is None
            totals = [sum(taken) for taken in recipe["seconds"]]
            assert recipe["seconds_per_step"] == pytest.approx(sum(totals) / 4)
            assert recipe["tokens_per_second"] == pytest.approx(at["real_tokens"] / (sum(totals) / 2))
        by_name = {recipe["name"]: recipe for recipe in at["recipes"]}
        assert by_name["authors"]["to_authors"] == [1, 1, 1]
        assert by_name["packed-frozen-head"]["to_padded"][0] > 0
        assert by_name["packed"]["padding"] == 0 < by_name["padded"]["padding"]
        assert by_name["packed"]["flops"] < by_name["padded"]["flops"] < by_name["authors"]["flops"]
    assert "not measured" in printed
    for recipe in RECIPES:
        assert f"\n{recipe} " in printed


def test_the_best_batch_is_searched_and_running_out_of_memory_is_said(tmp_path, capsys, monkeypatch):
    real = step.Stepper.run

    def run(self, tensors):
        if self.name == "authors" or (self.name == "padded" and len(tensors.micros) == 1):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, tensors)

    monkeypatch.setattr(step.Stepper, "run", run)
    out = tmp_path / "step.json"
    options = ["--vocab", "64", "--steps", "1", "--recipes", "authors,padded,packed", "--best-batch"]
    bench("step", *TINY, *options, "--json", str(out))
    authors, padded, packed = json.loads(out.read_text())["vocabularies"][0]["recipes"]
    assert authors["failure"] == "out of memory"
    assert authors["tokens_per_second"] is None
    assert authors["tried"] == {"1": None}
    assert padded["micro"] == 1
    assert padded["tried"]["2"] is None
    assert set(packed["tried"]) == {"1", "2"}
    assert packed["to_authors"] is None
    assert packed["to_padded"] is not None
    assert "out of memory" in capsys.readouterr().out


def test_memory_weighs_a_recipe_in_a_process_of_its_own(tmp_path, capsys):
    out = tmp_path / "memory.json"
    bench("memory", *TINY, "--vocab", "512", "--recipes", "packed", "--threads", "1", "--json", str(out))
    (recipe,) = json.loads(out.read_text())["vocabularies"][0]["recipes"]
    assert recipe["failure"] is None
    assert len(recipe["steps"]) == 2
    assert recipe["step_bytes"] == sum(recipe["steps"]) / 2 > 0
    assert "MiB" in capsys.readouterr().out


def test_memory_is_compared_step_by_step(monkeypatch):
    weighed = {"authors": (800, 900), "padded": (400, 300), "packed": (100, 100), "packed-frozen-head": (50, 60)}
    monkeypatch.setattr(memory, "_in_a_process", lambda name, *_: (weighed[name], None))
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=2, device="cpu", recipes=tuple(weighed))
    by_name = {recipe.name: recipe for recipe in memory.measure_memory(options, print).vocabularies[0].recipes}
    assert by_name["packed"].to_authors == (8.5, 8, 9)
    assert by_name["packed"].to_padded == (3.5, 3, 4)
    assert by_name["packed-frozen-head"].to_authors == (15.5, 15, 16)
    # There is no padded recipe with a frozen head to compare with.
    assert by_name["packed-frozen-head"].to_padded is None


def test_a_recipe_that_would_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=1, device="cpu", recipes=("authors",))
    (recipe,) = memory.measure_memory(options, lambda line: None).vocabularies[0].recipes
    assert recipe.failure is not None
    assert recipe.failure.startswith("needs about ")
    assert recipe.failure.endswith(", not run")


@pytest.mark.parametrize(("code", "failure"), [(-9, "killed, out of memory"), (3, "failed with exit code 3: boom")])
def test_the_end_of_a_recipes_process_does_not_end_the_benchmark(monkeypatch, code, failure):
    def ended(*arguments, **options):
        return subprocess.CompletedProcess(arguments, code, stdout="", stderr="boom\n")

    monkeypatch.setattr(memory.subprocess, "run", ended)
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=1, device="cpu", recipes=("packed",))
    (recipe,) = memory.measure_memory(options, lambda line: None).vocabularies[0].recipes
    assert recipe.failure == failure
    assert recipe.step_bytes is None


def test_step_memory_grows_with_the_step():
    def weigh(shrink: int) -> int:
        options = Options(shrink=shrink, pairs=2, rounds=1, device="cpu")
        return memory_child.weigh_steps("padded", options, 2048, step.find_device("cpu"))[0]

    assert weigh(4) > 2 * weigh(40)


def test_exact_passes_and_a_missed_bound_is_an_error(tmp_path, capsys, monkeypatch):
    out = tmp_path / "exact.json"
    bench("exact", "--pairs", "4", "--json", str(out))
    found = json.loads(out.read_text())
    assert {check["model"] for check in found["checks"]} == {"Llama", "Qwen3", "Gemma3"}
    assert all(check["measured"] <= check["bound"] for check in found["checks"])
    assert "FAIL" not in capsys.readouterr().out
    missed = exact.Check(model="Llama", what="gradients, packed and alone", measured=float("nan"), bound=1e-10)
    report = exact.ExactReport(
        date="", machine=describe_machine(torch.device("cpu")), pairs=4, seed=0, checks=(missed,)
    )
    with pytest.raises(RunError, match="not exact: gradients, packed and alone of Llama"):
        exact.refuse_misses(report)


def test_generate_answers_to_the_limit_in_every_round(tmp_path, capsys):
    out = tmp_path / "generate.json"
    bench("generate", "--prompts", "3", "--rounds", "2", "--json", str(out))
    found = json.loads(out.read_text())
    assert (found["benchmark"], found["threads"], found["rounds"]) == ("generate", 1, 2)
    assert found["limit"] == {"arithmetic": 64, "notes": 48}
    assert [(times["task"], times["batch"], times["tokens"]) for times in found["times"]] == [
        ("arithmetic", 256, 3 * 64), ("arithmetic", 1, 3 * 64), ("notes", 256, 3 * 48), ("notes", 1, 3 * 48)
    ]  # fmt: skip
    assert all(len(times["seconds"]) == 2 for times in found["times"])
    assert "\nnotes, one at a time " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generate", "--prompts", "0"], "--prompts 0: must be at least 1"),
        (["step", "--vocab", "7"], "--vocab 7: must be at least 8"),
        (["step", "--vocab", "4096,x"], "--vocab 4096,x: must be whole numbers"),
        (["step", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["step", "--micro", "0"], "--micro 0: must be at least 1"),
        (["step", "--micro", "9"], "--micro 9: a step has 8 pairs"),
        (["step", "--sort-over", "3"], "--sort-over 3: must be 1, or at least the 4 --steps"),
        (["step", "--shape", "huge"], "--shape huge: must be small or gemma3-4b"),
        (["step", "--dtype", "int8"], "--dtype int8: must be float32 or bfloat16"),
        (["step", "--device", "tpu"], "--device tpu: must be auto, cpu or cuda"),
        (["step", "--recipes", "ours"], "--recipes ours: must be among authors"),
        (["step", "--lengths", "nowhere"], "--lengths nowhere: neither a file nor one of"),
        (["step", "--max-tokens", "8", "--shrink", "8"], "leaves no room for a prompt and a completion"),
        (["step", "--json", "/nowhere/out.json"], "--json /nowhere/out.json: cannot be written"),
        (["memory", "--rounds", "-1"], "--rounds -1: must be at least 1"),
        (["exact", "--pairs", "2"], "--pairs 2: must be at least 4"),
    ],
)
def test_what_was_given_wrong_is_said(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        bench(*arguments)


def test_options_survive_the_way_to_another_process():
    options = Options(vocabularies=(64,), json=Path("out.json"), recipes=("packed",), micro=3)
    assert Options.from_json(json.loads(json.dumps(options.as_json()))) == options


def loaded(module: str, packages: list[str]) -> set[str]:
    """Which of the packages a fresh interpreter holds after importing the module."""
    script = f"import sys, {module}; print(' '.join(set({packages!r}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(run.stdout.split())


def test_the_command_loads_torch_only_when_it_runs():
    assert loaded("slime_ray.benchmarks.command", ["torch", "transformers", "peft", "numpy"]) == set()


def test_a_benchmark_needs_torch_transformers_and_peft_and_no_more():
    absent = ["ray", "pydantic", "datasets", "pandas", "rich", "optuna", "accelerate.state"]
    # accelerate comes with peft.
    assert loaded("slime_ray.benchmarks.step, slime_ray.benchmarks.exact", absent) <= {"accelerate.state"}


def test_search_cost_measures_each_sampler_as_its_search_grows(tmp_path, capsys):
    out = tmp_path / "cost.json"
    arguments = ("--samplers", "tpe,random", "--trials", "12", "--stretch", "6", "--rounds", "2", "--json", str(out))
    bench("search-cost", *arguments)
    found = json.loads(out.read_text())
    assert [(cost["sampler"], [at["upto"] for at in cost["stretches"]]) for cost in found["costs"]] == [
        ("tpe", [12]),
        ("random", [12]),
    ]
    for cost in found["costs"]:
        [at] = cost["stretches"]
        assert 0 < at["drawing"] + at["writing"] < at["wall"] <= at["longest"]
        assert cost["draws"] >= 1
    assert found["rule"] > 0
    said = capsys.readouterr().out
    assert "\ntpe " in said
    assert "Early stopping by two goals adds" in said
    with pytest.raises(InputError, match="--samplers grid: must be among tpe, nsga2"):
        bench("search-cost", "--samplers", "grid")


@pytest.mark.usefixtures("sketched")
def test_report_measures_the_report_of_a_run_that_it_makes_up(tmp_path, capsys):
    out = tmp_path / "report.json"
    bench("report", "--trials", "24", "--rounds", "1", "--json", str(out))
    found = json.loads(out.read_text())
    assert (found["benchmark"], found["trials"], len(found["seconds"])) == ("report", 24, 1)
    assert 900_000 < found["page"] < found["all_files"]
    # Here alone the figures are drawn, and Python starts.
    assert found["command"][0] > found["seconds"][0] > 0
    assert "24" in capsys.readouterr().out
    with pytest.raises(InputError, match="--trials 3: must be at least 24"):
        bench("report", "--trials", "3")
