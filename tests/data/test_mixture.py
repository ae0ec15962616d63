"""Several data sets as one: shares by weight, one split over all, every row named with its file."""

from collections import Counter

import pytest
from datasets import interleave_datasets
from pydantic import ValidationError

from slime_ray.config.evaluation import Evaluation
from slime_ray.config.settings import Data
from slime_ray.data.corpus import load_corpus, read_mixture
from slime_ray.data.preferences import read_preferences
from slime_ray.data.splits import content_hash
from slime_ray.runs.notes import data_notes

from .rows import plain, write_lines


def answers(name, count):
    """Rows of one data set: every third prompt is one that all of them have."""
    for number in range(count):
        prompt = f"shared {number}" if number % 3 == 0 else f"{name} {number}"
        yield {"prompt": prompt, "chosen": f"{name} good {number}", "rejected": f"{name} bad {number}"}


@pytest.fixture
def files(tmp_path):
    sizes = {"a.jsonl": 90, "b.jsonl": 60, "c.jsonl": 200}
    return [write_lines(tmp_path / name, list(answers(name[0], size))) for name, size in sizes.items()]


def mixture(files, *weights, **more):
    entries = [{"source": str(file)} for file in files]
    for entry, weight in zip(entries, weights, strict=False):
        entry["weight"] = weight
    return Data(train=entries, **more)


def origins(dataset):
    return Counter(row["chosen"][0]["content"][0] for row in dataset)


def test_without_weights_all_pairs_of_all_data_sets_are_taken(files):
    pairs, read = read_mixture(mixture(files))
    assert pairs.to_list() == [row for file in files for row in read_preferences(file).dataset.to_list()]
    assert (read["rows_read"], read["rows_kept"], read["pairs_mixed"]) == (350, 350, 350)
    assert data_notes(read) == []


def test_weights_are_probabilities_of_interleave_datasets(files):
    pairs, read = read_mixture(mixture(files, 3, 1, 4, seed=5))
    sets = [read_preferences(file).dataset.shuffle(seed=5) for file in files]
    options = {"seed": 5, "stopping_strategy": "first_exhausted"}
    assert pairs.to_list() == interleave_datasets(sets, [3 / 8, 1 / 8, 4 / 8], **options).to_list()
    assert max(Counter(row["chosen"][0]["content"] for row in pairs).values()) == 1
    assert data_notes(read) == [
        f"Data: {len(pairs)} of 350 pairs are drawn by the weights of data.train, the others are left out."
    ]
    assert [each["weight"] for each in read["sources"]] == [3, 1, 4]
    assert [each["rows_kept"] for each in read["sources"]] == [90, 60, 200]


@pytest.mark.parametrize("weights", [(), (1, 2, 3)])
def test_a_mixture_follows_from_the_seed(files, weights):
    first, again, other = (read_mixture(mixture(files, *weights, seed=seed))[0] for seed in (0, 0, 1))
    assert content_hash(first) == content_hash(again)
    assert (content_hash(first) == content_hash(other)) is not bool(weights)


@pytest.mark.parametrize("weights", [(), (1, 1, 2)])
def test_no_prompt_is_trained_on_and_held_out_even_across_data_sets(files, weights):
    data = mixture(files, *weights, held_out_pairs=30, sft_fraction=0.3)
    corpus = load_corpus(data, Evaluation(prompts=4, selection_prompts=2))
    parts = [{row["prompt"][0]["content"] for row in part} for part in (corpus.sft, corpus.train, corpus.held_out)]
    assert all(parts[i].isdisjoint(parts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert len(origins(corpus.train)) == len(origins(corpus.held_out)) == 3
    together = Counter(row["prompt"][0]["content"] for row in corpus.held_out)
    assert max(together.values()) > 1, "no prompt of two data sets is held out, so that this test sees nothing"


def test_rows_of_a_mixture_are_named_with_their_file(tmp_path):
    bad = {"chosen": ""}
    first = write_lines(tmp_path / "a.jsonl", [plain(0), plain(1) | bad])
    second = write_lines(tmp_path / "b.jsonl", [plain(2) | bad, plain(3) | {"system": "be brief"}])
    _, read = read_mixture(mixture([first, second]))
    assert [group["rows"] for group in read["rows_skipped"]] == [["a.jsonl line 2"], ["b.jsonl line 1"]]
    assert [group["rows"] for group in read["text_ignored"]] == [["b.jsonl line 2"]]
    assert (read["rows_read"], read["rows_kept"], read["columns_ignored"]) == (4, 2, ["system"])


def test_each_entry_has_its_own_split_or_that_of_the_data():
    entries = [{"source": "org/one"}, {"source": "org/two", "split": "test", "subset": "s", "revision": "r"}]
    one, two = Data(train=entries, split="train_prefs").sources
    assert (one.split, two.split, two.subset, two.revision) == ("train_prefs", "test", "s", "r")
    (single,) = Data(train="org/one", split="x", subset="s", revision="r").sources
    assert (single.source, single.split, single.subset, single.revision) == ("org/one", "x", "s", "r")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "an empty list"),
        ([{"source": "a", "weight": 1}, {"source": "b"}], "b has no weight"),
        ([{"source": "a"}, {"source": "a"}], "a is there twice"),
        ([{"source": "embedded/notes"}], "an embedded task is no part"),
        (["a.jsonl"], r"Write \{source: a.jsonl\}"),
        ([{"source": "a", "weight": 0}], "greater than 0"),
        ([{"source": "a", "weight": float("inf")}], "finite number"),
    ],
)
def test_data_sets_that_cannot_be_mixed_are_refused(train, message):
    with pytest.raises(ValidationError, match=message):
        Data(train=train)


@pytest.mark.parametrize("key", ["subset", "revision"])
def test_what_is_of_a_single_data_set_is_refused_beside_a_list(key):
    with pytest.raises(ValidationError, match=f"{key} is of a single data set"):
        Data(train=[{"source": "a"}], **{key: "main"})
