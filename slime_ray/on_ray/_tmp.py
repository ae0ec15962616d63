from typing import Any

import ray


def alive_nodes() -> Any:
    return [n for n in ray.nodes() if n["Alive"]]


def concurrent_trials(resources: Any, nodes: Any) -> int:
    slots = sum(int(n["Resources"].get("CPU", 0) // resources.cpu_per_worker) for n in nodes)
    return slots // resources.workers


def waiting_for(resources: Any) -> str:
    return f"{resources.workers} x {resources.cpu_per_worker:g} CPU; free {ray.available_resources()}"
