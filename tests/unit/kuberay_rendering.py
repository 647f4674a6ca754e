"""What `rlpost submit cluster=kuberay` renders of a recipe, as tests ask for it."""

import copy
from enum import Enum
from functools import cache, reduce

import yaml

from rlpost.checks import check
from rlpost.cluster.kuberay import render
from rlpost.cluster.kubernetes import Kuberay
from rlpost.config import load, recipes_dir

IMAGE = {"image": "registry.example:5000/team/rlpost:0.1.0"}
RECIPES = sorted(path.stem for path in (recipes_dir() / "recipe").glob("*.yaml"))
NEEDED = {"gsm8k": ["data.path=openai/gsm8k"]}
GPUS = ["rollout.num_gpus=1", "rollout.tensor_parallel_size=1", "learner.num_gpus=1"]
COMBINATIONS = [
    ([], {}),
    (["rollout.num_workers=3"], {}),
    (["rollout.num_workers=64", *GPUS], {}),
    (["rollout.num_workers=8", "rollout.min_workers=2"], {"rollout_per_pod": "2"}),
    (["rollout.num_workers=8", "rollout.min_workers=3"], {"scheduler": "volcano"}),
    (["rollout.num_cpus=0.3", "rollout.num_workers=7"], {}),
    (["rollout.num_gpus=2", "rollout.tensor_parallel_size=2", "learner.num_gpus=1"], {}),
    (["learner.num_ranks=2", *GPUS], {"node_gpus": "1"}),
    (["learner.zero_stage=3", "learner.num_cpus=7.5"], {}),
    (["kl_coef=0.01"], {}),
    (["kl_coef=0.01", "reference.num_gpus=1", *GPUS], {"gpu_tolerations": ""}),
    (["kl_coef=0.01", "reference.num_gpus=0.5", *GPUS], {"gpu_resource": "amd.com/gpu"}),
    (["reward.num_workers=200", "reward.num_cpus=1"], {}),
    (["checkpoint.every=1", "checkpoint.url=s3://bucket/run"], {"storage_gib": "0"}),
    (["checkpoint.every=1"], {"claim": "shared-data", "mount": "/mnt/shared"}),
    (["seed=3"], {"queue": "research", "namespace": "team-a"}),
    (["mode=async", "old_logprobs=behavior"], {"deadline_s": "86400", "backoff_limit": "0"}),
    ([], {"env.NCCL_DEBUG": "INFO", "secret_env.HF_TOKEN": "hub/token", "pull_secret": "pull"}),
    (GPUS, {"gpu_nodes.nvidia.com/gpu.product": "H100", "cpu_nodes.pool": "cpu", "user": "2000"}),
    ([], {"cpu_tolerations": "spot=true:NoSchedule,slow:NoExecute", "egress_ports": ""}),
]


@cache
def loaded(recipe):
    return load(recipe, [*NEEDED.get(recipe, ()), "ray.address=auto"])


@cache
def configured(recipe, overrides):
    """Return what `load` would, quicker: it takes a fifth of a second each time."""
    config = copy.deepcopy(loaded(recipe))
    for word in overrides:
        path, _, text = word.partition("=")
        *parents, name = path.split(".")
        node = reduce(getattr, parents, config)
        kind = type(getattr(node, name))
        setattr(node, name, kind(text) if issubclass(kind, Enum) else yaml.safe_load(text))
    check(config)
    return config


def rendered(recipe="gsm8k_8gpu", overrides=(), words=()):
    target = Kuberay(IMAGE | dict(words), f"{recipe}-run".replace("_", "-"))
    target.check(overrides)
    config = configured(recipe, tuple(overrides))
    return render(config, target.cluster, [f"recipe={recipe}", *overrides])


def groups_of(objects):
    groups = objects["rayjob.yaml"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups}


def pod_of(group):
    (container,) = group["template"]["spec"]["containers"]
    return container
