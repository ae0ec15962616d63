"""Where preference data comes from: every kind of source gives the same pairs, or says why it cannot be read."""

import csv
import gzip
import json

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_ray.data import sources
from slime_ray.data.places import missing_file, whereabouts
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import InputError

from .rows import as_pair, plain, skipped, ultrafeedback, write_lines

# Sources


def jsonl_file(folder):
    return write_lines(folder / "pairs.jsonl", [plain(number) for number in range(3)])


def json_array(folder):
    (folder / "pairs.json").write_text(json.dumps([plain(number) for number in range(3)], indent=1))
    return folder / "pairs.json"


def json_lines_named_json(folder):
    return write_lines(folder / "pairs.json", [plain(number) for number in range(3)])


def jsonl_of_windows(folder):
    lines = "\r\n".join(json.dumps(plain(number)) for number in range(3))
    (folder / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    return folder / "pairs.jsonl"


def parquet_file(folder):
    Dataset.from_list([ultrafeedback(number) for number in range(3)]).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def csv_file(folder, name="pairs.csv", open_=open):
    """As pandas writes it: a line break, quotes and the separator in cells, a number in a further column."""
    with open_(folder / name, "wt", encoding="utf-8-sig", newline="") as file:
        write = csv.writer(file, delimiter="\t" if ".tsv" in name else ",")
        write.writerows([["prompt", "rating of it", "chosen", "rejected"]])
        write.writerows([each["prompt"], 0.5, each["chosen"], each["rejected"]] for each in map(plain, range(3)))
    return folder / name


def tsv_file(folder):
    return csv_file(folder, "pairs.tsv")


def packed_csv(folder):
    return csv_file(folder, "pairs.csv.gz", gzip.open)


def packed_jsonl(folder):
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(jsonl_file(folder).read_bytes()))
    return folder / "pairs.jsonl.gz"


def packed_json(folder):
    (folder / "pairs.json.gz").write_bytes(gzip.compress(json_array(folder).read_bytes()))
    return folder / "pairs.json.gz"


def csv_of_json_text(folder):
    """As `Dataset.to_csv` of message lists through json.dumps."""
    rows = [{name: json.dumps(value) for name, value in as_pair(number).items()} for number in range(3)]
    Dataset.from_list(rows).to_csv(folder / "pairs.csv")
    return folder / "pairs.csv"


def saved_dataset(folder):
    Dataset.from_list([ultrafeedback(number) for number in range(3)]).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_splits(folder):
    rows = Dataset.from_list([as_pair(number) for number in range(3)])
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(folder / "saved")
    return folder / "saved"


def folder_of_jsonl(folder):
    write_lines(folder / "a.jsonl", [plain(0)])
    write_lines(folder / "b.jsonl", [plain(1), plain(2)])
    return folder


@pytest.mark.parametrize(
    "make",
    [
        jsonl_file, json_array, json_lines_named_json, jsonl_of_windows, parquet_file, saved_dataset, saved_splits,
        folder_of_jsonl, csv_file, tsv_file, packed_csv, packed_jsonl, packed_json, csv_of_json_text,
    ],
)  # fmt: skip
def test_every_kind_of_source_gives_the_same_pairs(tmp_path, make):
    assert read_preferences(str(make(tmp_path))).dataset.to_list() == [as_pair(number) for number in range(3)]


def test_a_csv_file_is_read_as_datasets_reads_it(tmp_path):
    texts = ['a "quoted" cell, with a comma', "two\nlines\r\nor three", "nan", "\u2028 and \x85", "x" * 200_000]
    rows = [{"prompt": text, "chosen": f"{text} 1", "rejected": f"{text} 2", "note": "n"} for text in texts]
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        write = csv.DictWriter(file, list(rows[0]))
        write.writeheader()
        write.writerows(rows)
    options = {"keep_default_na": False, "cache_dir": tmp_path / "cache"}
    read = Dataset.from_csv(str(tmp_path / "pairs.csv"), **options)
    assert read.to_list() == rows
    loaded = read_preferences(tmp_path / "pairs.csv")
    assert loaded.dataset.to_list() == read_preferences(write_lines(tmp_path / "p.jsonl", rows)).dataset.to_list()
    assert [group.rows[:3] for group in loaded.report.text_ignored] == [("line 2", "line 3", "line 10")]


def ultrafeedback_folder(folder):
    """Two splits of the data set's own layout on the Hub."""
    (folder / "data").mkdir()
    for split, first in (("train_prefs", 0), ("test_prefs", 10)):
        rows = Dataset.from_list([ultrafeedback(number) for number in range(first, first + 2)])
        rows.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def test_a_downloaded_ultrafeedback_folder_is_read_by_split(tmp_path):
    loaded = read_preferences(ultrafeedback_folder(tmp_path), split="test_prefs")
    assert loaded.dataset.to_list() == [as_pair(10), as_pair(11)]
    assert loaded.report.columns_ignored == (
        "messages", "prompt_id", "score_chosen", "score_rejected",
    )  # fmt: skip


def test_a_data_set_from_the_hub_is_read_by_split(tmp_path, monkeypatch):
    # `load_dataset` reads a folder as it reads a repository, so this is the Hub's path without the network.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository").mkdir()
    folder = str(ultrafeedback_folder(tmp_path / "repository"))
    found = sources._from_hub(folder, split="train_prefs", subset=None, revision=None)
    assert [row for _, row in sources._arrow_rows(found, folder)][1]["prompt"] == "question 1"
    with pytest.raises(InputError, match=r"no split 'train'\. It has .*train_prefs"):
        sources._from_hub(folder, split="train", subset=None, revision=None)


def test_rows_of_a_folder_are_named_by_file_and_line(tmp_path):
    write_lines(tmp_path / "a.jsonl", [plain(0)])
    write_lines(tmp_path / "b.jsonl", [plain(1), b"{"])
    assert skipped(read_preferences(tmp_path).report) == {"not JSON": ("b.jsonl line 2",)}


# What cannot be read at all


def test_a_missing_file_is_named(tmp_path):
    for source in (tmp_path / "none.jsonl", str(tmp_path / "none"), "./none", "none.jsonl"):
        with pytest.raises(InputError, match=r"none.*no such file or folder"):
            read_preferences(source)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs"])
def test_a_link_that_leads_nowhere_is_named_as_one(tmp_path, name, monkeypatch):
    (tmp_path / name).symlink_to("gone.jsonl")
    monkeypatch.chdir(tmp_path)
    for source in (name, str(tmp_path / name)):
        said = missing_file(source)
        assert said is not None
        assert said.endswith(f"{name} is a link to gone.jsonl, which is not there")
        with pytest.raises(InputError, match=r"is a link to gone\.jsonl, which is not there\. Check the path"):
            read_preferences(source)


def test_a_link_above_the_file_is_named(tmp_path):
    (tmp_path / "data").symlink_to(tmp_path / "gone")
    assert "data is a link to" in whereabouts(tmp_path / "data" / "pairs.jsonl")


def test_a_file_of_a_similar_name_is_offered_but_no_link_to_nowhere(tmp_path):
    (tmp_path / "pair.jsonl").symlink_to("gone")
    assert missing_file(str(tmp_path / "pairs.jsonl")) == ""
    (tmp_path / "pairz.jsonl").touch()
    assert missing_file(str(tmp_path / "pairs.jsonl")) == f"; {tmp_path / 'pairz.jsonl'} is"
    assert missing_file(str(tmp_path / "pairz.jsonl")) is None
    assert missing_file("owner/name") is None


def test_a_hub_id_that_cannot_be_reached_is_an_input_error(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HuggingFaceH4/ultrafeedback_binarized: no such file or folder here"):
        read_preferences("HuggingFaceH4/ultrafeedback_binarized", split="train_prefs")


def test_an_unknown_split_says_which_there_are(tmp_path):
    ultrafeedback_folder(tmp_path)
    with pytest.raises(InputError, match=r"no split 'train'\. It has test_prefs, train_prefs"):
        read_preferences(tmp_path)
    with pytest.raises(InputError, match=r"no split 'test'\. It has train"):
        read_preferences(jsonl_file(tmp_path), split="test")


def test_an_empty_source_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty.json").write_text("[]")
    Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}).to_parquet(tmp_path / "empty.parquet")
    for name in ("empty.jsonl", "empty.json", "empty.parquet"):
        with pytest.raises(InputError, match="there are no rows"):
            read_preferences(tmp_path / name)


def test_a_source_without_one_usable_row_is_refused_with_the_reasons(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", [plain(0) | {"chosen": ""}, b"{"])
    with pytest.raises(InputError, match=r"none of its 2 rows can be used: 1 empty completion \(line 1\); 1 not JSON"):
        read_preferences(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", b"[{]", r"data.json:1: not JSON: .* at column 3"),
        ("data.json", b'["\xff"]', "not UTF-8 at byte 2"),
        ("data.json", b"[" * 100_000, "not JSON that can be read"),
        ("data.jsonl", b"[" * 100_000, "none of its 1 rows"),
        ("data.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("data.xlsx", b"PK", "files of this kind are not read"),
        ("data.parquet.gz", b"", "files of this kind are not read"),
        ("data.jsonl.gz", b"{}", "data.jsonl.gz: cannot be unpacked: Not a gzipped file"),
        ("data.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "data.jsonl.gz: cannot be unpacked"),
        ("data.csv", b"", "data.csv: there are no rows"),
        ("data.csv", b"prompt,chosen,rejected\n", "data.csv: there are no rows"),
        ("data.csv", b"question,chosen\nu,a\n", "the columns are chosen, question, .*question to prompt"),
        ("data.csv", b"prompt,chosen,rejected,chosen\n", "the column chosen is there twice"),
        ("data.csv", b'prompt,chosen,rejected\n"u\nv",a,b\nu,a,b,c\n', r"data.csv:4: the row has 4 cells.* 3 columns"),
        ("data.tsv", b"prompt\tchosen\trejected\nu\ta\n", "data.tsv:2: the row has 2 cells"),
        ("data.csv", b'prompt,chosen,rejected\nu,a,b\nu,"a,b\n', "data.csv:3: no row that can be read"),
        ("data.csv", b"prompt,chosen,rejected\nu,a,b\nu,caf\xe9,b\n", "data.csv:3: not UTF-8"),
    ],
)
def test_an_unreadable_file_is_an_input_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_preferences(tmp_path / name)


def test_unreadable_folders_are_input_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data set can be made out"):
        read_preferences(tmp_path / "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/state.json").write_text("{")
    with pytest.raises(InputError, match="save_to_disk wrote, but it cannot be read"):
        read_preferences(tmp_path / "half")
    source = saved_dataset(tmp_path)
    arrow = next(source.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_preferences(source)


@pytest.mark.parametrize("option", [{"subset": "default"}, {"revision": "main"}])
def test_options_that_make_no_sense_are_refused(tmp_path, option):
    with pytest.raises(InputError, match=next(iter(option))):
        read_preferences(jsonl_file(tmp_path), **option)


@settings(max_examples=150)
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["json", "jsonl", "parquet", "csv", "tsv", "csv.gz"]))
def test_no_content_of_a_file_gives_anything_but_an_input_error(tmp_path_factory, content, suffix):
    source = tmp_path_factory.mktemp("any") / f"data.{suffix}"
    source.write_bytes(content)
    with pytest.raises(InputError):
        read_preferences(source)
