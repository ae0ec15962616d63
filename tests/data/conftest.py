"""What tests of the data use more than once: tokenizers, and the embedded tasks one by one."""

import pytest
from datasets import Dataset

from slime_ray.data.tasks import TASKS

from .chat import FAMILIES, letter_by_letter, make

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def said(dataset: Dataset, column: str) -> list[str]:
    """The first message of every row."""
    return [messages[0]["content"] for messages in dataset[column]]


@pytest.fixture(scope="session")
def tokenizers():
    """One of each family, by name."""
    return {family: make(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def letters():
    """One token for each letter."""
    return letter_by_letter()
