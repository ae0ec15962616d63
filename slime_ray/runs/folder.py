"""A run's folder: taken by one sweep at a time, with its manifest and its log."""

import json
import logging
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from slime_ray import __version__
from slime_ray.config.design import Design
from slime_ray.config.experiment import Experiment
from slime_ray.config.league import League
from slime_ray.errors import InputError
from slime_ray.runs import files, results, schema
from slime_ray.runs.inputs import code_of, hashes_of, refuse_changed
from slime_ray.runs.redaction import redact, redact_sentence, remember

VERSIONS = ("torch", "transformers", "peft", "accelerate", "datasets", "ray", "optuna", "numpy", "pandas", "tokenizers")
LOCK = ".sweep.lock"
LONGEST_PART, LONGEST_PATH = 245, 3500
"""Bytes. File systems take 255 for a name and 4096 for a path; files of a trial lie deeper, under longer names."""
STUDY = "slime-ray"
"""Name of the study in a file of the run's own."""
Start = Literal["fresh", "resume", "either"]
"""Whether a run of this name has to be new, has to be there, or may be either."""


def check_start(run: Path, start: Start) -> None:
    """Raise InputError where a run's name is too long or taken, or there is no run to resume."""
    _check_length(run)
    if start == "fresh" and run.exists():
        raise _existing_run_error(run)
    if start == "resume" and not run.is_dir():
        raise InputError(f"{run}: there is no such run to resume. Leave --resume out to start it.")


@contextmanager
def lock_run(
    run: Path,
    experiment: Experiment,
    *,
    source: Path | str,
    seed: int,
    start: Start,
    study: str | None = None,
    extra_inputs: Mapping[str, Path | None] = {},
    remove: Callable[[Path], object] = shutil.rmtree,
) -> Iterator[dict[str, Any]]:
    """Lock the run's folder for one sweep and yield its manifest, new or that of a resumed run.

    source: the file that the experiment came from, or its text; kept beside the results. study: address of a
    database that holds the search's memory, instead of the run's own file. extra_inputs: those that are no settings, by
    what a message calls them. remove: deletes a run, wherever it is kept.

    Raises InputError for a name that is taken, a run that cannot be resumed, inputs that have changed since it was
    started, storage that cannot be written, and a run that another sweep is at work on. A new folder is removed again
    where an InputError ends the sweep before any trial.
    """
    check_start(run, start)
    resume = start == "resume" or (start == "either" and run.exists())
    remember(study or "")
    inputs = {"inputs": hashes_of(experiment, extra_inputs), "code": code_of(experiment)}
    if resume:
        manifest = _resumed_manifest(run, experiment, seed, study)
        refuse_other_inputs(run, manifest, inputs["inputs"], experiment)
        manifest |= {key: (manifest.get(key) or {}) | hashes for key, hashes in inputs.items()}
    else:
        manifest = _new_manifest(run, experiment, source, seed, study, inputs)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"Another sweep is at work on {run}. Wait for it or end it, or give this one another name with --name."
        ) from None
    except OSError as error:
        raise InputError(f"{run} cannot be written: {error.strerror}. Make room, or correct its rights.") from None
    for folder in (run, *(run / "trials").glob("*/")):
        files.clear_partials(folder)
    try:
        yield manifest
    except InputError:
        # Nothing was started, so the name must stay free.
        if not resume and not results.finished_trials(run):
            with suppress(OSError):
                remove(run)
        raise
    finally:
        lock.release()


def read_experiment(run: Path) -> Experiment:
    """Read the experiment that a run was started with from its manifest. Raises InputError where that holds none."""
    manifest = results.read_manifest(run)
    try:
        experiment = Experiment.model_validate_json(json.dumps(manifest.get("experiment")))
        # The base is a mapping until it is asked for.
        experiment.settings  # noqa: B018
        return experiment
    except ValidationError:
        raise InputError(
            f"{run} was written by another version of slime_ray ({manifest.get('slime_ray')}): its manifest holds no "
            f"experiment that this one can read. Give the file: slime-ray sweep {run / 'experiment.yaml'} --resume."
        ) from None


def _new_manifest(
    run: Path, experiment: Experiment, source: Path | str, seed: int, study: str | None, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    manifest = {
        "schema": schema.RUN_SCHEMA,
        "name": experiment.name,
        "created": now(),
        "finished": None,
        "command": sys.argv,
        "slime_ray": __version__,
        "versions": {"python": platform.python_version(), **_versions()},
        "host": {"node": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "experiment": experiment.model_dump(mode="json"),
        "fingerprint": experiment.fingerprint,
        **inputs,
        "goals": experiment.goals,
        "seeds": experiment.seeds,
        "sweep_seed": seed,
        # In a database, other runs may have a study of the same name.
        "study": {"storage": study, "name": f"{run.name}-{uuid.uuid4().hex[:8]}" if study else STUDY},
        "judge": experiment.settings.judge_identity,
        "row_tokens": _row_tokens(experiment),
        "decoding": experiment.settings.evaluation.decoding.model_dump(mode="json"),
        "stability_version": results.STABILITY_VERSION,
        "failed_trials": [],
    }
    # A folder of this name is a whole run, also where this process is cut off half-way.
    partial = files.partial_name(run)
    try:
        partial.mkdir(parents=True)
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        files.write(partial / "experiment.yaml", text, private=redact(text) != text)
        results.write_manifest(partial, manifest)
        partial.rename(run)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if run.exists():
            raise _existing_run_error(run) from None
        raise InputError(f"{run} cannot be written: {error.strerror}. Give another place with --storage.") from None
    return manifest


def _check_length(run: Path) -> None:
    """Refuse what a file system would refuse, some of it only when a trial has trained."""
    path = os.fsencode(run.absolute())
    longest = max(len(part) for part in path.split(b"/"))
    for length, limit in ((longest, LONGEST_PART), (len(path), LONGEST_PATH)):
        if length > limit:
            what = "has a part" if length == longest else "is a path"
            raise InputError(
                f"{str(run)[:60]}... {what} of {length} bytes, and {limit} are the limit. Give another place with "
                "--storage, or a shorter --name."
            )


def _existing_run_error(run: Path) -> InputError:
    return InputError(f"{run} is already there. Give the run another name with --name, or go on with it with --resume.")


def _resumed_manifest(run: Path, experiment: Experiment, seed: int, study: str | None) -> dict[str, Any]:
    manifest = results.read_manifest(run)
    seeds = manifest.get("seeds") or []
    league = _league_before(run, manifest, experiment)
    if manifest.get("fingerprint") != experiment.model_copy(update={"seeds": seeds, "league": league}).fingerprint:
        raise InputError(
            f"{run} was started with other settings than this file and these --set give now. Resume it with the "
            f"experiment that it keeps, {run / 'experiment.yaml'}, or give the run another name with --name."
        )
    if not set(seeds) <= set(experiment.seeds):
        seeds_before, seeds_now, all_seeds = map(_seed_list, (seeds, experiment.seeds, {*seeds, *experiment.seeds}))
        raise InputError(
            f"{run} has the seeds {seeds_before}, and those that are given now, {seeds_now}, leave some of them out. A "
            f"run may be given more seeds, never fewer: --seeds {all_seeds}"
        )
    if Design.of(manifest) != experiment.design:
        raise InputError(
            f"{run} was started with another design of the same cells, or another metric, and what cells are compared "
            "by is settled before they are run. Give it back, or give the run another name with --name."
        )
    if manifest.get("judge") != experiment.settings.judge_identity:
        # What the fingerprint cannot see: the content of a judge's template.
        raise InputError(
            f"{run} was started with the judge {manifest.get('judge')}, which is {experiment.settings.judge_identity} "
            "now. Give its template back the content it had, or give the run another name with --name."
        )
    tokens_before, tokens_now = _row_tokens_before(run, manifest), _row_tokens(experiment)
    if tokens_before and tokens_now and tokens_before != tokens_now:
        raise InputError(
            f"{run} was started with rows of {tokens_before} tokens, and this version takes {tokens_now} where "
            f"data.row_tokens is null, which rounds otherwise. Resume it with slime_ray {manifest.get('slime_ray')}, "
            "or give the run another name with --name."
        )
    if manifest.get("sweep_seed") != seed:
        raise InputError(
            f"{run} was started with --seed {manifest.get('sweep_seed')}. Give the same seed to resume it."
        )
    study_record = manifest.get("study") or {"storage": None, "name": STUDY}
    if (study_record["storage"] is None) != (study is None):
        where = "in its own folder" if study_record["storage"] is None else f"in {study_record['storage']}"
        raise InputError(
            f"{run} has its study {where}. " + ("Leave --study out." if study else "Give that database with --study.")
        )
    # More seeds, or trials, make it another run from here on; the rest is as it was.
    changes = {"experiment": experiment.model_dump(mode="json"), "seeds": experiment.seeds}
    return (
        manifest
        | changes
        | {"schema": schema.RUN_SCHEMA, "fingerprint": experiment.fingerprint, "finished": None, "study": study_record}
    )


def _league_before(run: Path, manifest: Mapping[str, Any], experiment: Experiment) -> League | None:
    """The league with the entries alone that the run had: it may be given more of them, and more trials and seeds.

    Raises InputError where it has lost or changed one, or would have fewer trials or seeds.
    """
    before, now = League.of(manifest), experiment.league
    if before is None or now is None:
        return now
    labels = {entry.label for entry in now.entries}
    for entry in before.entries:
        if entry.label not in labels or now.entry(entry.label) != entry:
            what = "lacks it" if entry.label not in labels else "has another one"
            raise InputError(
                f"{run} was started with the entry {entry.label}, and the file {what} now. A league may be given more "
                "entries; give this one back, or give the run another name with --name."
            )
    for name in ("trials", "seeds"):
        if getattr(now, name) < getattr(before, name):
            raise InputError(
                f"{run} has league.{name} {getattr(before, name)}, which may become more and not fewer. Give it back."
            )
    return now.model_copy(update={"entries": [now.entry(entry.label) for entry in before.entries]})


def _row_tokens(experiment: Experiment) -> int | None:
    """Tokens of a row; None on a GPU, where each trial keeps what it took."""
    gpu = experiment.resources.gpu_per_worker > 0
    return experiment.settings.data.row_tokens if gpu else experiment.settings.data.row_budget(gpu=False)


def _row_tokens_before(run: Path, manifest: Mapping[str, Any]) -> int | None:
    """The same of a run that was started; without an entry, what one of its trials took."""
    if "row_tokens" in manifest:
        return manifest["row_tokens"] or None
    row_tokens = (row.get("row_tokens") for row in results.finished_trials(run).values())
    return max((int(tokens) for tokens in row_tokens if tokens), default=None)


def refuse_other_inputs(
    run: Path, manifest: Mapping[str, Any], inputs: Mapping[str, str], experiment: Experiment
) -> None:
    """Raise InputError where inputs or code of the user's are not those that the run was started with.

    A run that was cut off before its shared stages were made has computed nothing from its inputs yet. A scorer may
    change while no row follows from it, as one that fails pauses its trials: those retrain what it had scored.
    """
    if manifest.get("hashes") is not None:
        refuse_changed(run, manifest.get("inputs") or {}, inputs)
    judged = any(
        row["status"] != "failed" or results.has_curve(run / "trials" / trial_id, "win_rate")
        for trial_id, row in results.finished_trials(run).items()
    )
    before, code = manifest.get("code") or {}, code_of(experiment, scorers=judged)
    refuse_changed(run, *({f"the code of {name}": digest for name, digest in each.items()} for each in (before, code)))


def refuse_other_stages(run: Path, manifest: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """Raise InputError where the shared stages, made again, are not those that the run has rows of.

    hashes: of the stages as they are now.
    """
    before = dict(manifest.get("hashes") or {})
    if "sft_weights" in before and "sft_weights" in hashes:
        # The other hash is of what they were made from, by time of its files.
        before.pop("sft_checkpoint", None)
    refuse_changed(run, *({f"stage {name}": str(digest) for name, digest in each.items()} for each in (before, hashes)))


def _seed_list(seeds: Iterable[int]) -> str:
    """Return seeds as --seeds takes them, where a comma ends a list of one."""
    words = [str(seed) for seed in sorted(seeds)]
    return ",".join(words) if len(words) > 1 else f"{words[0]},"


def _versions() -> dict[str, str]:
    versions = {}
    for package in VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def conclude(run: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write the tables and the manifest of a run that is done; returns the rows of its trials, by id.

    Raises InputError where a finished trial's file is damaged.
    """
    results.consolidate(run)
    rows = results.finished_trials(run)
    results.write_manifest(run, {**manifest, "failed_trials": failures(rows), "finished": now()})
    return rows


def failures(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the trials that did not complete, for the manifest: which, how they ended, and why."""
    return [
        {key: row.get(key) for key in ("trial_id", "status", "reason")}
        for row in rows.values()
        if row.get("status") != "completed"
    ]


class _LogFile(logging.FileHandler):
    """A log on a disk that may be full: a line that it does not take is lost, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback. What matters is told by those who need the disk."""

    def close(self) -> None:
        """Close the file, whatever is left to be written."""
        with suppress(OSError):
            super().close()


class _RedactingFormatter(logging.Formatter):
    """Lines of a log, tracebacks too, without the secrets that they may quote."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return redact_sentence(super().format(record))


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Have everything that the package logs, from INFO up, appended to this file."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("slime_ray")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
