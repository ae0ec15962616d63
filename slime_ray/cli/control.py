"""Commands for a run that is there: status, extend, stop, clone."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.cli.options import add_command, console, quiet_option, show_report
from slime_ray.errors import InputError
from slime_ray.runs.redaction import redact

if TYPE_CHECKING:
    from slime_ray.runs.store import RunStore


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register them."""
    status = add_command(
        commands, "status", "how a run stands, from another terminal or machine",
        examples=["slime-ray status runs/first", "slime-ray status s3://bucket/runs/first --json"],
    )  # fmt: skip
    status.add_argument("run", help="folder of the run, or its address")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.set_defaults(command=_status)

    extend = add_command(
        commands, "extend", "go on with a run, with more trials of its search",
        examples=["slime-ray extend runs/first --trials 16", "slime-ray extend runs/first  # what is left of it"],
    )  # fmt: skip
    extend.add_argument("run", help="folder of the run, or its address")
    extend.add_argument("--trials", type=int, default=0, metavar="N", help="further trials of the search (default 0)")
    extend.add_argument(
        "--study", metavar="URL", help="the database of the run's study, where that is not in the run's folder"
    )
    quiet_option(extend)
    # Not the same command: its --trials would count once more.
    extend.set_defaults(command=_extend, again=lambda options: f"slime-ray extend {options.run}")

    stop = add_command(
        commands, "stop", "end a running trial where it is; it is recorded as stopped",
        examples=["slime-ray stop runs/first search-0003"],
    )  # fmt: skip
    stop.add_argument("run", help="folder of the run, or its address")
    stop.add_argument("trial", help="such as search-0003; `slime-ray status` lists those that run")
    stop.set_defaults(command=_stop)

    clone = add_command(
        commands, "clone", "run a trial again with some knobs changed, beside the search's own",
        examples=["slime-ray clone runs/first search-0003 --set objective.hard_margin=2.0"],
    )  # fmt: skip
    clone.add_argument("run", help="folder of the run, or its address")
    clone.add_argument("trial", help="the trial whose knobs it takes, running or finished")
    clone.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", required=True,
        help="set one knob, such as objective.hard_margin=2.0; may be repeated",
    )  # fmt: skip
    clone.set_defaults(command=_clone)


@contextmanager
def _opened(address: str) -> "Iterator[tuple[Path, RunStore]]":
    """A run's folder on this machine, up to date but for models, with its storage."""
    from slime_ray.runs.results import CHECKPOINTS, MODEL
    from slime_ray.runs.store import RunStore, copied, is_url, one_at_a_time

    if not is_url(address):
        run = Path(address).resolve()
        yield run, RunStore(run.parent)
        return
    # Bringing the copy up to date deletes what another command has yet to send.
    with one_at_a_time(address):
        run, mirror = copied(address, skip=(CHECKPOINTS, MODEL))
        with mirror.answering():
            yield run, mirror


def _status(options: argparse.Namespace) -> None:
    from slime_ray.runs.status import describe

    with _opened(options.run) as (run, _):
        found = describe(run)
    print(json.dumps(found, indent=1) if options.json else _said(found, redact(options.run)))


def _said(found: dict[str, Any], run: str) -> str:
    ends = ", ".join(f"{count} {how}" for how, count in sorted(found["ends"].items())) or "none"
    ages = "" if found["said"] is None else f", as it said {found['said']:.0f} s ago"
    lines = [f"{found['name']}: {found['state']}. {found['done']} of {found['total']} trials have ended{ages}: {ends}."]
    for name, told in found["running"].items():
        step = f" {told['step']}/{told['updates']}" if told.get("updates") else ""
        numbers = [f"{key} {told[key]:.3f}" for key in ("loss", "chosen_drift") if isinstance(told.get(key), float)]
        alarm = [f"alarm: {told['alarm']}"] if told.get("alarm") else []
        lines.append(f"  {name}: {', '.join([str(told.get('doing', 'starting')) + step, *numbers, *alarm])}")
    for name, alarm in found["alarms"].items():
        lines.append(f"  {name} had an alarm: {alarm}")
    for point in found["front"]:
        goals = ", ".join(f"{goal} {value:.3f}" for goal, value in point.items() if goal != "trial_id")
        lines.append(f"  on the front: {point['trial_id']} ({goals})")
    if found["state"] == "interrupted":
        lines.append(f"It goes on with `slime-ray extend {run}`, or with the command that began it and --resume.")
    return "\n".join(lines)


def _extend(options: argparse.Namespace) -> None:
    from slime_ray.config.experiment import MOST_TRIALS
    from slime_ray.on_ray.sweep import run_sweep
    from slime_ray.runs.folder import reopened
    from slime_ray.runs.results import read_manifest
    from slime_ray.runs.store import RunStore

    with _opened(options.run) as (run, mirror):
        experiment, manifest = reopened(run), read_manifest(run)
    if experiment.budget.trials + options.trials > MOST_TRIALS:
        raise InputError(f"--trials {options.trials}: {MOST_TRIALS:,} trials of a run are the limit.")
    if options.trials < 0:
        raise InputError(f"--trials {options.trials}: give the number of further trials.")
    if options.trials and experiment.search is None:
        raise InputError(f"{options.run} has no search that could have more trials.")
    budget = experiment.budget.model_copy(update={"trials": experiment.budget.trials + options.trials})
    if options.trials and experiment.search is not None:
        from slime_ray.config.points import count_points

        points = count_points(experiment.search, experiment.base)
        if points is not None and budget.trials > points:
            raise InputError(
                f"{options.run} has {experiment.budget.trials} trials, and its space only {points} points, each of "
                f"which is tried once. Give --trials {points - experiment.budget.trials} at most."
            )
    # The folder may have been renamed, or be a copy.
    experiment = experiment.model_copy(update={"name": run.name})
    storage = mirror.url or str(mirror.root)
    done = run_sweep(
        experiment.model_copy(update={"budget": budget}), source=run / "experiment.yaml", storage=storage,
        seed=int(manifest.get("sweep_seed") or 0), start="resume", console=console(options),
        study=options.study,
    )  # fmt: skip
    show_report(done, None, RunStore.of(storage, "driver"), quiet=options.quiet)


def _stop(options: argparse.Namespace) -> None:
    from slime_ray.runs.instructions import FOLDER, ask_to_stop
    from slime_ray.runs.results import read_manifest
    from slime_ray.runs.status import read_status

    with _opened(options.run) as (run, mirror):
        read_manifest(run)
        status = read_status(run)
        if not status.at_work:
            raise InputError(f"No sweep is at work on {options.run}: there is nothing to stop.")
        ask_to_stop(run, options.trial, known=set(status.trials))
        mirror.push(run / FOLDER)
    print(f"{options.trial} will end at its next report and be recorded as stopped.")


def _clone(options: argparse.Namespace) -> None:
    from slime_ray.config.experiment_file import parse_override
    from slime_ray.runs.folder import refuse_other_inputs, reopened
    from slime_ray.runs.inputs import code_of, hashes_of
    from slime_ray.runs.instructions import FOLDER, ask_for_clone
    from slime_ray.runs.results import read_manifest
    from slime_ray.runs.status import read_status

    with _opened(options.run) as (run, mirror):
        changes = dict(parse_override(text) for text in options.overrides)
        experiment = reopened(run)
        refuse_other_inputs(run, read_manifest(run), hashes_of(experiment), code_of(experiment))
        clone = ask_for_clone(run, experiment, options.trial, changes)
        mirror.push(run / FOLDER)
        at_work = read_status(run).at_work
    when = "runs next" if at_work else f"runs when the sweep goes on: slime-ray extend {redact(options.run)}"
    print(f"{clone.trial_id} {when}.")
