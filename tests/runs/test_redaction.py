"""No secret is written or printed, whatever it is made of and whoever quotes it."""

import io
import logging
import os
import string
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from slime_ray import cli
from slime_ray.cli.options import Parser
from slime_ray.config.experiment_file import load_experiment
from slime_ray.runs import redaction, results, schema
from slime_ray.runs.folder import lock_run, log_file
from slime_ray.runs.redaction import has_secret, redact, redact_sentence, remember, strip_credentials
from slime_ray.runs.status import read_status, write_status

PASSWORDS = st.text(st.sampled_from(string.printable), min_size=6, max_size=20).filter(
    lambda text: text.strip() == text
)
"""Long enough that no word of a message holds one by chance."""
HIDDEN = "Zq9x"


def secret(password: str) -> str:
    """A password with a mark on both of its sides, by which any piece of it is known again."""
    return f"{HIDDEN}{password}{HIDDEN}"


@pytest.mark.parametrize(
    "key",
    ["token", "HF_TOKEN", "hub.token", "authToken", "api-key", "apiKey", "OPENAI_API_KEY_2", "secret_key", "access_key",
     "password", "db-passwd", "client_secret", "credentials"],
)  # fmt: skip
def test_keys_that_name_secrets_are_masked_however_they_are_spelled(key):
    for value in ("hush", 12345, ["hush"], {"user": "hush"}):
        assert redact({"a": [{key: value}]}) == {"a": [{key: "***"}]}
    # Nothing to hide: whether there is one may be shown.
    for value in (None, "", True):
        assert redact({key: value}) == {key: value}


@pytest.mark.parametrize(
    "key", ["max_tokens", "tokens", "token_ids", "train_tokens", "eos_token", "key", "keyboard", "tokenizer", "monkey"]
)
def test_keys_that_only_sound_like_secrets_are_kept(key):
    assert redact({key: "5"}) == {key: "5"}


def test_secrets_in_a_command_line_and_in_an_address_are_masked():
    command = [
        "slime-ray",
        "sweep",
        "--set",
        "judge.api_key=sk-1",
        "--hub-token",
        "hf_2",
        "--seed",
        "3",
        "--password=p",
    ]
    assert redact(command) == [
        "slime-ray", "sweep", "--set", "judge.api_key=***", "--hub-token", "***", "--seed", "3", "--password=***",
    ]  # fmt: skip
    assert redact("--set=judge.api_key=c2s==") == "--set=judge.api_key=***"
    assert redact("postgresql://me:pw@host/db") == "postgresql://***@host/db"
    assert redact("postgresql://host/db?user=me&password=pw") == "postgresql://host/db?user=***&password=***"
    assert redact("https://host:8000/v1") == "https://host:8000/v1"
    assert redact("s3://bucket/runs?region=eu-west-1") == "s3://bucket/runs?region=eu-west-1"
    assert redact("--study=postgresql://me:p w/d@host/db") == "--study=postgresql://***@host/db"


# ---------------------------------------------------------------------------------------------------------------------
# Addresses


@given(password=PASSWORDS)
def test_no_part_of_a_password_is_left_of_an_address_that_sqlalchemy_accepts(password):
    address = f"postgresql://me:{secret(password)}@host/db"
    # What follows an @ of the password may be no port; nobody connects with it, but it may be printed all the same.
    with suppress(ValueError):
        assert make_url(address).username == "me"
    for value in (address, ["--study", address], f"--study={address}", {"storage": address}):
        assert HIDDEN not in str(redact(value)), redact(value)
    assert HIDDEN not in strip_credentials(address)
    assert has_secret(address)


@given(password=PASSWORDS)
def test_no_part_of_a_secret_is_left_of_a_query(password):
    for name in ("X-Amz-Signature", "sig", "token", "AccessKeyId", "password", "Expires", "x"):
        address = f"s3://bucket/runs?region=eu&{name}={secret(password)}"
        assert HIDDEN not in redact(address), redact(address)
        assert has_secret(address)
    assert redact(f"https://host/x?{HIDDEN}") == "https://host/x?***"


@given(password=PASSWORDS)
def test_an_error_that_quotes_or_splits_an_address_in_use_tells_nothing_of_it(password):
    address = f"postgresql://me:{secret(password)}@host/db"
    remember(address)
    try:
        # As SQLAlchemy takes them apart, and as psycopg then complains.
        parsed = [str(make_url(address).password), str(make_url(address).host)]
    except ValueError:
        parsed = []
    try:
        quoted = [address, repr(address), *parsed, f"{secret(password)}@host"]
        for text in quoted:
            said = redact_sentence(f'could not translate host name "{text}" to address: Name or service not known')
            assert HIDDEN not in said, said
            assert "could not translate host name" in said
    finally:
        redaction._addresses.clear()


@given(password=PASSWORDS.filter(lambda text: not set(text) & set(string.whitespace)))
def test_an_error_that_quotes_an_unknown_address_tells_nothing_of_it(password):
    said = redact_sentence(f"OSError: GET https://me:{secret(password)}@host/x failed; see https://docs.host/y")
    assert HIDDEN not in said
    assert "OSError: GET https://***" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at s3://KEY:SEC/RET@bucket/a and s3://K2:S2@b/c", "at s3://***@bucket/a and s3://***@b/c"),
        ("a://x/y,b://me:pw@host", "a://x/y,b://***@host"),
        ("connection to postgresql://me:two words@host/db failed", "connection to postgresql://***@host/db failed"),
        ("No cluster at http://127.0.0.1:8265: mail me@host", "No cluster at http://127.0.0.1:8265: mail me@host"),
        ("see https://github.com/a/b@v1 and host:80", "see https://github.com/a/b@v1 and host:80"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic ***'}"),
        ("a basic tokenizer without authorization", "a basic tokenizer without authorization"),
        ("dsn host=h password=pw dbname=d", "dsn host=h password=*** dbname=d"),
        ("{'api_key': 'sk-1', 'model': 'm'}", "{'api_key': ***, 'model': 'm'}"),
        ("data.max_tokens=512 row_tokens=3, tokens: 5", "data.max_tokens=512 row_tokens=3, tokens: 5"),
        ("https://host/x?sig=abc%2B&X-Amz-Date=2026", "https://host/x?sig=***&X-Amz-Date=2026"),
    ],
)
def test_prose_keeps_all_that_is_no_secret(text, shown):
    assert redact_sentence(text) == shown


def test_an_error_that_quotes_a_key_of_the_environment_tells_nothing_of_it(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-very-secret")
    monkeypatch.setenv("SLIME_RAY_STUDY", "postgresql://me:pass/word@host/db")
    said = redact_sentence("Incorrect API key provided: sk-very-secret. authentication failed: pass/word")
    assert said == "Incorrect API key provided: ***. authentication failed: ***"


# ---------------------------------------------------------------------------------------------------------------------
# Every place that writes

ADDRESS = f"postgresql://me:{HIDDEN}/a b@c{HIDDEN}@host/db"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run with its study in a database, begun with the address on its command line."""
    source = tmp_path / "first.yaml"
    source.write_text("name: first\npreset: arithmetic\narms: {slime: {}}\n")
    monkeypatch.setattr(sys, "argv", ["slime-ray", "sweep", str(source), "--study", ADDRESS])
    run = tmp_path / "runs" / "first"
    with lock_run(run, load_experiment(source), source=source, seed=0, start="fresh", study=ADDRESS) as manifest:
        results.write_manifest(run, manifest)
        with log_file(run / "log.txt"):
            try:
                raise OSError(f"connection to {ADDRESS} failed")
            except OSError:
                logging.getLogger("slime_ray.sweep").exception("failed at %s", ADDRESS)
        write_status(run, finished=0, total=1, trials={"a": {"doing": f"waiting for storage ({ADDRESS})"}})
        row = results.trial_row(trial_id="a", status="failed", reason=f"OSError: {ADDRESS}", overrides={})
        results.write_trial(run, row=row, answers=[], curves=[])
    return run


def test_no_file_of_a_run_holds_a_password_and_what_names_a_user_is_its_owners_alone(run):
    texts = {file.name: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert {"manifest.json", "log.txt", "status.json", "trial.json"} <= texts.keys()
    assert [name for name, text in texts.items() if HIDDEN.encode() in text] == []
    assert b"connection to postgresql://***" in texts["log.txt"]
    assert read_status(run).trials["a"]["doing"].startswith("waiting for storage (postgresql://***")
    assert (run / "manifest.json").stat().st_mode & 0o777 == 0o600


def test_a_file_without_an_address_is_readable_as_others_are(tmp_path):
    mask = os.umask(0o022)
    try:
        results.write_manifest(tmp_path, {"schema": schema.RUN_SCHEMA, "base_url": "https://api.openai.com/v1"})
        assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_commands_do_not_repeat_a_password(tmp_path, capsys):
    for command in (["status", f"s4://me:{HIDDEN}/x@bucket/runs"], ["sweep", "absent.yaml", "--study", ADDRESS]):
        assert cli.main(command) == 2
        assert HIDDEN not in "".join(capsys.readouterr())
    with pytest.raises(SystemExit):
        Parser(prog="slime-ray").parse_args([ADDRESS])
    assert HIDDEN not in capsys.readouterr().err


def test_an_error_that_nobody_expected_is_printed_without_a_password(monkeypatch):
    from slime_ray import __main__ as program

    monkeypatch.setattr(sys, "stderr", printed := io.StringIO())
    error = OSError(f"cannot reach {ADDRESS}")
    program._without_secrets(type(error), error, None)
    assert "OSError: cannot reach postgresql://***" in printed.getvalue()
    assert HIDDEN not in printed.getvalue()
