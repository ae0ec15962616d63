"""Checks of a KubeRay RayJob, without a cluster."""

import copy
import logging
import re
from collections.abc import Iterator
from typing import Any

from slime_ray.errors import InputError
from slime_ray.on_ray.cluster_checks import ClusterChecks, NodeType
from slime_ray.yaml_source import KeyPath

# No installed package holds KubeRay's schema: these are the keys of ray.io/v1 in KubeRay 1.7. What stands in a pod's
# template is Kubernetes' own.
SPEC_KEYS = """activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus
    entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec
    runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend
    ttlSecondsAfterFinished"""
CLUSTER_KEYS = """authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec
    headServiceAnnotations historyServerOptions managedBy networkPolicy rayVersion suspend tlsOptions upgradeStrategy
    workerGroupSpecs"""
HEAD_KEYS = "enableIngress headService ingressOptions labels rayStartParams resources serviceType template"
GROUP_KEYS = """groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams replicas
    resources scaleStrategy suspend template"""
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# The command, not a folder of that name.
CALLED = re.compile(r"(?<![\w/.-])slime-ray\s|\s-m slime_ray\s")
CLUSTER: KeyPath = ("spec", "rayClusterSpec")
HEAD: KeyPath = (*CLUSTER, "headGroupSpec")
GROUPS: KeyPath = (*CLUSTER, "workerGroupSpecs")


class RayJobFile(ClusterChecks):
    """A file with one RayJob."""

    def lines(self) -> Iterator[str]:
        """What the file says, in lines for a person; it is checked on the way."""
        kind = self.value("kind", of=str, wanted="RayJob")
        if kind != "RayJob":
            raise self.error(("kind",), f" is {kind}. What can be checked is a RayJob, or a file for `ray up`")
        version = self.value("apiVersion", of=str, wanted="ray.io/v1")
        if version != "ray.io/v1":
            raise self.error(("apiVersion",), f" is {version} and has to be ray.io/v1")
        self.known((), self.data, ("apiVersion", "kind", "metadata", "spec"))
        self.value("metadata", "name", of=str, wanted="the job's name")
        self._keys(("spec",), SPEC_KEYS)
        self._keys(CLUSTER, CLUSTER_KEYS)
        self._keys(HEAD, HEAD_KEYS)
        self.value(*GROUPS, of=list, wanted="a group of workers")
        groups = self._items(GROUPS)
        for group in groups:
            self._keys(group, GROUP_KEYS)
        yield self._life()
        yield from self._nodes(groups)
        yield from self._pods([HEAD, *groups])
        yield self._token()

    def _keys(self, at: KeyPath, allowed: str) -> None:
        self.known(at, self.value(*at, of=dict, wanted="a map"), allowed.split())

    def _life(self) -> str:
        """What ends the job and its costs, and what a retry does."""
        if not self.value("spec", "shutdownAfterJobFinishes", of=bool, default=False):
            raise self.error(("spec", "shutdownAfterJobFinishes"), " is not true, so nodes outlive the sweep. Set it")
        stays = self._least("ttlSecondsAfterFinished", 0, "how many seconds the cluster stays when the sweep has ended")
        deadline = self._least("activeDeadlineSeconds", 1, "how many seconds the job may take at most")
        retries = self._least("backoffLimit", 0, "how many attempts may follow the first")
        entrypoint = self.value("spec", "entrypoint", of=str, wanted="the command, `slime-ray sweep ...`")
        if not CALLED.search(entrypoint):
            raise self.error(("spec", "entrypoint"), " does not call slime-ray. Give `slime-ray sweep ...`")
        if retries and "--go-on" not in entrypoint and "--resume" not in entrypoint:
            raise self.error(
                ("spec", "entrypoint"),
                " never resumes, but backoffLimit gives it to a new cluster when the run has already begun. "
                "Add --go-on, which resumes a run that is there",
            )
        return (
            f"{retries} retries, each of which resumes; at most {deadline / 3600:g} hours; "
            f"the cluster goes {stays} seconds after the end"
        )

    def _least(self, key: str, least: int, wanted: str) -> int:
        value: int = self.value("spec", key, of=int, wanted=wanted)
        if value < least:
            raise self.error(("spec", key), f" is {value} and has to be at least {least}")
        return value

    def _nodes(self, groups: list[KeyPath]) -> Iterator[str]:
        import ray

        version = self.value(*CLUSTER, "rayVersion", of=str, wanted=f'"{ray.__version__}"')
        if version != ray.__version__:
            raise self.error(
                (*CLUSTER, "rayVersion"), f" is {version}, but here is Ray {ray.__version__}. Make them the same"
            )
        names = [self.value(*group, "groupName", of=str, wanted="the group's name") for group in groups]
        limits = [self.limits(group, "minReplicas", "maxReplicas") for group in groups]
        for group in (HEAD, *groups):
            self.value(*group, "template", "spec", "containers", 0, of=dict, wanted="the Ray container")
        derived = self._as_ray_reads_it()
        types = derived["available_node_types"]
        head = NodeType("head", HEAD, self._on_spot(HEAD), types["headgroup"]["resources"], 0, 0, 0)
        workers = [
            NodeType(name, at, self._on_spot(at), types[name]["resources"], *least_most, types[name].get("priority", 0))
            for name, at, least_most in zip(names, groups, limits, strict=True)
        ]
        yield from self.nodes(head, workers)
        yield f"a worker that is idle for {derived['idle_timeout_minutes']:g} minutes leaves"

    def _as_ray_reads_it(self) -> dict[str, Any]:
        """The autoscaler's configuration, by the code with which Ray makes it from the cluster's resource."""
        from ray.autoscaler._private.kuberay import autoscaling_config

        spec = copy.deepcopy(self.value(*CLUSTER, of=dict))
        resource = {"metadata": {"name": "check", "namespace": "check"}, "spec": spec}
        # Ray also logs what it then raises.
        logger = logging.getLogger(autoscaling_config.__name__)
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            return autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
        except Exception as error:  # Ray raises whatever a value that it did not expect makes it raise.
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise self.error(CLUSTER, f": Ray cannot read it: {said[0].rstrip('.')}") from None
        finally:
            logger.setLevel(level)

    def _on_spot(self, group: KeyPath) -> bool:
        labels = self.value(*group, "template", "spec", "nodeSelector", of=dict, default={})
        return any(str(labels.get(label)).lower() == spot.lower() for label, spot in SPOT_LABELS.items())

    def _pods(self, groups: list[KeyPath]) -> Iterator[str]:
        """Images, memory for /dev/shm, and a claim that every pod mounts."""
        images: dict[str, None] = {}
        shared: set[str] | None = None
        for group in groups:
            pod: KeyPath = (*group, "template", "spec")
            for container in self._items((*pod, "containers")):
                at = (*container, "image")
                images[self.image(at, self.value(*at, of=str, wanted="a pinned image"))] = None
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
