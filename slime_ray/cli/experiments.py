"""Commands that run or look at an experiment: sweep, ablate, train, evaluate, launch, demo, doctor, check."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.cli.options import (
    ANY_SPACE,
    EXPERIMENT,
    NAME,
    QUIET,
    SEED,
    SEEDS,
    SET,
    SPACE,
    START,
    STORAGE,
    STUDY,
    TRIALS,
    add_command,
    changes,
    describe_design,
    load,
    load_checked,
    option,
    run_and_report,
)  # fmt: skip
from slime_ray.errors import InputError

if TYPE_CHECKING:
    from slime_ray.api import Run
    from slime_ray.config.experiment import Experiment
    from slime_ray.config.settings import Settings


MOST_READ = 32 << 20
"""Bytes of data that `check` reads: some ten seconds' worth. `plan` reads larger ones."""


def add_commands(commands: Any) -> None:
    """Register them."""
    add_command(
        commands, "sweep", _sweep, "run an experiment: its arms, its search, its winners again",
        [
            "slime-ray sweep methods  # one that ships, under its own name",
            "slime-ray sweep mine.yaml --name first --trials 16",
            "slime-ray sweep mine.yaml --name first --trials 16 --resume  # after Ctrl-C, a crash, a reboot",
            "slime-ray sweep mine.yaml --set training.learning_rate=1e-4 --name slower",
        ],
        *EXPERIMENT, SEED, START, QUIET, STUDY,
    )  # fmt: skip
    add_command(
        commands, "ablate", _ablate, "run the design of an experiment, every cell with every seed",
        [
            "slime-ray ablate leave_one_out --name parts",
            "slime-ray ablate leave_one_out --name parts --resume --seeds 8  # three seeds more",
        ],
        *EXPERIMENT, SEED, START, QUIET, STUDY,
    )  # fmt: skip
    add_command(
        commands, "league", _league, "compare objectives at an equal tuning budget",
        [
            "slime-ray league league_arithmetic --name first",
            "slime-ray league mine.yaml --name first --resume  # with more entries, trials or seeds in the file",
        ],
        SPACE, NAME, STORAGE, SEEDS, SET, SEED, START, QUIET, STUDY,
    )  # fmt: skip
    add_command(
        commands, "train", _train, "run one trial of an experiment in this process, without Ray",
        ["slime-ray train methods --trial arm-slime-s0"],
        SPACE, NAME, STORAGE, SEEDS, SET,
        option("--trial", help="which, such as arm-slime-s0 (default: the only one)"),
        START, QUIET,
    )  # fmt: skip
    # Its rows are the policies: the file's arms, seeds and search have no say.
    add_command(
        commands, "evaluate", _evaluate, "measure checkpoints, trials or files of answers, without a sweep",
        [
            "slime-ray evaluate mine.yaml my-checkpoint",
            "slime-ray evaluate mine.yaml runs/first/trials/arm-slime-s0 --name again",
            "slime-ray evaluate mine.yaml ours.jsonl --baseline theirs.jsonl",
        ],
        SPACE, NAME, STORAGE, SET,
        option(
            "policies", type=Path, nargs="+", metavar="POLICY",
            help="a checkpoint's folder, a trial's folder, a Hub id, or a .jsonl file of answers; each makes a row",
        ),
        option(
            "--baseline", type=Path, help="the same for what they are compared with (default: the SFT checkpoint)"
        ),
        option("--offline", action="store_true", help="ask no judge that costs; kept verdicts answer alone"),
        START, QUIET,
    )  # fmt: skip
    add_command(
        commands, "launch", _launch, "submit a sweep to a cluster and follow it; again to follow it again",
        ["slime-ray launch mine.yaml --name first --storage /shared/runs"],
        *EXPERIMENT, SEED,
        option("--address", help="Ray's dashboard (default: port 8265 of this machine, where tunnels end)"),
        option("--no-follow", dest="follow", action="store_false", help="submit, and do not wait"),
        more="Ctrl-C stops following; the sweep goes on.",
    )  # fmt: skip
    add_command(
        commands, "demo", _demo, "run the shipped demo and print its table",
        ["slime-ray demo", "slime-ray demo --resume  # the latest one, after an interruption"],
        STORAGE, START, QUIET,
        space="demo", overrides=[], seed=0, study=os.environ.get("SLIME_RAY_STUDY") or None,
    )  # fmt: skip
    add_command(
        commands, "doctor", _doctor, "look at the cluster, the storage and what an experiment asks of them",
        ["slime-ray doctor", "slime-ray doctor mine.yaml", "slime-ray doctor --cluster cluster.yaml"],
        ANY_SPACE, STORAGE, TRIALS, SEEDS, SET,
        option("--cluster", type=Path, metavar="FILE", help="check a file for `ray up` or KubeRay, offline"),
        option("--json", action="store_true", help="print everything that was found as JSON"),
    )  # fmt: skip
    add_command(
        commands, "check", _check, "validate an experiment; nothing is started",
        ["slime-ray check mine.yaml", "slime-ray check factorial --set training.updates=50 --json"],
        SPACE, NAME, TRIALS, SEEDS, SET, option("--json", action="store_true", help="print what it holds as JSON"),
    )  # fmt: skip


def _sweep(options: argparse.Namespace) -> None:
    from slime_ray import api

    _run(api.sweep, options)


def _ablate(options: argparse.Namespace) -> None:
    from slime_ray import api

    _run(api.ablate, options)


def _league(options: argparse.Namespace) -> None:
    from slime_ray import api

    _run(api.league, options)


def _run(sweep: Callable[..., "Run"], options: argparse.Namespace) -> None:
    run_and_report(
        sweep, options.space, storage=options.storage, start=options.start, seed=options.seed, study=options.study,
        quiet=options.quiet, **changes(options),
    )  # fmt: skip


def _train(options: argparse.Namespace) -> None:
    from slime_ray import api

    run_and_report(
        api.train, options.space, trial=options.trial, storage=options.storage, start=options.start,
        quiet=options.quiet, **changes(options),
    )  # fmt: skip


def _evaluate(options: argparse.Namespace) -> None:
    from slime_ray import api

    run_and_report(
        api.evaluate, options.space, policies=options.policies, baseline=options.baseline, storage=options.storage,
        start=options.start, offline=options.offline, quiet=options.quiet, **changes(options),
    )  # fmt: skip


def _launch(options: argparse.Namespace) -> None:
    experiment, source = load(options)
    from slime_ray.on_ray.launch import DEFAULT_ADDRESS, Submission, launch, sweep_options

    names = ("trials", "seeds", "seed", "overrides")
    arguments = sweep_options(**{name: getattr(options, name) for name in names})
    text = source.read_text(encoding="utf-8")
    submission = Submission(experiment.name, text, options.storage, tuple(arguments))
    launch(experiment, submission, address=options.address or DEFAULT_ADDRESS, out=sys.stdout, follow=options.follow)


def _demo(options: argparse.Namespace) -> None:
    latest, number = None, 1
    while (Path(options.storage) / (name := "demo" if number == 1 else f"demo-{number}")).exists():
        latest, number = name, number + 1
    options.name = name if options.start == "fresh" else latest or name
    _sweep(options)


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _check(options: argparse.Namespace) -> None:
    experiment, source = load_checked(options)
    if lack := experiment.settings.evaluation.lacks():
        raise InputError(lack)
    if options.json:
        print(json.dumps(_summary(experiment, source), indent=1))
        return
    seeds, search = experiment.seeds, experiment.search
    arms = f" {_count(experiment.arms, 'arm')} x {_count(seeds, 'seed')}."
    arms = arms if experiment.arms and experiment.design is None else ""
    trials = search and f" {len(search.dimensions)} searched knobs, {experiment.budget.trials} trials."
    league = experiment.league
    entries = league and f" {len(league.entries)} entries, {league.trials} trials and {league.seeds} seeds each."
    checkpoints = f" From {count} SFT checkpoints." if (count := len(experiment.bases)) > 1 else ""
    sizes, notes = _data_of(experiment)
    print(f"{source}: fine.{arms}{trials or ''}{entries or ''}{checkpoints}")
    if sizes:
        print(f"Data: {_listing(sizes)}.")
    for note in notes:
        print(f"warning: {note}")
    if reference_note := reference_of(experiment):
        print(reference_note)
    for warning in _warnings(experiment):
        print(f"warning: {warning}")
    describe_design(experiment)
    if experiment.search and experiment.search.earlier_runs:
        from slime_ray.runs.earlier_runs import earlier_runs

        for run in earlier_runs(experiment):
            print(run)


def _data_of(experiment: "Experiment") -> tuple[dict[str, int], list[str]]:
    """How the data of `base` is divided, and notes on it and on that of arms, as on data that is too large to read.

    Raises InputError for data that cannot be used or is too little.
    """
    base, rest = experiment.settings, MOST_READ
    sizes: dict[str, int] = {}
    notes: list[str] = []
    seen = []
    arms = {f"arm {arm.label}: ": experiment.settings_with(arm.set) for arm in experiment.arms}
    for name, settings in {"": base, **arms}.items():
        if settings.data in seen:
            continue
        seen.append(settings.data)
        if (size := _local_bytes(settings)) is None:
            continue
        if size > rest:
            large, most, read = (f"{amount / 2**20:.1f} MiB" for amount in (size, MOST_READ, MOST_READ - rest))
            notes.append(
                f"{name}{large} of data are not read: `check` reads {most} at most, and read {read}. `plan` reads all."
            )
            continue
        rest -= size
        counts, data_warnings = _divide(settings)
        if settings is base:
            sizes = counts
        else:
            notes.append(f"{name}it has data of its own: {_listing(counts)}.")
        notes += [f"{name}{note}" for note in data_warnings]
    return sizes, notes


def _local_bytes(settings: "Settings") -> int | None:
    """Size of the data; None where some of it is not on this machine, or it is an embedded task's."""
    places = [Path(entry.source).expanduser() for entry in settings.data.sources]
    if settings.data.task or not all(place.exists() for place in places):
        return None
    files = (file for place in places for file in (place.rglob("*") if place.is_dir() else [place]))
    return sum(file.stat().st_size for file in files if file.is_file())


def _divide(settings: "Settings") -> tuple[dict[str, int], list[str]]:
    # Here, since importing them takes most of a second, which other files need not wait for.
    from slime_ray.data.corpus import load_corpus
    from slime_ray.data.order import updates_of
    from slime_ray.runs.notes import data_notes

    corpus = load_corpus(settings.data, settings.evaluation)
    updates = updates_of(settings.training, len(corpus.train), settings.training.pairs_per_update)
    sizes = {"pairs to train on": len(corpus.train), "updates": updates, "pairs held out": len(corpus.held_out)}
    sizes |= {f"{name} prompts": len(prompts) for name, prompts in corpus.prompts.items()}
    return ({"SFT examples": len(corpus.sft)} if settings.sft else {}) | sizes, data_notes(corpus.read)


def reference_of(experiment: "Experiment") -> str | None:
    """What the reference model is where no SFT stage makes it; None where that does, or no objective needs one."""
    from slime_ray.runs.inputs import all_settings

    without_sft = (settings for settings in all_settings(experiment) if settings.sft is None)
    plain = [settings for settings in without_sft if settings.objective.build().needs_reference]
    names = ", ".join(dict.fromkeys(settings.objective.name for settings in plain))
    return f"The reference of {names} is {plain[0].model.source} as it is, since sft is null." if plain else None


def _warnings(experiment: "Experiment") -> list[str]:
    """What is allowed and yet may not be meant."""
    from slime_ray.config.tuning import tuning_warnings
    from slime_ray.data.places import missing_file

    missing = {entry.source: missing_file(entry.source) for entry in experiment.settings.data.sources}
    warnings = [
        f"{source} is not on this machine{hint}. Trials read it where they run."
        for source, hint in missing.items()
        if hint is not None
    ]
    early = experiment.early_stopping
    if early and (unseen_goals := experiment.unseen_goals):
        metrics = ", ".join(early.ranked_by)
        unseen = ", ".join(unseen_goals)
        warnings.append(f"early_stopping ranks by {metrics}; {unseen} can be seen at a trial's end alone.")
    return [*warnings, *(f"{sentence}." for sentence in tuning_warnings(experiment))]


def _summary(experiment: "Experiment", source: Path) -> dict[str, object]:
    """What `check` says of an experiment, for a script."""
    sizes, notes = _data_of(experiment)
    return {
        "file": str(source),
        "name": experiment.name,
        "arms": [arm.label for arm in experiment.arms],
        "design": experiment.design and experiment.design.kind,
        "seeds": experiment.seeds,
        "searched": list(experiment.search.dimensions) if experiment.search else [],
        "trials": experiment.budget.trials,
        "league": [entry.label for entry in experiment.league.entries] if experiment.league else [],
        "fingerprint": experiment.fingerprint,
        "data": sizes,
        "warnings": [*_warnings(experiment), *notes],
    }


def _doctor(options: argparse.Namespace) -> None:
    if options.cluster:
        from slime_ray.cluster import check_cluster_file

        lines = check_cluster_file(options.cluster)
        print(json.dumps({"file": str(options.cluster), "says": lines}, indent=1) if options.json else "\n".join(lines))
        return
    from rich.console import Console

    experiment = load_checked(options)[0] if options.space else None
    from slime_ray.on_ray.preflight import doctor
    from slime_ray.runs.store import RunStore

    doctor(experiment, storage=RunStore.of(options.storage, "driver"), console=Console(), as_json=options.json)
