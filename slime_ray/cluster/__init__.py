"""Checks of a cluster's YAML, offline: a file for `ray up`, or a KubeRay RayJob.

Ray's own schema is checked first. Beyond that stands what makes a sweep fail, or cost, only days later: a head on spot,
a forgotten limit, an image that changes, an open cluster.
"""

from pathlib import Path

from slime_ray.config.yaml_source import load_yaml

from .checks import ClusterChecks
from .launcher import LauncherFile
from .rayjob import RayJobFile


def check_cluster_file(path: Path) -> list[str]:
    """Check a cluster's file offline; return what it says, in lines for a person.

    Raises InputError, with file, line and key, for the first thing that is wrong.
    """
    source = load_yaml(path)
    kubernetes = "kind" in source.data or "apiVersion" in source.data
    checks: ClusterChecks = RayJobFile(source) if kubernetes else LauncherFile(source)
    return [*checks.lines(), *checks.placeholders()]
