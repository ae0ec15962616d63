"""Which module imports which, read from the source, so that nothing has to be importable."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported module: by which module, where, and whether importing the one imports the other."""

    importer: str
    target: str
    place: str
    at_import_time: bool


def sources(root: Path) -> dict[str, Path]:
    """Modules of the package by name. Some of its folders stand beside slime_ray in a checkout."""
    found = {}
    beside = [(folder, "slime_ray.") for folder in ("analysis", "search_spaces")]
    for folder, prefix in [("slime_ray", ""), *beside]:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[prefix + ".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path, known: set[str]) -> Iterator[Import]:
    """Every import in one file, inside functions too. `from a import b` is of a.b where that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for target in _targets(node, package, known):
            yield Import(name, target, f"{path.name}:{node.lineno}", id(node) not in later)  # type: ignore[attr-defined]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def _targets(node: ast.AST, package: str, known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*anchor, *([base] if base else [])])
        named = [f"{base}.{alias.name}" for alias in node.names]
        return [full if full in known or base == "slime_ray" else base for full in named]
    called = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2]
    if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
        return [str(node.args[0].value)]  # type: ignore[attr-defined]
    return []


def part_of(module: str) -> str:
    """`slime_ray.model.lora` -> `model`, and "" for slime_ray itself."""
    return module.split(".")[1] if module.count(".") else ""


def cycles(found: list[Import]) -> list[list[str]]:
    """Import cycles, lazy imports included: between modules, and between the parts of slime_ray."""
    modules: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for item in found:
        if item.target.startswith("slime_ray.") and item.target != item.importer:
            modules.setdefault(item.importer, set()).add(item.target)
            one, other = part_of(item.importer), part_of(item.target)
            if one and one != other:
                parts.setdefault(one, set()).add(other)
    return [cycle for graph in (modules, parts) if (cycle := first_cycle(graph))]


def first_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle, its first node again at the end; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if cycle := walk(following, [*trail, node]):
                return cycle
        done.add(node)
        return []

    for start in sorted(graph):
        if cycle := walk(start, []):
            return cycle
    return []
