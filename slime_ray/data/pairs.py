"""Pairs as token ids: one of them, and a file of many that is read where it lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slime_ray.errors import InputError

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
PAIRS_FORMAT = 2
"""Raised when the file of pairs, or what of the data goes into it, changes, so that older ones are made again."""


@dataclass(frozen=True)
class TokenPair:
    """Token ids of one pair, with the reference's summed log-probabilities (nats) where an objective needs them.

    An SFT example has no rejected ones.
    """

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int] = ()
    reference_chosen: float = math.nan
    reference_rejected: float = math.nan


def write_pairs(path: Path, table: pa.Table) -> None:
    """Write the token ids of `table` (ID_COLUMNS, lists of int32) as an Arrow file, which `PairFile` reads."""
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def map_pairs(path: Path) -> pa.Table:
    """The columns of a file of pairs. Their memory is the file's, mapped; none of it is read before it is used.

    Raises InputError for a file that was cut short: its end says where all else is.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        raise InputError(f"{path} is cut short. Remove its folder and resume: the stage is made again.") from None


class PairFile(Sequence[TokenPair]):
    """The pairs of a file that `write_pairs` wrote. Each is made when it is asked for, and a slice is a list of them.

    It is pickled as the names of its files.
    """

    def __init__(self, path: Path, reference: Path | None = None):
        """Map the file.

        Args:
            path: What `write_pairs` wrote.
            reference: An .npz of `chosen` and `rejected`, (pairs,) float64 each: the reference's summed
                log-probabilities in nats.
        """
        self.path, self.reference = path, reference
        table = map_pairs(path)
        self._columns = [table[name] for name in ID_COLUMNS]
        self._logps: list[np.ndarray] = []
        if reference is not None:
            with np.load(reference, allow_pickle=False) as sums:
                self._logps = [sums["chosen"], sums["rejected"]]
            if any(len(each) != len(self) for each in self._logps):
                raise ValueError(f"{reference} is not of the {len(self)} pairs of {path}")

    def __len__(self) -> int:
        return len(self._columns[0])

    @property
    def longest(self) -> int:
        """Tokens of the longest pair, its prompt once; 0 without pairs."""
        lengths = sum(pc.list_value_length(column).to_numpy() for column in self._columns)
        return int(np.max(lengths, initial=0))

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        ids = [column[index].values.to_numpy().tolist() for column in self._columns]
        return TokenPair(*ids, *(float(each[index]) for each in self._logps))

    def __reduce__(self) -> tuple[Any, ...]:
        return PairFile, (self.path, self.reference)
