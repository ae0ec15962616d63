"""The table of GPUs: what each computes, holds and costs an hour. It ships with examples and is the user's to edit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from slime_ray.config.complaints import FilePart
from slime_ray.config.strict import Strict
from slime_ray.config.yaml_source import load_yaml
from slime_ray.errors import InputError, near

SHIPPED = Path(__file__).with_name("prices.yaml")
Amount = Annotated[float, Field(gt=0)]


class Gpu(Strict):
    """One kind of GPU.

    fp32_tflops, bf16_tflops: peak, in 1e12 operations a second; None where it does not compute in bfloat16. memory_gib:
    what programs see. tb_per_s: bandwidth of its memory, in 1e12 bytes a second.
    """

    name: str
    fp32_tflops: Amount
    memory_gib: Amount
    tb_per_s: Amount
    usd_per_hour: Annotated[float, Field(ge=0)]
    bf16_tflops: Amount | None = None

    def peak(self, dtype: str) -> float | None:
        """Return FLOP/s in `bfloat16` or `float32`; None where the GPU does not compute in that."""
        tflops = self.bf16_tflops if dtype == "bfloat16" else self.fp32_tflops
        return None if tflops is None else tflops * 1e12


class _Table(Strict):
    date: str | None = None
    gpus: Annotated[dict[Annotated[str, Field(pattern="[A-Za-z0-9]")], dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True)
class GpuPrices:
    """The GPUs by name, and the date of the prices as the last file to name one says it."""

    gpus: Mapping[str, Gpu]
    date: str
    place: str

    def find(self, name: str) -> Gpu | None:
        """Find the entry with the longest name that is one or more words of this one; None where there is none."""
        words = re.findall(r"[a-z0-9]+", name.lower())
        parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        return self.gpus[max(matches, key=len)] if (matches := parts & self.gpus.keys()) else None

    def get(self, name: str, *, option: str) -> Gpu:
        """Find a GPU by its name. Raises InputError, which names the option, where there is none."""
        gpu = self.find(name)
        if gpu is None:
            raise InputError(
                f"{option} {name}: {self.place} has no such GPU{near(plain(name), self.gpus)}. Add it in a file of "
                "your own and give that with --prices."
            )
        return gpu


def plain(name: str) -> str:
    """Reduce a name to its letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def load_prices(path: Path | None = None) -> GpuPrices:
    """Load the shipped table under the entries of `path`. Raises InputError with file and line."""
    gpus: dict[str, Gpu] = {}
    dates = []
    for source in (load_yaml(SHIPPED), *([load_yaml(path)] if path else [])):
        file = FilePart(source)
        table = file.check(_Table, source.data, ())
        for name, entry in table.gpus.items():
            key = plain(name)
            shipped = gpus[key].model_dump() if key in gpus else {}
            gpus[key] = file.check(Gpu, shipped | entry | {"name": key}, ("gpus", name), where=f"{name}: ")
        dates.append(table.date)
    date = str(dates[-1] or f"{dates[0]} where {path} says no other")
    return GpuPrices(gpus, date, str(path or SHIPPED))


def peak_flops(gpu: str | None, dtype: str) -> float | None:
    """Return a GPU's peak by its driver's name and the shipped table; None for a CPU or unknown GPU."""
    entry = load_prices().find(gpu) if gpu else None
    return None if entry is None else entry.peak(dtype)
