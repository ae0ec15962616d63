"""The manners of the command line: help that teaches, completion, exit codes."""

import argparse
import subprocess

import pytest

from slime_ray import cli


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command's parser by its name."""
    [found] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def test_every_command_says_what_it_is_for_and_every_option_what_it_does():
    parser = cli.make_parser()
    [listed] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helped = {action.dest for action in listed._choices_actions if action.help}
    assert set(listed.choices) == helped
    silent = [
        f"{name} {action.dest}"
        for name, command in commands(parser).items()
        for action in command._actions
        if not isinstance(action, argparse._SubParsersAction) and not action.help and action.dest != "shell"
    ]
    assert silent == []


def test_the_help_shows_examples_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "slime-ray sweep  my.yaml --name first" in shown
    assert "Exit codes: 0 done, 1 a run ended early or failed, 2 something given was wrong" in shown


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["slime-ray", "swe"], {"sweep"}),
        (["slime-ray", "sweep", "dem"], {"demo"}),
        (["slime-ray", "sweep", "demo", "--res"], {"--resume"}),
        (["slime-ray", "bench", "sta"], {"statistics"}),
    ],
)
def test_bash_completes_commands_options_and_experiments(tmp_path, capsys, words, wanted):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    asked = " ".join(words)
    ask = (
        f"source {script}; COMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; _shtab_slime_ray; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.split()) == wanted, done.stderr


def test_a_wrong_command_line_is_exit_code_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["swep"])
    assert "invalid choice: 'swep'" in capsys.readouterr().err
