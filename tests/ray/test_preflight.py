"""What is found wrong before a sweep starts, from what nodes say of themselves; and which nodes there are."""

import dataclasses
import json
import platform
import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from slime_ray.cli import main
from slime_ray.config import trackers as tracker_settings
from slime_ray.config.experiment import Experiment, Resources
from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.tasks import load_task
from slime_ray.errors import InputError
from slime_ray.model.tiny import tiny_tokenizer
from slime_ray.on_ray import preflight
from slime_ray.on_ray.cluster_state import (
    GROUP,
    NodeReport,
    NodeRequest,
    add_scalable_nodes,
    inspect_node,
    package_versions,
)
from slime_ray.on_ray.preflight import Finding
from slime_ray.on_ray.resources import Node, concurrent_trials, why_never
from slime_ray.planning.plan import Cluster, size_text
from slime_ray.runs.store import RunStore
from tests.model.tiny_files import change_json, copy, cut, point, save_llama

TOKEN = "token"
FINE = NodeReport(
    node="id-1", name="one", python=platform.python_version(), versions=package_versions(), write_error=None,
    can_read=True, disk=1 << 40
)  # fmt: skip


def report(**changes: Any) -> NodeReport:
    return dataclasses.replace(FINE, **changes)


def errors(findings: Iterable[Finding]) -> list[str]:
    return [finding.sentence for finding in findings if finding.level == "error"]


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A shared folder in which node `id-1` has written its probe."""
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "id-1").write_text(TOKEN)
    return folder


def storage(reports: list[NodeReport], probe: Path, url: str | None = None) -> list[Finding]:
    return list(preflight._storage(reports, probe, TOKEN, RunStore(probe.parent, url)))


def test_a_shared_folder_is_fine(probe):
    [found] = storage([FINE], probe)
    assert found.level == "fine"
    assert "probed from 1 nodes" in found.sentence


@pytest.mark.parametrize(
    ("other", "words"),
    [
        # The other node has a folder of the same path, in which the driver's probe is not.
        ({"can_read": False}, "Node two does not see .* as this process does .another disk.*has to be shared"),
        (
            {"can_read": False, "write_error": "No such file or directory"},
            "as this process does .No such file or directory",
        ),
        ({"can_read": True, "write_error": "Read-only file system"}, "as this process does .Read-only file system"),
        # It reads what the driver wrote, and what it writes stays where it is.
        ({}, "What node two writes to .* does not arrive here"),
    ],
)
def test_a_local_path_on_several_nodes_is_refused(probe, other, words):
    [found] = errors(storage([FINE, report(node="id-2", name="two", **other)], probe))
    assert re.search(words, found)


def test_what_another_run_left_of_a_probe_is_not_taken_for_ones_own(probe):
    (probe / "id-1").write_text("another token")
    assert len(errors(storage([FINE], probe))) == 1


def test_a_node_that_cannot_use_the_object_store_is_named(probe):
    reports = [
        FINE,
        report(node="id-2", name="two", write_error="--storage s3://bucket: it cannot be used: ACCESS_DENIED."),
    ]
    assert errors(storage(reports, probe, "s3://bucket")) == [
        "Node two: --storage s3://bucket: it cannot be used: ACCESS_DENIED."
    ]


def test_other_versions_on_a_node_are_told_with_what_is_here():
    theirs = {**FINE.versions, "torch": "1.0"}
    del theirs["ray"]
    [found] = errors(preflight._versions([FINE, report(name="two", python="3.9.0", versions=theirs)]))
    assert found.startswith("Node two has ")
    for part in ("python 3.9.0 instead of", f"torch 1.0 instead of {FINE.versions['torch']}", "ray missing instead of"):
        assert part in found
    assert errors(preflight._versions([FINE])) == []


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "looked.yaml"
    path.write_text("name: looked\npreset: arithmetic\narms: {slime: {}}\n")
    return load_experiment(path)


@pytest.mark.parametrize(("wanted", "refused"), [(3 << 30, 1), (2 << 30, 0)])
def test_the_node_with_the_least_disk_has_to_hold_the_run(tmp_path, wanted, refused):
    reports = [report(disk=9 << 30), report(name="two", disk=2 << 30)]
    found = errors(preflight._disk(reports, wanted, RunStore(tmp_path)))
    assert len(found) == refused
    for sentence in found:
        assert sentence.startswith(f"Node two has 2.0 GiB free at {tmp_path}, and the run may take 3.0 GiB.")


def test_a_gpu_that_torch_does_not_see_or_that_lacks_bfloat16_is_refused(experiment):
    settings = experiment.settings.model_copy(
        update={"model": experiment.settings.model.model_copy(update={"dtype": "bfloat16"})}
    )
    old = {"gpus": 1, "gpu": "Old GPU", "driver": "1.0"}
    reports = [report(gpus=None), report(name="two", gpus=0), report(name="three", bf16=False, **old)]
    blind, weak = errors(preflight._gpus(reports, settings))
    assert blind.startswith("Node two offers GPUs to Ray, but torch sees none there")
    assert weak == "The Old GPU of node three does not compute in bfloat16. Set model.dtype: float32."
    [fine] = preflight._gpus([report(bf16=True, **old)], settings)
    assert fine.sentence == "Node one: 1 x Old GPU, driver 1.0."
    assert errors(preflight._gpus([report(bf16=False, **old)], experiment.settings)) == []


@pytest.mark.parametrize(("source", "bf16", "told"), [("a/b", True, 1), ("a/b", False, 0), ("embedded/notes", True, 0)])
def test_float32_on_a_gpu_that_knows_bfloat16_is_said_to_cost(experiment, source, bf16, told):
    model = experiment.settings.model.model_copy(update={"source": source})
    settings = experiment.settings.model_copy(update={"model": model})
    found = list(preflight._gpus([report(gpus=1, gpu="GPU", driver="1.0", bf16=bf16)], settings))
    warned = [finding.sentence for finding in found if finding.level == "warning"]
    assert len(warned) == told
    assert all(sentence.startswith("On the GPU of node one, model.dtype float32 takes twice") for sentence in warned)


def living(name: str, group: str | None = None, **resources: float) -> dict[str, Any]:
    """A node as `ray.nodes` gives it."""
    return {"NodeManagerHostname": name, "Resources": resources, "Labels": {GROUP: group} if group else {}}


def growing(name: str, most: int, **resources: float) -> Any:
    return SimpleNamespace(name=name, max_count=most, resources=resources)


def test_nodes_of_a_group_that_are_there_already_are_not_to_come_again():
    head, spot = living("head", CPU=0), [living(f"spot-{n}", "spot", CPU=8, GPU=1) for n in range(2)]
    nodes = add_scalable_nodes([head, *spot], [growing("head", 0, CPU=0), growing("spot", 4, CPU=8, GPU=1)])
    assert nodes == [Node("head", 0), Node("spot-0", 8, 1), Node("spot-1", 8, 1), Node("spot", 8, 1, count=2)]
    apart = Resources(workers=6, gpu_per_worker=1.0, placement="STRICT_SPREAD")
    assert "only 4 nodes" in str(why_never(apart, nodes))
    assert concurrent_trials(Resources(workers=2, gpu_per_worker=1.0), nodes) == 2


def test_a_group_that_is_full_brings_no_more_and_one_without_limit_many():
    spot = [living("spot-0", "spot", CPU=8)]
    assert add_scalable_nodes(spot, [growing("spot", 1, CPU=8)]) == [Node("spot-0", 8)]
    assert why_never(Resources(workers=500), add_scalable_nodes(spot, [growing("spot", -1, CPU=8)])) is None


def test_a_node_without_a_trackers_package_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_settings, "find_spec", lambda name: None)
    seen = inspect_node("id-1", NodeRequest(RunStore(tmp_path), tmp_path, TOKEN, trackers=("wandb",)))
    assert errors(preflight._lacks([FINE, dataclasses.replace(seen, name="two")])) == [
        "Node two: trackers: wandb needs the package wandb, which is not installed. Install slime-ray[wandb], or leave "
        "wandb out of `trackers`."
    ]


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_script_is_told_everything_that_was_found(level, monkeypatch, tmp_path, capsys):
    found = [Finding("fine", "disk", "much is free."), Finding(level, "storage", "it is slow.")]
    monkeypatch.setattr(preflight, "connected", nullcontext)
    monkeypatch.setattr(preflight, "examine", lambda experiment, storage, wanted: found)
    with pytest.raises(InputError, match="it is slow") if level == "error" else nullcontext():
        preflight.doctor(None, storage=RunStore(tmp_path), console=Console(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "fine": level == "warning",
        "findings": [
            {"level": "fine", "about": "disk", "sentence": "much is free."},
            {"level": level, "about": "storage", "sentence": "it is slow."},
        ],
    }


def doctor(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print what it finds, but for what Ray is asked, with the disk that it takes the run to want."""
    monkeypatch.setattr(preflight, "connected", nullcontext)
    monkeypatch.setattr(
        preflight, "examine", lambda experiment, storage, wanted: [Finding("fine", "disk", f"wanted: {wanted}")]
    )
    preflight.doctor(experiment, storage=RunStore(tmp_path), console=Console(), as_json=True)


def test_doctor_counts_memory_and_disk_as_plan_does(experiment, tmp_path, monkeypatch, capsys):
    doctor(experiment, tmp_path, monkeypatch)
    found = {finding["about"]: finding["sentence"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert main(["plan", str(tmp_path / "looked.yaml"), "--storage", str(tmp_path)]) == 0
    planned = capsys.readouterr().out
    assert f"\nmemory    {found['memory'].removesuffix('.')}\n" in planned
    assert f"at most {size_text(float(found['disk'].removeprefix('wanted: ')))}" in planned


def test_a_worker_that_needs_more_memory_than_there_is_stands_in_the_way(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "present_cluster", lambda *_, **__: Cluster(trials=1, where="here", memory=1.0))
    with pytest.raises(InputError, match=r"A worker needs about .* MiB, more than the 0\.0 KiB that a process has"):
        doctor(experiment, tmp_path, monkeypatch)


def test_a_size_that_is_not_known_is_said_with_the_reason(tmp_path, monkeypatch, capsys):
    path = tmp_path / "far.yaml"
    path.write_text(
        "name: far\nbase:\n  model: {source: some/model}\n  data: {train: some/pairs}\n  objective: {name: slime}\n"
        "  training: {learning_rate: 1e-4, updates: 1, pairs_per_update: 2}\n  sft: {learning_rate: 1e-4}\n"
        "  evaluation: {judge: none}\narms: {slime: {}}\ngoals: {stability: maximize}\n"
    )
    doctor(load_experiment(path), tmp_path, monkeypatch)
    *_, unknown = json.loads(capsys.readouterr().out)["findings"]
    assert unknown["level"] == "warning"
    assert unknown["sentence"].startswith("What memory and disk it takes is not known here: model.source some/model")


def see(tmp_path: Path, **settings: Any) -> list[Finding]:
    """What this node and this process find of an experiment's model."""
    lines = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in settings.items())
    path = tmp_path / "looked.yaml"
    path.write_text(
        f"name: looked\nbase:\n{lines}  data: {{train: {path}}}\n  objective: {{name: slime}}\n"
        "  training: {learning_rate: 1e-4, updates: 1, pairs_per_update: 2}\n  evaluation: {judge: none}\n"
        "arms: {slime: {}}\ngoals: {stability: maximize}\n"
    )
    chosen = load_experiment(path).settings
    models = preflight.local_models(chosen)
    paths = preflight.local_paths(chosen)
    assert set(models) <= set(paths)
    node = inspect_node("id-1", NodeRequest(RunStore(tmp_path), tmp_path, TOKEN, paths, models))
    found = [*preflight._model_and_data(chosen, [node])]
    return found if errors(found) else [*found, *preflight._tokenizer(chosen)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_llama(tmp_path / "m")
    tiny_tokenizer(load_task("arithmetic")).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def adapter(model: Path) -> Path:
    """With what it was trained on under a name that is given from its folder."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(str(model.parent / "adapter"))
    change_json(model.parent / "adapter" / "adapter_config.json", base_model_name_or_path="m")
    return model.parent / "adapter"


def test_a_model_that_is_whole_is_fine_with_its_tokenizer(model, adapter, tmp_path):
    for source in (model, adapter):
        found = see(tmp_path, model={"source": str(source)})
        assert errors(found) == []
        assert found[-1].sentence == f"The tokenizer of {source} was read."


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: point(folder / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut short: it has "),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda folder: change_json(folder / "config.json", model_type="llama9"),
            "does not recognize this architecture",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be used"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    ],
)
def test_a_models_file_that_cannot_be_used_is_found_without_loading_it(model, adapter, tmp_path, damage, words):
    damage(model)
    for source in (model, adapter):
        [found] = errors(see(tmp_path, model={"source": str(source)}))
        assert words in found
        assert str(model) in found


def test_an_adapter_without_its_base_and_a_tokenizer_that_is_broken_are_found(model, adapter, tmp_path):
    (broken := copy(model, tmp_path / "other") / "tokenizer.json").write_text("[]")
    [found] = errors(see(tmp_path, model={"source": str(model), "tokenizer": str(tmp_path / "other")}))
    assert f"{broken} holds a list" in found
    change_json(adapter / "adapter_config.json", base_model_name_or_path="/nowhere/m")
    assert "its base /nowhere/m is not here" in errors(see(tmp_path, model={"source": str(adapter)}))[0]
