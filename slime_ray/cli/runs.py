"""Commands for a run that is there: report, compare, verify, export, status, watch, extend, stop, clone.

The first four need neither torch nor Ray.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from slime_ray.cli.options import QUIET, RUN, STORAGE, add_command, exclusive, option, run_and_report, show_report
from slime_ray.errors import InputError, RunError
from slime_ray.runs.redaction import redact

PORT = 8765


def add_commands(commands: Any) -> None:
    """Register them."""
    add_command(
        commands, "status", _status, "how a run stands, from another terminal or machine",
        ["slime-ray status", "slime-ray status runs/first --watch", "slime-ray status s3://bucket/runs/first --json"],
        option("run", nargs="?", help="folder of the run, or its address (default: a list of those in --storage)"),
        STORAGE,
        exclusive(
            option("--json", action="store_true", help="print it as JSON"),
            option(
                "--watch", action="store_true",
                help="print it again when it changes, until the run ends; `slime-ray watch` shows it in a browser",
            ),
        ),
    )  # fmt: skip
    add_command(
        commands, "watch", _watch, "serve a running sweep's report in a browser, live, with buttons",
        ["slime-ray watch runs/first", "slime-ray watch s3://bucket/runs/first --port 8766"],
        RUN,
        option("--port", type=int, default=PORT, metavar="N", help=f"of 127.0.0.1 (default {PORT}; 0: a free one)"),
        more="Serves the report on this machine alone while the sweep runs, with what runs now, the alarms and the\n"
        "budget. The printed address holds a token; without it the page is read-only. When the sweep ends, the\n"
        "command writes the report and ends too. `status --watch` prints lines in the terminal instead.",
    )  # fmt: skip
    add_command(
        commands, "extend", _extend, "go on with a run, with more trials of its search",
        ["slime-ray extend runs/first --trials 16", "slime-ray extend runs/first  # what is left of it"],
        RUN,
        option("--trials", type=int, default=0, metavar="N", help="further trials of each search (default 0)"),
        option("--study", metavar="URL", help="the database of the run's study, where that is not in the run's folder"),
        QUIET,
        # Not the same command: its --trials would count once more.
        again=lambda options: f"slime-ray extend {options.run}",
    )  # fmt: skip
    add_command(
        commands, "stop", _stop, "end a running trial where it is; it is recorded as stopped",
        ["slime-ray stop runs/first search-0003"],
        RUN, option("trial", help="such as search-0003; `slime-ray status` lists those that run"),
    )  # fmt: skip
    add_command(
        commands, "clone", _clone, "run a trial again with some knobs changed, beside the search's own",
        ["slime-ray clone runs/first search-0003 --set objective.hard_margin=2.0"],
        RUN, option("trial", help="the trial whose knobs it takes, running or finished"),
        option(
            "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", required=True,
            help="set one knob, such as objective.hard_margin=2.0; may be repeated",
        ),
    )  # fmt: skip
    add_command(
        commands, "report", _report, "tables, figures and report.html of a run; needs neither torch nor ray",
        ["slime-ray report runs/first", "slime-ray report runs/first --out elsewhere --json"],
        RUN, option("--out", type=Path, help="where to write (default RUN/report)"),
        option(
            "--labels", type=Path, metavar="FILE",
            help="verdicts of people, or of a stronger judge, on some of the answers, which correct the win rates",
        ),
        option(
            "--difficulties", type=Path, metavar="CSV",
            help="AlpacaEval's df_gamed.csv, or difficulties of other prompts, for its length-controlled rate",
        ),
        option("--paper", action="store_true", help="write paper.tex too: methods and tables for LaTeX"),
        exclusive(
            option("--quiet", action="store_true", help="print nothing but where the report is"),
            option("--json", action="store_true", help="print the numbers of all tables as JSON instead"),
        ),
    )  # fmt: skip
    add_command(
        commands, "compare", _compare, "the rows of several runs, or two models' samples of lm-evaluation-harness",
        ["slime-ray compare runs/first runs/second --csv both.csv", "slime-ray compare harness/sft harness/slime"],
        option(
            "runs", type=Path, nargs="+", metavar="RUN",
            help="folders of runs; or two files, or folders, of what `lm_eval --log_samples` wrote",
        ),
        option("--csv", type=Path, metavar="FILE", help="also write the numbers, unrounded, to this file"),
        option("--json", action="store_true", help="print the rows as JSON instead"),
    )  # fmt: skip
    add_command(
        commands, "verify", _verify, "what differs between two runs of one experiment, and whether their numbers agree",
        ["slime-ray verify runs/first runs/again"],
        option("runs", type=Path, nargs=2, metavar="RUN", help="folders of the two runs"),
        option("--json", action="store_true", help="print differences and rows as JSON instead"),
        more="Prints every setting, hash and version in which the manifests of two runs differ, then their rows side\n"
        "by side. Exit code 0 where the numbers agree within their intervals, 1 where they do not.",
    )  # fmt: skip
    add_command(
        commands, "export", _export, "write a trained model, or a run's answers and verdicts as files of the field",
        [
            "slime-ray export runs/first arm-slime-s0 --to model  # an adapter on the model that the file names",
            "slime-ray export runs/first arm-slime-s0 --to model --merge  # a whole model",
            "slime-ray export runs/first arm-slime-s0 --to model --merge --push-to-hub me/model",
            "slime-ray export runs/first --to arena  # answers and verdicts as Arena-Hard has them",
            "slime-ray export runs/first --to bench --form mt-bench",
        ],
        option("run", type=Path, help="folder of the run"),
        option("trial", nargs="?", help="write this trial's model instead of answers"),
        option(
            "--merge", action="store_true",
            help="merge a trial's adapters into a whole model; else SFT and preference training are one adapter",
        ),
        option(
            "--dtype", choices=("float32", "bfloat16"),
            help="of a whole model's weights; bfloat16 rounds small updates away (default float32)",
        ),
        option(
            "--push-to-hub", metavar="ORG/NAME",
            help="push the model, too; the token is that of HF_TOKEN or of `hf auth login`",
        ),
        option("--private", action="store_true", help="whether a new repository is private"),
        option("--to", type=Path, required=True, metavar="DIR", help="where to write; nothing is overwritten"),
        option(
            "--form", choices=("arena-hard", "mt-bench"), default="arena-hard",
            help="whose files; answers of several turns have room in MT-Bench's alone (default arena-hard)",
        ),
    )  # fmt: skip


def _status(options: argparse.Namespace) -> None:
    from slime_ray.runs.control import open_run
    from slime_ray.runs.status import describe

    if options.run is None:
        _list_runs(options)
        return
    last = None
    while True:
        with open_run(options.run) as (run, _):
            description = describe(run)
        text = json.dumps(description, indent=1) if options.json else _sentences(description, redact(options.run))
        # How long ago it spoke changes all the time.
        if description | {"said": None} != last:
            print(text, flush=True)
        if not options.watch or description["state"] != "at work":
            return
        last = description | {"said": None}
        time.sleep(WATCH_SECONDS)


WATCH_SECONDS = 2.0


def _list_runs(options: argparse.Namespace) -> None:
    from slime_ray.runs.status import runs_in
    from slime_ray.runs.store import is_url

    if is_url(options.storage) or options.watch:
        raise InputError("Name the run, as runs/first or s3://bucket/runs/first: only a folder of runs can be listed.")
    runs = runs_in(Path(options.storage))
    if options.json:
        print(json.dumps(runs, indent=1))
        return
    for run in runs:
        trials = (
            f"{run['done']} of {run['total']} trials" if run["total"] else run["stages"].get("doing", "no trials yet")
        )
        print(f"{run['name']}: {run['state']}, {trials}, begun {run['begun']}")
    if not runs:
        print(f"There are no runs in {options.storage}.")


def _sentences(description: dict[str, Any], run: str) -> str:
    ends = ", ".join(f"{count} {status}" for status, count in sorted(description["ends"].items())) or "none"
    age = "" if description["said"] is None else f", as it said {description['said']:.0f} s ago"
    done = f"{description['done']} of {description['total']} trials have ended{age}: {ends}."
    if not description["total"]:
        doing = description["stages"].get("doing") or ("Ray starts" if age else "")
        done = f"No trial has begun{age}{': ' * bool(doing)}{doing}."
    lines = [f"{description['name']}: {description['state']}. {done}"]
    stages = {"stages": description["stages"]} if description["stages"] else {}
    for name, trial in {**stages, **description["running"]}.items():
        step = f" {trial['step']}/{trial['updates']}" if trial.get("updates") else ""
        numbers = [f"{key} {trial[key]:.3f}" for key in ("loss", "chosen_drift") if isinstance(trial.get(key), float)]
        alarm = [f"alarm: {trial['alarm']}"] if trial.get("alarm") else []
        lines.append(f"  {name}: {', '.join([str(trial.get('doing', 'starting')) + step, *numbers, *alarm])}")
    lines += [f"  {name} had an alarm: {alarm}" for name, alarm in description["alarms"].items()]
    for point in description["front"]:
        goals = ", ".join(f"{goal} {value:.3f}" for goal, value in point.items() if goal != "trial_id")
        lines.append(f"  on the front: {point['trial_id']} ({goals})")
    if description["state"] == "interrupted":
        lines.append(f"It goes on with `slime-ray extend {run}`, or with the command that began it and --resume.")
    return "\n".join(lines)


def _extend(options: argparse.Namespace) -> None:
    from slime_ray import api
    from slime_ray.runs.control import extend_experiment, open_run
    from slime_ray.runs.folder import read_experiment
    from slime_ray.runs.results import read_manifest

    with open_run(options.run) as (run, run_store):
        experiment, manifest = read_experiment(run), read_manifest(run)
    experiment = extend_experiment(experiment, options.trials, options.run)
    run_and_report(
        # The folder may have been renamed, or be a copy.
        api.sweep, experiment, name=run.name, start="resume", storage=run_store.url or str(run_store.root),
        seed=int(manifest.get("sweep_seed") or 0), study=options.study, quiet=options.quiet,
    )  # fmt: skip


def _stop(options: argparse.Namespace) -> None:
    from slime_ray.runs.control import open_run, stop_trial

    with open_run(options.run) as (run, run_store):
        print(stop_trial(run, run_store, options.trial))


def _clone(options: argparse.Namespace) -> None:
    from slime_ray.config.experiment_file import parse_override
    from slime_ray.runs.control import clone_trial, open_run
    from slime_ray.runs.status import read_status

    with open_run(options.run) as (run, run_store):
        clone = clone_trial(run, run_store, options.trial, dict(map(parse_override, options.overrides)))
        at_work = read_status(run).at_work
    when = "runs next" if at_work else f"runs when the sweep goes on: slime-ray extend {redact(options.run)}"
    print(f"{clone.trial_id} {when}.")


def _watch(options: argparse.Namespace) -> None:
    from slime_ray.live.server import watch

    print(watch(options.run, port=options.port, say=lambda line: print(line, flush=True)))


def _report(options: argparse.Namespace) -> None:
    from slime_ray.runs.store import is_url, local_folder

    run, further = local_folder(options.run), ("labels", "difficulties", "paper", "quiet")
    out = options.out or (Path(f"{run.name}-report") if is_url(options.run) else None)
    show_report(run, out, as_json=options.json, **{name: getattr(options, name) for name in further})


def _compare(options: argparse.Namespace) -> None:
    from slime_ray.analysis.comparing import compare
    from slime_ray.analysis.harness import are_samples, compare_samples
    from slime_ray.runs import files, results

    if any(map(are_samples, options.runs)):
        table = compare_samples(options.runs)
    else:
        table = compare([results.load(run) for run in options.runs])
    if options.csv:
        files.write(options.csv, table.csv())
    print(table.json() if options.json else table.text())


def _verify(options: argparse.Namespace) -> None:
    from slime_ray.analysis.comparing import verify
    from slime_ray.runs import results

    verdict = verify(*(results.load(run) for run in options.runs))
    print(verdict.json() if options.json else verdict.text())
    if not verdict.agree:
        raise RunError(f"{options.runs[0]} and {options.runs[1]} do not agree.")


def _export(options: argparse.Namespace) -> None:
    if options.trial:
        from slime_ray import api

        if options.private and not options.push_to_hub:
            raise InputError("--private is of a repository. Give --push-to-hub ORG/NAME as well.")
        where = api.Run(options.run).export(
            options.trial, options.to, merge=options.merge, dtype=options.dtype,
            push_to_hub=options.push_to_hub, private=options.private,
        )  # fmt: skip
        print(where)
        return
    if options.merge or options.dtype or options.push_to_hub or options.private:
        raise InputError("--merge, --dtype, --push-to-hub and --private are of a trial's model. Name the trial.")
    from slime_ray.evaluation.field_files.exporting import export_run
    from slime_ray.runs import results

    print(export_run(results.load(options.run), options.to, options.form))
