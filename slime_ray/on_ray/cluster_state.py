"""What only Ray's own code can ask of a cluster, in one guarded call: there is no public interface for it."""

import logging
from functools import cache
from typing import Any, Literal

import ray

logger = logging.getLogger(__name__)
Question = Literal["get_draining_nodes", "get_cluster_config", "available_resources_per_node"]
"""Nodes that will be taken away; the groups of nodes that an autoscaler may add; what each node has left."""


def cluster_state(question: Question) -> Any:
    """Ray's answer; None where this version of Ray cannot be asked, which is logged once a process."""
    try:
        return getattr(ray._private.state.state, question)()
    except Exception as error:  # Whatever another version of Ray makes of it.
        _warn(question, f"{type(error).__name__}: {error}")
        return None


@cache
def _warn(question: str, reason: str) -> None:
    logger.warning("Ray %s does not tell its %s (%s).", ray.__version__, question.removeprefix("get_"), reason)
