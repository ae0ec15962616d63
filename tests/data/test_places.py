"""What is said of a file that is not there."""

import pytest

from slime_ray.data.places import missing_file, whereabouts
from slime_ray.data.preferences import read_preferences
from slime_ray.errors import InputError


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
