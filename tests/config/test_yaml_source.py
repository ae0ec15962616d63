"""YAML that a person or a program may have written: read as it looks, or refused within a moment, with its line."""

import json
import math
import re

import numpy as np
import pytest

from slime_ray.api.opening import open_experiment
from slime_ray.config.experiment_file import load_experiment, parse_override
from slime_ray.config.yaml_source import MOST_BYTES, load_yaml
from slime_ray.errors import InputError

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}], k{level}: 1}}\n" for level in range(1, 12)
)


def refusal(tmp_path, content: str | bytes) -> str:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        load_yaml(path)
    return str(refused.value).removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(LAUGHS, "1: with its aliases written out it holds more than", id="nested aliases"),
        pytest.param(MERGES, "with its aliases written out it holds more than", id="nested merges"),
        ("a: 1\nb: &x [*x]\n", "2: nested more than 60 deep, or an alias stands in what it names"),
        ("a: &x\n  b: {c: *x}\n", "an alias stands in what it names"),
        ("a: &x {<<: *x}\n", "1: `<<` needs a mapping"),
        ("a: &x {b: &y {<<: *x}}\n", "1: nested more than 60 deep, or an alias"),
        ("a: 1\nb: {<<: 5}\n", "2: `<<` needs a mapping"),
        ("a: *unknown\n", "1: not valid YAML: found undefined alias"),
        pytest.param("a: 1\nb: " + "[" * 5000 + "]" * 5000, "1: nested more than", id="deep lists"),
        pytest.param("a: 1\nb: " + "[" * 100 + "]" * 100, "2: nested more than", id="lists"),
        pytest.param("a: 1\nb: " + "{c: " * 3000 + "1" + "}" * 3000, "1: nested more than", id="deep mappings"),
        ("a: 1\nb: 'x\0y'\n", r"2: not valid YAML: the character U\+0000"),
        ("a: 1\nb:\n\t- c\n", "3: not valid YAML: found character '\\\\t'"),
        ("a: 1\na: 2\n", "2: the key 'a' stands here twice"),
        ("a: {b: 1, b: 2}\n", "1: the key 'b' stands here twice"),
        ("a: 1\n? [b]\n: 2\n", "2: a key has to be a word"),
        ("a: 1\n---\nb: 2\n", "2: not valid YAML"),
        (
            "a: 1\nb: !!python/object/apply:os.system ['true']\n",
            "2: the tag !!python/object/apply:os.system is not read",
        ),
        ("a: 1\nb: !!set {c, d}\n", "2: the tag !!set is not read"),
        ("a: 1\nb: !!timestamp 2026-01-01\n", "2: b is '2026-01-01' with the tag !!timestamp, which is not read"),
        ("a: 1\nb: !!int x\n", "2: b is 'x' with the tag !!int, which is not read"),
        ("a: 1\nb: !own 5\n", "2: b is '5' with the tag !own, which is not read"),
        ("a: 1\nb: [1, .nan]\n", "2: b.1 is nan. Give a finite number"),
        ("a: 1\nb: -.inf\n", "2: b is -inf. Give a finite number"),
        ("a: 1\nb: 1e999\n", "2: b is inf. Give a finite number"),
        ("a: 1\nb: 9223372036854775808\n", "2: b is 9223372036854775808. Give a whole number of at most"),
        pytest.param("a: 1\nb: " + "9" * 9000, "2: b is 999.*Give a whole number of at most", id="9000 digits"),
        ("a: é\n".encode("latin-1"), r"1: not UTF-8 text \(byte 3\). Save the file as UTF-8"),
        ("a: 1\nb: é\n".encode("utf-16"), r"1: not UTF-8 text \(byte 0\)"),
        pytest.param(b"a: 1\n" + b"#" * MOST_BYTES, "bytes are more than a file of settings may have", id="large"),
        ("- a\n", "1: expected a mapping of keys to values, found list"),
        ("just text", "1: expected a mapping of keys to values, found str"),
        ("", "the file is empty. Start from one that ships"),
    ],
)
def test_what_cannot_be_read_as_it_looks_is_refused_with_its_line(tmp_path, content, message):
    said = refusal(tmp_path, content)
    assert re.search(message, said), said
    assert "\n" not in said


def test_values_are_what_they_look_like(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(
        "\ufefftime: 1:30:00\nday: 2026-01-01\noctal: 010\nhex: 0x10\nlarge: 1_000\nnull: ~\non: yes\noff: 'no'\n1: one\n"
        "largest: 9223372036854775807\nempty:\ntext: 0b1\nversion: 1.10.0\n"
        # PyYAML by itself reads 1e-6 as text.
        "small: 1e-6\nbig: 5E3\nminus: -2e+4\ndot: .5\nword: e5\n",
        encoding="utf-8",
    )
    assert load_yaml(path).data == {
        "time": "1:30:00", "day": "2026-01-01", "octal": "010", "hex": 16, "large": 1000, "null": None, "on": True,
        "off": "no", "1": "one", "largest": 2**63 - 1, "empty": None, "text": "0b1", "version": "1.10.0",
        "small": 1e-6, "big": 5000.0, "minus": -20000.0, "dot": 0.5, "word": "e5",
    }  # fmt: skip


def test_aliases_and_merges_are_written_out_and_keep_the_lines_of_what_is_written(tmp_path):
    path = tmp_path / "aliases.yaml"
    path.write_text("base: &b {x: 1, y: [2, 3]}\nsame: *b\nmore:\n  <<: [*b, {z: 9, x: 0}]\n  y: 4\n")
    source = load_yaml(path)
    assert source.data == {
        "base": {"x": 1, "y": [2, 3]}, "same": {"x": 1, "y": [2, 3]}, "more": {"x": 1, "y": 4, "z": 9}
    }  # fmt: skip
    assert source.place(("more", "y")) == f"{path}:5"
    assert source.place(("more", "x")) == f"{path}:3"


@pytest.mark.parametrize(
    "value", ["&a [*a]", "[" * 500, "!!python/name:os.system", ".nan", "9" * 5000, "'", "{a: 1, a: 2}"]
)
def test_a_value_of_set_is_refused_as_one_in_a_file_is(value):
    with pytest.raises(InputError, match=r"--set training\.updates=.*: the value cannot be read: "):
        parse_override(f"training.updates={value}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("budget: {hours: 1:30:00}", "hours is '1:30:00': input should be a valid number"),
        ("seeds: [0, 2026-01-01]", "seeds.1 is '2026-01-01': input should be a valid integer"),
        ("seeds: [010]", "seeds.0 is '010': input should be a valid integer"),
        ("early_stopping: {rule: no}", "early_stopping.rule is False.*quotes"),
        ("arms: {on: {}, off: {objective: {name: dpo}}}", None),
    ],
)
def test_an_experiment_with_values_of_another_kind_is_refused_or_right(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    arms = "" if line.startswith("arms") else "arms: {slime: {}}\n"
    path.write_text(f"name: first\npreset: arithmetic\n{arms}{line}\n")
    if message is None:
        assert [arm.label for arm in load_experiment(path).arms] == ["on", "off"]
        return
    with pytest.raises(InputError, match=rf"mine\.yaml:4: .*{message}"):
        load_experiment(path)


OWN = {"name": "one", "preset": "arithmetic", "arms": {"slime": {}}}


def test_numbers_of_numpys_are_numbers_wherever_python_gives_them():
    found, text = open_experiment(
        OWN | {"seeds": (np.int64(3),)}, overrides={"training.learning_rate": np.float64(2e-4)}
    )
    assert (found.seeds, found.settings.training.learning_rate) == ([3], 2e-4)
    assert found.model_validate_json(found.model_dump_json()) == found
    assert json.loads(text)["seeds"] == [3]
    assert open_experiment(OWN, seeds=np.arange(2))[0].seeds == [0, 1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"overrides": {"training.weight_decay": math.inf}}, "training.weight_decay is inf"),
        ({"overrides": {"evaluation.decoding.temperature": np.float32("nan")}}, "temperature is nan"),
        ({"overrides": {"seeds": {1, 2}}}, "seeds is a set"),
        ({"seeds": 3}, "seeds is 3: input should be a valid list"),
    ],
)
def test_values_from_python_are_refused_as_those_of_a_file_are(change, complaint):
    with pytest.raises(InputError, match=complaint):
        open_experiment(OWN, **change)
