"""What happens to files on disks that break, fill up or are tidied."""

from collections.abc import Callable
from pathlib import Path


def truncate(path: Path) -> None:
    """Cut off its end."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    """Leave it without content."""
    path.write_bytes(b"")


def change(path: Path) -> None:
    """Change its last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate, "emptied": empty, "removed": Path.unlink, "changed": change,
}  # fmt: skip
