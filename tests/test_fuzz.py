"""Broken input ends in a sentence: thousands of mutated experiments and data files, none of which may raise anything else."""

import json
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from slime_ray.search_spaces import shipped_spaces

from slime_ray.config.experiment_file import load_experiment
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import SlimeRayError

pytestmark = pytest.mark.slow

VALUES = [
    "", "~", "null", "true", "no", "-1", "0", "1e400", ".nan", "-.inf", "1:30:00", "2026-01-01", "[]", "{}", "[[1], 2]",
    "{a: {b: c}}", "!!python/object:os.system x", "*anchor", "&anchor x", "<<: 3", "'", '"', "\t", "\x00", "é\u2028", "0x1F",
    "9" * 400, "x" * 3000, "../../etc", "log_uniform: [0, 1]", "choice: []", "uniform: [3, 1]",
]  # fmt: skip


def mutated_yaml(text: str, chance: random.Random) -> str:
    """Return `text` after a few changes of lines, values and characters."""
    lines = text.splitlines()
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(lines))
        line = lines[at]
        match chance.randrange(8):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                key, colon, _ = line.partition(":")
                lines[at] = f"{key}{colon} {chance.choice(VALUES)}"
            case 3:
                lines[at] = " " * chance.randint(0, 5) + line.lstrip()
            case 4:
                place = chance.randint(0, len(line))
                lines[at] = line[:place] + chance.choice(string.printable + "é…") + line[place:]
            case 5:
                lines[at] = line.replace(":", chance.choice([" :", "", "::", ": -", ": ["]), 1)
            case 6:
                lines[at] = line[: chance.randint(0, len(line))]
            case 7:
                other = chance.choice(lines).partition(":")[2]
                lines[at] = line.partition(":")[0] + ":" + other
    return "\n".join(lines)


def mutated_value(chance: random.Random, depth: int = 0) -> object:
    """Return something that a cell of a data file should not hold."""
    simple = [
        None,
        True,
        0,
        -1.5,
        1e308,
        "",
        " ",
        "x" * 2000,
        "\ud800".encode("utf-16", "surrogatepass").hex(),
        "\u0000",
        "[]",
        "{",
    ]
    if depth > 2 or chance.random() < 0.6:
        return chance.choice(simple)
    inner = [mutated_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    keys = ["role", "content", "type", "text", "value", "from"]
    return inner if chance.random() < 0.5 else {chance.choice(keys): value for value in inner}


def mutated_rows(chance: random.Random) -> bytes:
    """Return a JSON lines file of preference pairs of which some rows, keys or bytes are broken."""
    message = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows: list[dict[str, object]] = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."}
        if chance.random() < 0.5
        else {
            "prompt": message("user", f"{n}?"),
            "chosen": message("assistant", "a"),
            "rejected": message("assistant", "b"),
        }
        for n in range(6)
    ]
    for _ in range(chance.randint(1, 4)):
        row = chance.choice(rows)
        key = chance.choice(["prompt", "chosen", "rejected", "messages", "system", "images", "tools", "id"])
        match chance.randrange(4):
            case 0:
                row.pop(key, None)
            case 1:
                row[key] = mutated_value(chance)
            case 2:
                row[key] = json.dumps(row.get(key))
            case 3:
                row[key] = [row.get(key), mutated_value(chance)]
    data = "\n".join(json.dumps(row) for row in rows).encode()
    if chance.random() < 0.3:
        at = chance.randrange(len(data))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + chance.randint(0, 3) :]
    return data


def ends_in_a_sentence(work: Callable[[], object], case: str) -> None:
    """Run `work`, which may succeed or end in an error of ours that says something."""
    said = "it loads"
    try:
        work()
    except SlimeRayError as error:
        said = str(error).strip()
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\n\n{case}")
    assert said, case


def test_a_mutated_experiment_loads_or_ends_in_a_sentence(tmp_path: Path) -> None:
    texts = [path.read_text() for path in shipped_spaces().values()]
    chance = random.Random(0)
    file = tmp_path / "e.yaml"
    for _ in range(2_500):
        text = mutated_yaml(chance.choice(texts), chance)
        file.write_text(text, encoding="utf-8")
        ends_in_a_sentence(lambda: load_experiment(file), text)


def test_a_mutated_data_file_is_read_or_ends_in_a_sentence(tmp_path: Path) -> None:
    chance = random.Random(0)
    file = tmp_path / "pairs.jsonl"
    for _ in range(1_500):
        data = mutated_rows(chance)
        file.write_bytes(data)
        strict = chance.random() < 0.3
        ends_in_a_sentence(
            lambda: read_preferences(str(file), split="train", subset=None, strict=strict, revision=None),  # noqa: B023
            repr(data),
        )
