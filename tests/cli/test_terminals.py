"""Commands are done whatever a terminal can show, and whether or not there is one."""

import io
import sys

import pytest

from slime_ray import cli


@pytest.mark.parametrize(
    "command",
    [["reference"], ["presets"], ["spaces"], ["presets", "diff", "paper", "released-exact"], ["check", "demo"]],
)
def test_a_command_replaces_what_the_terminal_cannot_show(monkeypatch, command):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert cli.main(command) == 0
    shown.flush()
    text = shown.buffer.getvalue().decode("ascii")
    assert len(text) > 20


def test_ranges_and_signs_stay_readable(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    cli._prepare_streams()
    print("0.41–0.53 ± 2 × 3 … 名", flush=True)
    assert shown.buffer.getvalue() == b"0.41-0.53 +/- 2 x 3 ... ?\n"


def test_an_error_names_what_the_terminal_cannot_show(monkeypatch, tmp_path):
    told = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", told)
    assert cli.main(["status", str(tmp_path / "läuft–名")]) == 2
    told.flush()
    assert b"l?uft-?: there is no such run" in told.buffer.getvalue()


def test_a_command_without_any_terminal_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["presets"]) == 0
    sys.stdout.close()
