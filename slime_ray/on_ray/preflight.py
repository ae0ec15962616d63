"""What is looked at before a sweep starts, and by `slime-ray doctor`: every node, the storage, the request.

Each node looks for itself, in a small task that imports nothing heavy unless GPUs are asked for.
"""

import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from slime_ray.config.experiment import Experiment
from slime_ray.config.judge import RewardModel
from slime_ray.config.model import lacking_bitsandbytes
from slime_ray.config.settings import EMBEDDED, Settings
from slime_ray.errors import InputError
from slime_ray.model.files import FILE_REMEDY, FileFault
from slime_ray.model.parts import fault_of, parts_of
from slime_ray.on_ray.cluster_state import (
    NodeReport,
    NodeRequest,
    alive_nodes,
    inspect_node,
    package_versions,
    present_cluster,
)
from slime_ray.on_ray.connection import connected, last_line
from slime_ray.on_ray.resources import concurrent_trials, why_never
from slime_ray.planning.plan import Plan, size_text
from slime_ray.runs.inputs import all_settings
from slime_ray.runs.store import RunStore

NODE_SECONDS = 120.0
Level = Literal["fine", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. sentence: what was found and, if it is not fine, the way out."""

    level: Level
    about: str
    sentence: str


def examine(experiment: Experiment | None, *, storage: RunStore, wanted: float | None = None) -> list[Finding]:
    """Examine the connected cluster, the storage, and what the experiment asks for. wanted: bytes of a run's disk."""
    findings = list(_fit(experiment)) if experiment else []
    token, probe = uuid.uuid4().hex, storage.root / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        try:
            probe.mkdir(parents=True)
            (probe / "driver").write_text(token)
        except OSError as error:
            reason = error.strerror or str(error)
            findings.append(
                Finding("error", "storage", f"{storage.root} cannot be written: {reason}. Give another --storage.")
            )
            return findings
        request = NodeRequest(storage, probe, token)
        if experiment:
            settings = experiment.settings
            request = NodeRequest(
                storage, probe, token, local_paths(settings), local_models(settings), settings.evaluation,
                tuple(experiment.trackers),
            )  # fmt: skip
        gpus = bool(experiment and experiment.resources.gpu_per_worker)
        reports, silent = _report(request, gpus=gpus)
        findings += [*silent, *_storage(reports, probe, token, storage)]
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    findings += [*_versions(reports), *_token(reports)]
    if experiment:
        findings += [*_model_and_data(settings, reports), *_lacks(reports)]
        findings += _disk(reports, wanted, storage) if wanted is not None else ()
        findings += _quantized(experiment)
        findings += _gpus(reports, settings) if gpus else ()
    return findings


def _report(request: NodeRequest, *, gpus: bool) -> tuple[list[NodeReport], list[Finding]]:
    """Collect every living node's report, and a finding for each that is silent.

    A process that has opened a GPU keeps some of its memory, so each task has one of its own, and the driver itself
    reports only where no GPU is asked for.
    """
    task: Any = ray.remote(max_calls=1)(inspect_node)
    nodes_by_task, driver_node = {}, ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    if not gpus and [node["NodeID"] for node in alive] == [driver_node]:
        return [inspect_node(driver_node, request)], []
    for node in alive:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": place, "max_retries": 0}
        with_gpus = gpus and node["Resources"].get("GPU", 0) > 0
        nodes_by_task[task.options(**options).remote(node["NodeID"], request, gpus=with_gpus)] = node
    ready, pending = ray.wait(list(nodes_by_task), num_returns=len(nodes_by_task), timeout=NODE_SECONDS)
    reports, findings = [], []
    for ref in [*ready, *pending]:
        name = nodes_by_task[ref]["NodeManagerHostname"]
        try:
            if ref in pending:
                raise TimeoutError(f"it did not answer within {NODE_SECONDS:g} s")
            reports.append(ray.get(ref))
        except Exception as error:
            findings.append(Finding("error", "nodes", f"Node {name} cannot run a task: {last_line(error)}"))
    return reports, findings


def _fit(experiment: Experiment) -> Iterator[Finding]:
    nodes = alive_nodes()
    if obstacle := why_never(experiment.resources, nodes):
        yield Finding("error", "resources", obstacle)
        return
    fits = concurrent_trials(experiment.resources, nodes)
    limit = experiment.resources.concurrent_trials
    if limit != "auto" and limit > fits:
        yield Finding(
            "warning", "resources",
            f"resources.concurrent_trials is {limit}, but only {fits} trials fit at a time; the others wait.",
        )  # fmt: skip
    else:
        yield Finding("fine", "resources", f"{fits} trials fit side by side.")


def _storage(reports: Sequence[NodeReport], probe: Path, token: str, storage: RunStore) -> Iterator[Finding]:
    for report in reports:
        file = probe / report.node
        if storage.url is not None:
            if report.write_error is not None:
                yield Finding("error", "storage", f"Node {report.name}: {report.write_error}")
        elif report.write_error is not None or not report.can_read:
            yield Finding(
                "error", "storage",
                f"Node {report.name} does not see {storage.display_address} as this process does "
                f"({report.write_error or 'another disk'}). On several nodes the storage has "
                "to be shared, such as NFS: give such a path with --storage.",
            )  # fmt: skip
        elif not file.is_file() or file.read_text() != token:
            yield Finding(
                "error", "storage",
                f"What node {report.name} writes to {storage.display_address} does not arrive here: it is another "
                "disk of the same path. Give a shared path with --storage.",
            )  # fmt: skip
    if reports:
        yield Finding("fine", "storage", f"{storage.display_address} was probed from {len(reports)} nodes.")


def _versions(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    driver_versions = {"python": platform.python_version(), **package_versions()}
    for report in reports:
        node_versions = {"python": report.python, **report.versions}
        differences = [
            f"{name} {node_versions.get(name, 'missing')} instead of {driver_versions.get(name, 'none')}"
            for name in driver_versions.keys() | node_versions.keys()
            if driver_versions.get(name) != node_versions.get(name)
        ]
        if differences:
            yield Finding(
                "error", "versions",
                f"Node {report.name} has {', '.join(sorted(differences))}. Install the same versions on every node.",
            )  # fmt: skip
    yield Finding("fine", "versions", ", ".join(f"{name} {number}" for name, number in driver_versions.items()))


def _token(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    shared = len(reports) > 1 or os.environ.get("RAY_ADDRESS") not in (None, "", "local")
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if shared and mode != "token":
        yield Finding(
            "warning", "token",
            "This cluster takes whoever reaches its ports for a friend. Set RAY_AUTH_MODE=token on every node and "
            "client, see docs/cluster.md.",
        )  # fmt: skip
    elif shared:
        yield Finding("fine", "token", "Clients show a token.")


def local_paths(settings: Settings) -> list[str]:
    """List files and folders of this machine that the trials read, so that every node needs them."""
    model, evaluation = settings.model, settings.evaluation
    data = [source.source for source in settings.data.sources]
    paths = [model.tokenizer, *data, model.chat_template, evaluation.questions]
    paths += [evaluation.retention.prompts] if evaluation.retention else []
    return local_models(settings) + [path for path in paths if path and Path(path).is_absolute()]


def local_models(settings: Settings) -> list[str]:
    """List files and folders of this machine that hold models, after each adapter what it was trained on."""
    sources = [source for _, source in _models(settings)]
    return [path for path in sources if Path(path).is_absolute()]


def _models(settings: Settings) -> list[tuple[str, str]]:
    """List what loads a model, in words, with its folder, file or Hub id."""
    sources = [("model.source", settings.model.source, settings.model.gguf_file)]
    members = settings.evaluation.judge.members
    sources += [("evaluation.judge.model", member.model, None) for member in members if isinstance(member, RewardModel)]
    models = []
    for key, source, file in sources:
        models.append((f"{key} {source}", str(Path(source, file)) if file and Path(source).is_absolute() else source))
        if source.startswith(EMBEDDED):
            continue
        try:
            parts = parts_of(source, None, local_only=True)
        except (FileFault, OSError):
            # Each node names it, where it looks at its files.
            continue
        models += [(f"{key} {source}: its base {parts.source}", parts.source)] if parts.adapter else []
    return models


def _model_and_data(settings: Settings, reports: Sequence[NodeReport]) -> Iterator[Finding]:
    for report in reports:
        if report.missing:
            yield Finding(
                "error", "model and data",
                f"Node {report.name} does not have {', '.join(report.missing)}. Put it on the shared storage, or on "
                "every node under the same path.",
            )  # fmt: skip
        for fault in report.faults:
            yield Finding("error", "model and data", f"{_of(report, reports)}{fault}. {FILE_REMEDY}")
    sources = [("dataset", f"data.train {entry.source}", entry.source) for entry in settings.data.sources]
    sources += [("model", *model) for model in _models(settings)]
    hub = [entry for entry in sources if not entry[2].startswith(EMBEDDED) and not Path(entry[2]).is_absolute()]
    for kind, name, source in hub:
        yield _on_hub(kind, name, source, reports)
    if not hub and not any(report.missing or report.faults for report in reports):
        yield Finding("fine", "model and data", "Both are there.")


def _tokenizer(settings: Settings) -> Iterator[Finding]:
    """Read configuration and tokenizer, not the weights, of a model that this machine has."""
    model = settings.model
    if model.task or not all(Path(path).is_absolute() for path in (model.source, model.tokenizer or model.source)):
        return
    # Here, since the checks of a sweep have no time for what it imports.
    from slime_ray.model.loading import load_config, load_tokenizer

    try:
        load_config(model)
        load_tokenizer(model)
    except InputError as error:
        yield Finding("error", "model and data", str(error))
    else:
        yield Finding("fine", "tokenizer", f"The tokenizer of {model.tokenizer or model.source} was read.")


def _lacks(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    for report in reports:
        for about, lack in (("judge", report.judge_fault), ("trackers", report.tracker_fault)):
            if lack:
                yield Finding("error", about, f"{_of(report, reports)}{lack}")


def _of(report: NodeReport, reports: Sequence[NodeReport]) -> str:
    """Return the node's name as the beginning of a sentence; empty where there is only one node."""
    return f"Node {report.name}: " if len(reports) > 1 else ""


def _on_hub(kind: str, name: str, source: str, reports: Sequence[NodeReport]) -> Finding:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, repo_type=kind, local_files_only=True))
        if kind == "model" and (
            faults := [fault for file in folder.glob("*.safetensors") if (fault := fault_of(file))]
        ):
            return Finding("error", "model and data", f"{name}: {faults[0]}. {FILE_REMEDY}")
        return Finding("fine", "model and data", f"{name} is in this machine's cache.")
    except HFValidationError:
        return Finding(
            "error", "model and data", f"{name} is neither a path that exists nor the name of a {kind}. Correct it."
        )
    except LocalEntryNotFoundError:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            return Finding(
                "error", "model and data",
                f"{name}: there is no such path, the cache has no {kind} of that name, and HF_HUB_OFFLINE=1 forbids to "
                "fetch it. Correct it, download it first, or unset the variable.",
            )  # fmt: skip
        homes = {report.home for report in reports}
        suffix = " once per node; share HF_HOME to fetch it once" if len(homes) > 1 else ""
        return Finding("warning", "model and data", f"{name} will be downloaded{suffix}.")


def _disk(reports: Sequence[NodeReport], wanted: float, storage: RunStore) -> Iterator[Finding]:
    """Compare what a run takes at most with the node that has the least. wanted: in bytes, as a plan counts it."""
    if not reports:
        return
    fullest = min(reports, key=lambda report: report.disk)
    free = size_text(fullest.disk)
    if wanted > fullest.disk:
        yield Finding(
            "error", "disk",
            f"Node {fullest.name} has {free} free at {storage.root}, and the run may take {size_text(wanted)}. Free "
            "some, give another --storage, or keep fewer models with budget.checkpoints.",
        )  # fmt: skip
    else:
        yield Finding("fine", "disk", f"{free} free, at most {size_text(wanted)} wanted.")


def _plan(experiment: Experiment, storage: RunStore) -> Plan | Finding:
    """Plan the experiment for where it would run; where too little is known for that, a finding that says why."""
    # Here, since the checks of a sweep have no time for what it imports.
    from slime_ray.planning.estimate import Planner

    try:
        return Planner(experiment).plan(present_cluster(experiment, storage=storage))
    except InputError as error:
        return Finding("warning", "plan", f"What memory and disk it takes is not known here: {error}")


def _memory(plan: Plan) -> list[Finding]:
    """Find whether a worker has the memory that the plan counts, and whatever else the plan refuses."""
    findings = [Finding("error", "plan", sentence) for sentence in plan.refusals]
    return findings or [Finding("fine", "memory", f"{plan.memory_text}.")]


def _gpus(reports: Sequence[NodeReport], settings: Settings) -> Iterator[Finding]:
    for report in reports:
        if report.gpus is None:
            continue
        if report.gpus == 0:
            yield Finding(
                "error", "gpu",
                f"Node {report.name} offers GPUs to Ray, but torch sees none there: its driver does not fit this build "
                f"of torch ({report.versions.get('torch')}), or it is a CPU build.",
            )  # fmt: skip
        elif settings.model.dtype == "bfloat16" and not report.bf16:
            yield Finding(
                "error", "gpu",
                f"The {report.gpu} of node {report.name} does not compute in bfloat16. Set model.dtype: float32.",
            )  # fmt: skip
        else:
            yield Finding("fine", "gpu", f"Node {report.name}: {report.gpus} x {report.gpu}, driver {report.driver}.")
            if report.bf16 and (cost := settings.model.float32_cost(f"the {report.gpu} of node {report.name}")):
                yield Finding("warning", "gpu", cost)


def _quantized(experiment: Experiment) -> Iterator[Finding]:
    """Find what 4-bit base weights lack here; `_versions` finds nodes that differ."""
    if not any(settings.model.quantization for settings in all_settings(experiment)):
        return
    if lack := lacking_bitsandbytes():
        yield Finding("error", "quantization", f"model.quantization: {lack}")
    if not experiment.resources.gpu_per_worker:
        yield Finding(
            "error", "quantization",
            "4-bit base weights (model.quantization) need a GPU, and resources.gpu_per_worker is 0. Set it to 1, or "
            "model.quantization: null.",
        )  # fmt: skip


def refuse(findings: Iterable[Finding]) -> None:
    """Raise InputError with everything that has to be mended, if anything has."""
    errors = [finding.sentence for finding in findings if finding.level == "error"]
    if errors:
        raise InputError("\n".join(errors))


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a line for each finding, what has to be mended last."""
    order: Mapping[Level, int] = {"fine": 0, "warning": 1, "error": 2}
    for finding in sorted(findings, key=lambda finding: order[finding.level]):
        console.print(
            f"{finding.level:<8} {finding.about:<15} {finding.sentence}", highlight=False, soft_wrap=True, markup=False
        )


def doctor(experiment: Experiment | None, *, storage: RunStore, console: Console, as_json: bool = False) -> None:
    """Examine and print the findings, for a person or as JSON. Raises InputError where something has to be mended."""
    started = time.perf_counter()
    storage.check()
    with connected():
        plan = _plan(experiment, storage) if experiment else None
        findings = examine(experiment, storage=storage, wanted=plan.disk_bytes if isinstance(plan, Plan) else None)
    if experiment and all(finding.level != "error" for finding in findings):
        findings += _tokenizer(experiment.settings)
        findings += [plan] if isinstance(plan, Finding) else _memory(plan) if plan else []
    if as_json:
        fine = all(finding.level != "error" for finding in findings)
        print(json.dumps({"fine": fine, "findings": [asdict(finding) for finding in findings]}, indent=1))
        refuse(findings)
        return
    print_findings([finding for finding in findings if finding.level != "error"], console)
    refuse(findings)
    console.print(f"Nothing stands in the way ({time.perf_counter() - started:.1f} s).", highlight=False)
