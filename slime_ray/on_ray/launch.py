"""Submitting a sweep to the job server of a cluster, and following it: `slime-ray launch`.

The experiment travels as one file. Its driver then runs on the head like any `slime-ray sweep --auto-resume`. So the
same launch, given again, follows a sweep that runs, resumes one that ended early, and leaves one that is done alone.
"""

import asyncio
import hashlib
import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import ray

from slime_ray.config.experiment import Experiment, with_values
from slime_ray.config.settings import Settings
from slime_ray.errors import InputError, RunError
from slime_ray.on_ray.connection import last_line
from slime_ray.runs.inputs import files_of
from slime_ray.runs.redaction import has_secret, strip_credentials
from slime_ray.runs.store import is_url, join_address

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 10.0
RECONNECT_SECONDS = 60.0
STOP_SECONDS = 150
"""What `ray job stop` gives a sweep to write its checkpoints, before it ends the process."""
RUN, CONTENT = "slime_ray_run", "slime_ray_content"


@dataclass(frozen=True)
class Submission:
    """A sweep as the cluster is to run it. text: the experiment's YAML; options: of `slime-ray sweep`, after --name."""

    name: str
    text: str
    storage: str
    options: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        """The run's folder, which is what two launches of one sweep have in common."""
        return join_address(self.storage, self.name)

    @property
    def display_address(self) -> str:
        """The same for people, without what may be secret."""
        return strip_credentials(self.run) if is_url(self.storage) else self.run

    @property
    def content(self) -> str:
        """Hash of all that decides what is computed."""
        return hashlib.sha256("\0".join([self.text, *self.options]).encode()).hexdigest()

    def job(self, attempt: int) -> str:
        """Return the id of the nth submission. The server refuses one that it knows, so two launches start one job."""
        key = hashlib.sha256(f"{self.run}\0{self.content}".encode()).hexdigest()[:8]
        return f"slime-ray-{self.name}-{key}" + (f"-{attempt}" if attempt > 1 else "")

    @property
    def entrypoint(self) -> str:
        """The command of its driver, run in a folder that holds the experiment."""
        command = ["slime-ray", "sweep", "experiment.yaml", "--name", self.name, "--storage", self.storage]
        return shlex.join([*command, "--auto-resume", *self.options])


def launch(experiment: Experiment, submission: Submission, *, address: str, out: TextIO, follow: bool = True) -> None:
    """Start the sweep on the cluster unless it runs there or is done, and follow its log until it ends.

    Raises InputError where nothing could be submitted, RunError where the sweep failed or cannot be followed any more.
    """
    _refuse_local_paths(experiment)
    if not (PurePosixPath(submission.storage).is_absolute() or is_url(submission.storage)):
        raise InputError(
            f"--storage {submission.storage}: give the absolute path of a folder that all nodes of the cluster share, "
            "or an address such as s3://bucket/runs."
        )
    if has_secret(submission.storage):
        raise InputError(
            f"--storage {strip_credentials(submission.storage)}: whoever sees the cluster's dashboard would see the "
            "secret in this address. Give it without, and what it grants to the nodes' own environment."
        )
    client = job_client(address)
    job, status = _find(client, submission)
    if status == "SUCCEEDED":
        print(
            f"{submission.name} is done (job {job}). Its results are in {submission.display_address} on the cluster.",
            file=out,
        )
        return
    if status is None:
        _submit(client, submission, job)
        print(f"Submitted {job}.", file=out)
    else:
        print(f"{submission.name} is running (job {job}).", file=out)
    stop = f"ray job stop {job} --address {address}"
    if not follow:
        print(f"Follow it with the same command, end it with `{stop}`.", file=out)
        return
    try:
        status, message = asyncio.run(_follow(client, job, out))
    except KeyboardInterrupt:
        print(f"\nThe sweep goes on. Follow it with the same command, end it with `{stop}`.", file=out)
        return
    if status != "SUCCEEDED":
        raise RunError(
            f"Job {job} {status.lower()}: {message} What finished is in {submission.display_address} on the cluster; "
            "the same command goes on from there."
        )


def job_client(address: str) -> Any:
    """Connect to the job server at an address of the form http://host:8265. Raises InputError within seconds."""
    import requests

    try:
        import aiohttp  # noqa: F401  What `ray[default]` brings and the job client needs.
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError("`slime-ray launch` needs Ray's job client: pip install 'slime-ray[cluster]'.") from None
    for logger_name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(logger_name).setLevel(logging.WARNING)
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"--address {address}: give the address of Ray's dashboard, such as {DEFAULT_ADDRESS}; `ray dashboard "
            "cluster.yaml` opens a tunnel to it."
        )
    no_answer = (
        f"No Ray dashboard answers at {address}: %s. Open the tunnel (`ray dashboard cluster.yaml`), or correct "
        "--address."
    )
    no_dashboard = f"What answers at {address} is no Ray dashboard. Correct --address."
    try:
        # Ray's client itself would wait for an answer for ever. Whether a token is asked for does not matter yet.
        answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)
        if answer.status_code not in (200, 401, 403):
            raise InputError(no_dashboard)
        with _ignore_address_variables():
            client = JobSubmissionClient(address)
        # A cluster that asks for a token tells its version to the client alone, which checks that it can talk to it.
        version = str(answer.json()["ray_version"]) if answer.ok else ray.__version__
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"The Ray cluster at {address} refused this client's token. Give it the cluster's: RAY_AUTH_MODE=token, "
            "and the token in RAY_AUTH_TOKEN or in the file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token "
            "otherwise)."
        ) from None
    except (requests.ConnectionError, requests.Timeout, ConnectionError) as error:
        raise InputError(no_answer % _reason(error)) from None
    except (requests.RequestException, ValueError, LookupError, RuntimeError):
        raise InputError(no_dashboard) from None
    if version.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise InputError(
            f"The cluster at {address} runs Ray {version}, and this environment has {ray.__version__}. Use the image "
            "that cluster.yaml names, or install the cluster's version here."
        )
    return client


@contextmanager
def _ignore_address_variables() -> Iterator[None]:
    """Hide Ray's addresses in the environment, which its client would prefer to the one that it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    variables = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(variables)


def _reason(error: BaseException) -> str:
    """Return the message of the innermost cause, which has the socket's own words."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refuse_local_paths(experiment: Experiment) -> None:
    """Raise InputError for paths of this machine, which the cluster does not have."""
    for changes in ({}, *(arm.set for arm in experiment.arms)):
        values = with_values(experiment.base, changes)
        written = json.dumps(values)
        for setting, path in files_of(Settings.model_validate(values)).items():
            # A file that is here is known by its absolute path, whatever the experiment says.
            if json.dumps(str(path)) not in written:
                raise InputError(
                    f"{setting} is written as a path of this machine, {path}. Put it on the storage that the nodes "
                    "share, and give its absolute path there."
                )
    for run in experiment.search.earlier_runs if experiment.search else []:
        if not (Path(run.run).is_absolute() or is_url(run.run)):
            raise InputError(
                f"start_from: {run.run} is a path of this machine. Give the run's address, or its absolute path on the "
                "storage that the nodes share."
            )


def _find(client: Any, submission: Submission) -> tuple[str, str | None]:
    """Find the sweep's job and its status; where there is none, the id for a new one, and None."""
    jobs = [job for job in _ask(client.list_jobs) if (job.metadata or {}).get(RUN) == submission.run]
    for job in jobs:
        if not job.status.is_terminal():
            if job.metadata.get(CONTENT) != submission.content:
                raise InputError(
                    f"Job {job.submission_id} is at work on {submission.display_address} with another experiment or "
                    "other options. Wait for it or stop it, or give this one another name with --name."
                )
            return job.submission_id, str(job.status.value)
    same_content = [job for job in jobs if job.metadata.get(CONTENT) == submission.content]
    succeeded = [job for job in same_content if job.status.value == "SUCCEEDED"]
    return (succeeded[-1].submission_id, "SUCCEEDED") if succeeded else (submission.job(len(same_content) + 1), None)


def _submit(client: Any, submission: Submission, job: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "experiment.yaml").write_text(submission.text, encoding="utf-8")
        environment = {
            "working_dir": folder,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"},
        }
        try:
            client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=job,
                runtime_env=environment,
                metadata={RUN: submission.run, CONTENT: submission.content},
            )
        except RuntimeError as error:
            # Another launch of the same sweep may have been faster by a moment.
            if "already" not in str(error):
                raise InputError(f"The cluster refused the job: {last_line(error)}") from None


def _ask(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (RuntimeError, OSError) as error:
        raise InputError(f"The cluster's job server did not answer: {last_line(error)}") from None


async def _follow(client: Any, job: str, out: TextIO) -> tuple[str, str]:
    """Print the job's log until it ends, over broken connections too. The server sends a log from its start."""
    printed_length, silent_since = 0, time.monotonic()
    while True:
        received_length = 0
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, printed_length - received_length) :]
                received_length += len(text)
                printed_length = max(printed_length, received_length)
                silent_since = time.monotonic()
                print(new, end="", flush=True, file=out)
            info = await asyncio.to_thread(client.get_job_info, job)
            silent_since = time.monotonic()
            if info.status.is_terminal():
                return str(info.status.value), " ".join((info.message or "").split())[:300]
        except (RuntimeError, OSError) as error:
            if time.monotonic() - silent_since > RECONNECT_SECONDS:
                raise RunError(
                    f"The connection broke: {_reason(error)}. The sweep goes on without it; the same command follows "
                    "it again."
                ) from None
        await asyncio.sleep(1)


def sweep_options(*, trials: int | None, seeds: str | None, seed: int, overrides: Sequence[str]) -> list[str]:
    """Return the options that decide what a launched sweep computes, in one order."""
    values: Mapping[str, object] = {"--trials": trials, "--seeds": seeds, "--seed": seed or None}
    options = [word for flag, value in values.items() if value is not None for word in (flag, str(value))]
    return options + [word for text in overrides for word in ("--set", text)]
