"""The commands, run small, and what they refuse."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from slime_ray import cli
from slime_ray.bench import machine, memory, step
from slime_ray.bench.machine import ProcessResult
from slime_ray.bench.options import RECIPES, Options
from slime_ray.errors import InputError

TRANSFORMERS = tuple(map(int, version("transformers").split(".")[:2]))
ROOT = Path(__file__).resolve().parents[2]
TINY = ["--shrink", "40", "--pairs", "2", "--rounds", "2", "--device", "cpu"]


def bench(*arguments: str) -> None:
    options = cli.make_parser().parse_args(["bench", *arguments])
    options.command(options)


def test_step_prints_a_table_and_every_timing(capsys):
    bench("step", *TINY, "--vocab", "64,128", "--steps", "2", "--json")
    out, printed = capsys.readouterr()
    found = json.loads(out)
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


def test_the_best_batch_is_searched_and_running_out_of_memory_is_said(capsys, monkeypatch):
    real = step.Stepper.run

    def run(self, tensors):
        if self.name == "authors" or (self.name == "padded" and len(tensors.micros) == 1):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, tensors)

    monkeypatch.setattr(step.Stepper, "run", run)
    options = ["--vocab", "64", "--steps", "1", "--recipes", "authors,padded,packed", "--best-batch"]
    bench("step", *TINY, *options, "--json")
    out, printed = capsys.readouterr()
    authors, padded, packed = json.loads(out)["vocabularies"][0]["recipes"]
    assert authors["failure"] == "out of memory"
    assert authors["tokens_per_second"] is None
    assert authors["tried"] == {"1": None}
    assert padded["micro"] == 1
    assert padded["tried"]["2"] is None
    assert set(packed["tried"]) == {"1", "2"}
    assert packed["to_authors"] is None
    assert packed["to_padded"] is not None
    assert "out of memory" in printed


def test_memory_weighs_a_recipe_in_a_process_of_its_own(capsys):
    bench("memory", *TINY, "--vocab", "512", "--recipes", "packed", "--threads", "1", "--json")
    out, printed = capsys.readouterr()
    (recipe,) = json.loads(out)["vocabularies"][0]["recipes"]
    assert recipe["failure"] is None
    assert len(recipe["steps"]) == 2
    assert recipe["step_bytes"] == sum(recipe["steps"]) / 2 > 0
    assert "MiB" in printed


def test_memory_is_compared_step_by_step(monkeypatch):
    weighed = {"authors": (800, 900), "padded": (400, 300), "packed": (100, 100), "packed-frozen-head": (50, 60)}
    monkeypatch.setattr(memory, "_weigh", lambda name, *_: ProcessResult(weighed[name], None))
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=2, device="cpu", recipes=tuple(weighed))
    by_name = {recipe.name: recipe for recipe in memory.measure_memory(options, print).vocabularies[0].recipes}
    assert by_name["packed"].to_authors == (8.5, 8, 9)
    assert by_name["packed"].to_padded == (3.5, 3, 4)
    assert by_name["packed-frozen-head"].to_authors == (15.5, 15, 16)
    # There is no padded recipe with a frozen head to compare with.
    assert by_name["packed-frozen-head"].to_padded is None


@pytest.mark.parametrize(("code", "failure"), [(-9, "killed, out of memory"), (3, "failed with exit code 3: boom")])
def test_the_end_of_a_recipes_process_does_not_end_the_benchmark(monkeypatch, code, failure):
    def ended(*arguments, **options):
        return subprocess.CompletedProcess(arguments, code, stdout="", stderr="boom\n")

    monkeypatch.setattr(machine.subprocess, "run", ended)
    options = Options(vocabularies=(64,), shrink=40, pairs=2, rounds=1, device="cpu", recipes=("packed",))
    (recipe,) = memory.measure_memory(options, lambda line: None).vocabularies[0].recipes
    assert recipe.failure == failure
    assert recipe.step_bytes is None


def test_step_memory_grows_with_the_step():
    def weigh(shrink: int) -> int:
        options = Options(shrink=shrink, pairs=2, rounds=1, device="cpu")
        return memory.weigh_steps("padded", asdict(options), 2048, "cpu")[0]

    assert weigh(4) > 2 * weigh(40)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["step", "--vocab", "7"], "--vocab 7: must be at least 8"),
        (["step", "--vocab", "4096,x"], "--vocab 4096,x: must be whole numbers"),
        (["step", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["step", "--micro", "0"], "--micro 0: must be at least 1"),
        (["step", "--micro", "9"], "--micro 9: a step has 8 pairs"),
        (["step", "--sort-over", "3"], "--sort-over 3: must be 1, or at least the 4 --steps"),
        (["step", "--recipes", "ours"], "--recipes ours: must be among authors"),
        (["step", "--lengths", "nowhere"], "--lengths nowhere: neither a file nor one of"),
        (["step", "--max-tokens", "8", "--shrink", "8"], "leaves no room for a prompt and a completion"),
        (["memory", "--rounds", "-1"], "--rounds -1: must be at least 1"),
    ],
)
def test_what_was_given_wrong_is_said(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        bench(*arguments)


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="older transformers imports rich and pandas itself")
def test_a_benchmark_needs_torch_transformers_and_peft_and_no_more():
    absent = ["ray", "pydantic", "datasets", "pandas", "rich", "optuna", "accelerate.state"]
    script = f"""import sys, slime_ray.cli.bench
assert not set(["torch", "transformers", "peft", "numpy"]) & set(sys.modules)
import slime_ray.bench.step, slime_ray.bench.memory
print(' '.join(set({absent!r}) & set(sys.modules)))"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # accelerate comes with peft.
    assert set(run.stdout.split()) <= {"accelerate.state"}
