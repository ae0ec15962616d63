"""The table of GPUs: what each computes, holds and costs an hour. It ships with examples and is the user's to edit."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from slime_ray.config.complaints import explain
from slime_ray.config.strict import Strict
from slime_ray.config.yaml_source import YamlSource, load_yaml
from slime_ray.errors import InputError

SHIPPED = Path(__file__).with_name("prices.yaml")


Amount = Annotated[float, Field(gt=0)]


class GpuEntry(Strict):
    """One kind of GPU, as a table of prices has it.

    fp32_tflops, bf16_tflops: peak, in 1e12 operations a second; None where it does not compute in bfloat16. memory_gib:
    what programs see. tb_per_s: bandwidth of its memory, in 1e12 bytes a second.
    """

    fp32_tflops: Amount
    memory_gib: Amount
    tb_per_s: Amount
    usd_per_hour: Annotated[float, Field(ge=0)]
    bf16_tflops: Amount | None = None


class Gpu(GpuEntry):
    """The same with its name, and the file and line where its price stands."""

    name: str
    place: str

    def peak(self, dtype: str) -> float | None:
        """FLOP/s in `bfloat16` or `float32`; None where it does not compute in that."""
        tflops = self.bf16_tflops if dtype == "bfloat16" else self.fp32_tflops
        return None if tflops is None else tflops * 1e12


class PriceTable(Strict):
    """A file of prices."""

    gpus: Annotated[dict[str, GpuEntry], Field(min_length=1)]
    date: str | None = None


@dataclass(frozen=True)
class GpuPrices:
    """The GPUs by name, and the date of the prices as the last file to name one says it."""

    gpus: Mapping[str, Gpu]
    date: str
    place: str

    def find(self, name: str) -> Gpu | None:
        """The GPU that a driver, Ray or a person calls so: the entry with the longest name that is one or more of its
        words."""
        words = re.findall(r"[a-z0-9]+", name.lower())
        parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        return self.gpus[max(named, key=len)] if (named := parts & self.gpus.keys()) else None

    def get(self, name: str, *, option: str) -> Gpu:
        """The same. Raises InputError, which names the option, where there is none."""
        found = self.find(name)
        if found is None:
            near = difflib.get_close_matches(plain(name), self.gpus, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"{option} {name}: {self.place} has no such GPU.{hint} There are: {', '.join(self.gpus)}. Add it in a "
                "file of your own and give that with --prices."
            )
        return found


def plain(name: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def load_prices(path: Path | None = None) -> GpuPrices:
    """The shipped table, with the entries of `path` laid over it. Raises InputError with file and line."""
    shipped = _read(load_yaml(SHIPPED), {})
    if path is None:
        return GpuPrices(*shipped, str(SHIPPED))
    gpus, date = _read(load_yaml(path), shipped[0])
    return GpuPrices(gpus, date or f"{shipped[1]} where {path} says no other", str(path))


def _read(source: YamlSource, under: Mapping[str, Gpu]) -> tuple[dict[str, Gpu], str]:
    """The GPUs of a file laid over others, and its date."""
    data, numbers = dict(source.data), set(GpuEntry.model_fields)
    if isinstance(entries := data.get("gpus"), dict):
        data["gpus"] = {
            name: under[plain(name)].model_dump(include=numbers) | entry
            if isinstance(entry, dict) and plain(name) in under
            else entry
            for name, entry in entries.items()
        }
    try:
        table = PriceTable.model_validate(data)
    except ValidationError as error:
        # Other files have presets for what is missing.
        complaints = [
            (keys, text.removesuffix(", or a preset that has it")) for keys, text in explain(error, PriceTable)
        ]
        raise source.error(*complaints) from None
    read = {
        plain(name): Gpu(name=plain(name), place=source.place(("gpus", name)), **entry.model_dump())
        for name, entry in table.gpus.items()
    }
    return {**under, **read}, table.date or ""


def peak_flops(gpu: str | None, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """Peak FLOP/s, by the shipped table, of a GPU by its driver's name; None for any other and for a CPU."""
    found = load_prices().find(gpu) if gpu else None
    return None if found is None else found.peak(dtype)
