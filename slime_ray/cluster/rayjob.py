"""A KubeRay RayJob, checked offline."""

import json
import re
from collections.abc import Iterator

from slime_ray.config.yaml_source import KeyPath
from slime_ray.errors import InputError

from .checks import DRIVERS, RAY, ClusterChecks, NodeType

SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# The command, not a folder of that name.
CALLED = re.compile(r"(?<![\w/.-])slime-ray\s|\s-m slime_ray\s")
START_PARAMS = {"CPU": "num-cpus", "GPU": "num-gpus"}
CLUSTER: KeyPath = ("spec", "rayClusterSpec")
HEAD: KeyPath = (*CLUSTER, "headGroupSpec")
GROUPS: KeyPath = (*CLUSTER, "workerGroupSpecs")


class RayJobFile(ClusterChecks):
    """A file with one RayJob."""

    def lines(self) -> Iterator[str]:
        """Check the file; yield what it says, in lines for a person."""
        kind = self.value("kind", of=str, description="RayJob")
        if kind != "RayJob":
            raise self.error(("kind",), f" is {kind}. What can be checked is a RayJob, or a file for `ray up`")
        version = self.value("apiVersion", of=str, description="ray.io/v1")
        if version != "ray.io/v1":
            raise self.error(("apiVersion",), f" is {version} and has to be ray.io/v1")
        self.value("metadata", "name", of=str, description="the job's name")
        self.value(*GROUPS, of=list, description="a group of workers")
        groups = self._items(GROUPS)
        yield self._life()
        yield from self._nodes(groups)
        yield from self._pods([HEAD, *groups])
        yield self._token()
        yield f"keys beyond these are KubeRay's: kubectl apply --dry-run=server -f {self.source.path.name}"

    def _life(self) -> str:
        """Check what ends the job and its costs, and what a retry does."""
        if not self.value("spec", "shutdownAfterJobFinishes", of=bool, default=False):
            raise self.error(("spec", "shutdownAfterJobFinishes"), " is not true, so nodes outlive the sweep. Set it")
        stays = self._least("ttlSecondsAfterFinished", 0, "how many seconds the cluster stays when the sweep has ended")
        deadline = self._least("activeDeadlineSeconds", 1, "how many seconds the job may take at most")
        retries = self._least("backoffLimit", 0, "how many attempts may follow the first")
        entrypoint = self.value("spec", "entrypoint", of=str, description="the command, `slime-ray sweep ...`")
        if not CALLED.search(entrypoint):
            raise self.error(("spec", "entrypoint"), " does not call slime-ray. Give `slime-ray sweep ...`")
        if retries and "--auto-resume" not in entrypoint and "--resume" not in entrypoint:
            raise self.error(
                ("spec", "entrypoint"),
                " never resumes, but backoffLimit gives it to a new cluster when the run has already begun. "
                "Add --auto-resume, which resumes a run that is there",
            )
        return (
            f"{retries} retries, each of which resumes; at most {deadline / 3600:g} hours; "
            f"the cluster goes {stays} seconds after the end"
        )

    def _least(self, key: str, least: int, description: str) -> int:
        value: int = self.value("spec", key, of=int, description=description)
        if value < least:
            raise self.error(("spec", key), f" is {value} and has to be at least {least}")
        return value

    def _nodes(self, groups: list[KeyPath]) -> Iterator[str]:
        version = self.value(*CLUSTER, "rayVersion", of=str, description=f'"{RAY}"')
        if version != RAY:
            raise self.error((*CLUSTER, "rayVersion"), f" is {version}, but here is Ray {RAY}. Make them the same")
        names = [self.value(*group, "groupName", of=str, description="the group's name") for group in groups]
        limits = [self.limits(group, "minReplicas", "maxReplicas") for group in groups]
        for group in (HEAD, *groups):
            self.value(*group, "template", "spec", "containers", 0, of=dict, description="the Ray container")
        head = NodeType("head", HEAD, self._on_spot(HEAD), self.resources(HEAD), 0, 0, 0)
        workers = [
            NodeType(name, at, self._on_spot(at), self.resources(at), *least_most, self._priority(at))
            for name, at, least_most in zip(names, groups, limits, strict=True)
        ]
        yield from self.nodes(head, workers)
        seconds = self.value(*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds", of=(int, float), default=60)
        yield f"a worker that is idle for {seconds / 60:g} minutes leaves"

    def _priority(self, group: KeyPath) -> int:
        priority: int = self.value(*group, "priority", of=int, default=0)
        return priority

    def resources(self, group: KeyPath) -> dict[str, float]:
        """Return what a node offers to Ray: what `rayStartParams` say, and else the Ray container's limits."""
        container: KeyPath = (*group, "template", "spec", "containers", 0, "resources")
        offer: dict[str, float] = {}
        for part in ("requests", "limits"):
            for key in self.value(*container, part, of=dict, default={}):
                if kind := "CPU" if key == "cpu" else "GPU" if str(key).endswith("/gpu") else None:
                    offer[kind] = self._amount((*container, part, key))
        at: KeyPath = (*group, "rayStartParams")
        params = self.value(*at, of=dict, default={})
        offer |= {kind: self._amount((*at, key)) for kind, key in START_PARAMS.items() if key in params}
        if custom := self._text(at, "resources"):
            try:
                # Quoted twice, for the shell in which KubeRay writes it.
                offer |= {str(kind): float(amount) for kind, amount in dict(json.loads(json.loads(custom))).items()}
            except (ValueError, TypeError):
                raise self.error(
                    (*at, "resources"), f""" is {custom}. Write it as '"{{\\"{DRIVERS}\\": 16}}"'"""
                ) from None
        return offer

    def _amount(self, at: KeyPath) -> float:
        """Read a number, or one of Kubernetes' quantities, such as 500m."""
        text = str(self.value(*at, of=(str, int, float), default=0))
        try:
            return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
        except ValueError:
            raise self.error(at, f" is {text!r} and has to be a number") from None

    def _on_spot(self, group: KeyPath) -> bool:
        labels = self.value(*group, "template", "spec", "nodeSelector", of=dict, default={})
        return any(str(labels.get(label)).lower() == spot.lower() for label, spot in SPOT_LABELS.items())

    def _pods(self, groups: list[KeyPath]) -> Iterator[str]:
        """Check images, memory for /dev/shm, and a claim that every pod mounts."""
        images: dict[str, None] = {}
        shared: set[str] | None = None
        for group in groups:
            pod: KeyPath = (*group, "template", "spec")
            for container in self._items((*pod, "containers")):
                at = (*container, "image")
                images[self.image(at, self.value(*at, of=str, description="a pinned image"))] = None
            mounts: KeyPath = (*pod, "containers", 0, "volumeMounts")
            paths = {self._text(mount, "name"): self._text(mount, "mountPath") for mount in self._items(mounts)}
            memory, claims = False, set()
            for volume in self._items((*pod, "volumes")):
                name = self._text(volume, "name")
                if self._text((*volume, "emptyDir"), "medium") == "Memory":
                    memory |= paths.get(name) == "/dev/shm"
                if name in paths and (claim := self._text((*volume, "persistentVolumeClaim"), "claimName")):
                    claims.add(claim)
            if not memory:
                raise self.error(
                    mounts,
                    ": /dev/shm is the 64 MiB that a container has, too little for Ray. "
                    "Mount a volume `emptyDir: {medium: Memory}` there",
                )
            shared = claims if shared is None else shared & claims
            if not shared:
                raise self.error(
                    mounts, ": no claim that every pod mounts, so they share no run's folder. Mount the same in all"
                )
        yield from images
        yield f"/dev/shm in memory, and in every pod the claim {', '.join(sorted(shared or ()))}"

    def _items(self, at: KeyPath) -> list[KeyPath]:
        return [(*at, index) for index in range(len(self.value(*at, of=list, default=[])))]

    def _text(self, at: KeyPath, key: str) -> str:
        text: str = self.value(*at, key, of=str, default="")
        return text

    def _token(self) -> str:
        at = (*CLUSTER, "authOptions", "mode")
        if self.value(*at, of=str) != "token":
            raise self.error(
                at, " is not token, so whoever reaches the cluster may run code on it. Give authOptions: {mode: token}"
            )
        for key, line in self.source.lines.items():
            if key[-1] == "name" and "env" in key:
                entry = self.value(*key[:-1], of=dict)
                if entry.get("name") == "RAY_AUTH_TOKEN" and "value" in entry:
                    raise InputError(
                        f"{self.source.path}:{line}: a token is written into the file. Remove RAY_AUTH_TOKEN: KubeRay "
                        "makes a secret of its own, or takes the one named by authOptions.secretName."
                    )
        return "every pod asks for the token, and gets it from a secret"
