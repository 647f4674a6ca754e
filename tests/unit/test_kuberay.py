"""What `rlpost submit` renders: valid for KubeRay, computed from the recipe, without secrets.

Not covered: no operator has seen the objects, and PodDisruptionBudget is read by eye only.
"""

import copy
import re
from enum import Enum
from functools import cache, reduce
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft4Validator
from kuberay_schemas import schema_of

from rlpost.checks import check
from rlpost.cli import main
from rlpost.cluster.command import read_words
from rlpost.cluster.kuberay import render
from rlpost.cluster.kubernetes import Kuberay, as_yaml
from rlpost.config import load, recipes_dir
from rlpost.errors import ConfigError

ROOT = Path(__file__).parents[2]
IMAGE = {"image": "registry.example:5000/team/rlpost:0.1.0"}
RECIPES = sorted(path.stem for path in (recipes_dir() / "recipe").glob("*.yaml"))
NEEDED = {"gsm8k": ["data.path=openai/gsm8k"]}
GPUS = ["rollout.num_gpus=1", "learner.num_gpus=1"]
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


def at(schema, path):
    for key in path.split("."):
        schema = schema["items"] if key == "[]" else schema["properties"][key]
    return schema


def refused(schema, value):
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in schema.iter_errors(value)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rendering_is_valid_for_kuberay(recipe):
    schema = schema_of("rayjob")
    cluster = "spec.rayClusterSpec"
    policy = at(schema, f"{cluster}.networkPolicy.head")
    claim_place = f"{cluster}.headGroupSpec.template.spec.volumes.[].ephemeral"
    jobs, claims = Draft4Validator(schema), at(schema, f"{claim_place}.volumeClaimTemplate.spec")
    assert len(COMBINATIONS) == 20
    for overrides, words in COMBINATIONS:
        objects = rendered(recipe, overrides, words)
        assert not refused(jobs, objects["rayjob.yaml"]), (overrides, words)
        spec = objects["network-policy.yaml"]["spec"]
        for rules in ("ingress", "egress"):
            rule = Draft4Validator(policy["properties"][f"{rules}Rules"])
            assert not refused(rule, spec[rules])
        if "volume-claim.yaml" in objects:
            assert not refused(Draft4Validator(claims), objects["volume-claim.yaml"]["spec"])


def test_a_cluster_to_work_in_is_the_one_a_job_would_have():
    schema = Draft4Validator(schema_of("raycluster"))
    for overrides, words in COMBINATIONS:
        job = rendered(overrides=overrides, words=words)["rayjob.yaml"]
        objects = rendered(overrides=overrides, words=words | {"kind": "cluster"})
        found = objects["raycluster.yaml"]
        assert not refused(schema, found), (overrides, words)
        assert found["spec"] == job["spec"]["rayClusterSpec"]
        assert found["metadata"]["annotations"] == {"rlpost/command": job["spec"]["entrypoint"]}
        assert "rayjob.yaml" not in objects


def test_files_read_back_as_they_were_meant():
    words = {"env.A": "on", "env.B": "1e3", "env.C": "0o17", "env.D": "", "env.E": "null"}
    for value in rendered(words=words).values():
        assert yaml.safe_load(as_yaml(value)) == value


def test_the_validator_refuses_unknown_and_mistyped_fields():
    schema = Draft4Validator(schema_of("rayjob"))
    job = rendered()["rayjob.yaml"]
    for path, value in [
        (("spec", "entrypont"), "x"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "authOptions", "token"), "x"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "dnsPolcy"), "x"),
    ]:
        broken = copy.deepcopy(job)
        node = broken
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        assert refused(schema, broken), path


def flat(node, path=""):
    if isinstance(node, dict | list):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        named = (
            (value.get("groupName", key) if isinstance(value, dict) else key, value)
            for key, value in pairs
        )
        return {k: v for key, value in named for k, v in flat(value, f"{path}/{key}").items()}
    return {path: node}


def changed(overrides, words=()):
    """Return the fields that overrides change, each without the common way to it."""
    before, after = flat(rendered()), flat(rendered(overrides=overrides, words=words))
    keys = {key for key in before | after if before.get(key) != after.get(key)}
    short = {
        re.sub(r"/(rayClusterSpec|workerGroupSpecs|template/spec|containers/0)(?=/)", "", key)
        for key in keys
    }
    return {key.removeprefix("/rayjob.yaml/spec/") for key in short}


def resources(group, *names):
    kinds = ("limits", "requests")
    return {f"{group}/resources/{kind}/{name}" for kind in kinds for name in names}


GPU = "nvidia.com/gpu"
VOLCANO = ("ray.io/scheduler-name", "volcano.sh/queue-name")


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["steps=7"], {"entrypoint"}),
        (
            ["rollout.num_workers=8"],
            {"entrypoint", "rollout/rayStartParams/num-cpus", "rollout/rayStartParams/num-gpus"}
            | resources("rollout", "cpu", "memory", GPU),
        ),
        (
            ["rollout.num_workers=16"],
            {"entrypoint", "rollout/rayStartParams/num-cpus", "rollout/rayStartParams/num-gpus"}
            | {f"rollout/{name}" for name in ("replicas", "minReplicas", "maxReplicas")}
            | {"/disruption-budget.yaml/spec/minAvailable"}
            | resources("rollout", "cpu", "memory", GPU),
        ),
        (
            ["learner.num_ranks=8"],
            {"entrypoint", "learner/rayStartParams/num-cpus", "learner/rayStartParams/num-gpus"}
            | resources("learner", "cpu", "memory", GPU),
        ),
        (
            ["kl_coef=0.1"],  # 4 verifiers with a CPU each, and now a reference with 2
            {"entrypoint", "cpu/rayStartParams/num-cpus"} | resources("cpu", "cpu", "memory"),
        ),
    ],
)
def test_a_changed_recipe_changes_its_own_fields_alone(overrides, fields):
    assert changed(overrides) == fields


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ({"backoff_limit": "5"}, {"backoffLimit"}),
        ({"queue": "research"}, {"/rayjob.yaml/metadata/labels/kueue.x-k8s.io/queue-name"}),
        ({"scheduler": "volcano"}, {"/rayjob.yaml/metadata/labels/ray.io/scheduler-name"}),
        (
            {"scheduler": "volcano", "queue": "research"},
            {f"/rayjob.yaml/metadata/labels/{name}" for name in VOLCANO},
        ),
        ({"token_secret": "other"}, {"authOptions/secretName"}),
        ({"storage_gib": "9"}, {"/volume-claim.yaml/spec/resources/requests/storage"}),
    ],
)
def test_a_setting_changes_its_own_field_alone(words, fields):
    assert changed((), words) == fields


def groups_of(objects):
    groups = objects["rayjob.yaml"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups}


def test_a_run_of_64_gpus_is_sized_as_by_hand():
    objects = rendered(
        overrides=["learner.num_ranks=32", "rollout.num_workers=32", "reward.num_workers=100"]
    )
    found = {
        name: (group["replicas"], *pod_of(group)["resources"]["limits"].values())
        for name, group in groups_of(objects).items()
    }
    # 8 GPUs and 8 x 4 CPUs a pod: 8 x 32 + 32 x 8 + 8 GiB; 100 verifiers in two pods of 50.
    assert found == {
        "learner": (4, "32", "520Gi", "8"),
        "rollout": (4, "32", "520Gi", "8"),
        "cpu": (2, "50", "408Gi"),
    }
    assert objects["disruption-budget.yaml"]["spec"]["minAvailable"] == 1 + 4 + 4 + 2


def pod_of(group):
    (container,) = group["template"]["spec"]["containers"]
    return container


def test_ray_has_cpus_for_any_actor_beside_any_gpu():
    groups = groups_of(rendered(overrides=["learner.num_cpus=9"]))
    assert groups["rollout"]["rayStartParams"]["num-cpus"] == "36"
    assert pod_of(groups["rollout"])["resources"]["limits"]["cpu"] == "16"


def test_an_actor_may_ask_for_the_pods_of_its_group():
    labels = {"+learner.node_labels.group": "learner", "+rollout.node_labels.group": "rollout"}
    config = load("gsm8k_8gpu", [*(f"{k}={v}" for k, v in labels.items()), "ray.address=auto"])
    cluster = Kuberay(IMAGE, "run").cluster
    groups = groups_of(render(config, cluster, []))
    assert {name: group["labels"] for name, group in groups.items()} == {
        name: {"group": name} for name in ("learner", "rollout", "cpu")
    }
    config.rollout.node_labels = {"group": "gpu"}
    with pytest.raises(ConfigError, match="no node has the labels of rollout"):
        render(config, cluster, [])


def test_the_rollout_group_alone_grows():
    asked = ["rollout.num_workers=11", "rollout.min_workers=3"]
    objects = rendered(overrides=asked, words={"rollout_per_pod": "2"})
    bounds = {n: (g["minReplicas"], g["maxReplicas"]) for n, g in groups_of(objects).items()}
    assert bounds == {"learner": (1, 1), "rollout": (2, 6), "cpu": (1, 1)}
    assert groups_of(objects)["rollout"]["replicas"] == 2
    cluster = objects["rayjob.yaml"]["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert not rendered()["rayjob.yaml"]["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]


def containers(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "containers":
                yield from value
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def test_no_container_is_root_or_privileged_or_without_limits():
    for overrides, words in COMBINATIONS:
        job = rendered(overrides=overrides, words=words)["rayjob.yaml"]
        found = list(containers(job))
        assert len(found) >= 5
        for container in found:
            security = container["securityContext"]
            assert security["runAsNonRoot"]
            assert not security["privileged"]
            assert not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["image"] == IMAGE["image"]
        assert not re.search("hostNetwork|hostIPC|hostPID|hostPath|latest", str(job))


def test_secrets_are_named_and_never_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    words = [f"cluster.{name}={value}" for name, value in IMAGE.items()]
    words += ["recipe=gsm8k_8gpu", "cluster=kuberay", f"out={tmp_path}"]
    assert main(["submit", *words, "cluster.secret_env.HF_TOKEN=hub/token"]) == 0
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "hf_abc" not in text
    assert "name: hub" in text
    for leak in (
        "cluster.env.HF_TOKEN=hf_abcdefghijklmnop",
        "cluster.env.OTHER=hf_abcdefghijklmnop",
        "cluster.secret_env.HF_TOKEN=hf_abcdefghijklmnop",
        "+task.parameters.key=hf_abcdefghijklmnop",
        "+task.parameters.api_key=anything",
    ):
        capsys.readouterr()
        assert main(["submit", *words, leak]) == 2, leak
        assert "hf_abc" not in capsys.readouterr().err


def test_what_a_former_rendering_left_is_removed(tmp_path, capsys):
    words = ["submit", "cluster=kuberay", f"cluster.image={IMAGE['image']}", f"out={tmp_path}"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "Nothing was submitted. To do so: kubectl apply -f " in said.out
    assert "checkpoint.every=0: after a failure there is nothing to resume from" in said.err
    claim = yaml.safe_load((tmp_path / "volume-claim.yaml").read_text())
    assert claim["metadata"]["name"] == "quickstart-mhpo-seed0-data"
    assert main([*words, "cluster.claim=mine", "checkpoint.every=5"]) == 0
    assert not capsys.readouterr().err
    assert not (tmp_path / "volume-claim.yaml").exists()


def test_what_is_printed_can_be_piped_on(capsys):
    words = ["submit", "cluster=kuberay", f"cluster.image={IMAGE['image']}", "checkpoint.every=5"]
    assert main([*words, "--render"]) == 0
    kinds = [value["kind"] for value in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "RayJob"]


def test_data_on_the_volume_need_not_be_here(tmp_path):
    words = ["submit", "recipe=gsm8k", "cluster=kuberay", f"cluster.image={IMAGE['image']}"]
    words += [f"out={tmp_path}", "checkpoint.every=1"]
    assert main([*words, "data.path=/data/sets/gsm8k", "model.path=/data/model"]) == 0
    assert "data.path=/data/sets/gsm8k " in (tmp_path / "rayjob.yaml").read_text()
    assert main([*words, "data.path=/elsewhere/gsm8k"]) == 2


def test_the_command_resumes_on_the_cluster():
    job = rendered(overrides=["seed=3"])["rayjob.yaml"]
    assert job["spec"]["entrypoint"] == (
        "rlpost train recipe=gsm8k_8gpu seed=3 run_dir=/data/runs/gsm8k-8gpu-run "
        "resume=auto ray.address=auto"
    )


def test_ray_version_is_that_of_the_lock():
    lock = (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    version = Kuberay(IMAGE, "run").cluster.ray_version
    assert f"\nray=={version} " in lock or f"\nray[default]=={version} " in lock


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"image": "team/rlpost:latest"}, "name a fixed tag"),
        ({"image": "team/rlpost"}, "must have a fixed tag"),
        ({"image": "registry:5000/rlpost"}, "must have a fixed tag"),
        ({"image": "team/rlpost@sha256:12"}, "must have a fixed tag or a sha256"),
        ({"image": ""}, "image is required"),
        ({"imag": "x"}, "did you mean cluster.image"),
        ({"env": "x"}, "unknown field cluster.env; did you mean cluster.env.NAME"),
        ({"name": "Not_A_Name"}, "name must be small letters"),
        ({"user": "0"}, "user must be at least 1, got 0: 0 is root"),
        ({"node_gpus": "many"}, "node_gpus must be a whole number of 0 or more, got many"),
        ({"kind": "service"}, "kind must be job or cluster, got service"),
        ({"scheduler": "yunikorn"}, "scheduler must be kueue or volcano"),
        ({"mount": "data"}, "mount must be an absolute path"),
        ({"gpu_tolerations": "gpu"}, "gpu_tolerations must be KEY"),
        ({"egress_ports": "99999"}, "egress_ports must be ports"),
        ({"env.RAY_AUTH_TOKEN": "x"}, "Ray's token is the target's own matter"),
        (
            {"node_gpus": "0"},
            "learner.num_gpus=1 of one actor is more than the 0 that cluster.node_gpus leaves",
        ),
        ({"storage_gib": "0"}, "leaves checkpoints on disks that go with their pods"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_remedy(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        rendered(words=words)


def test_kueue_and_a_number_of_pods_that_changes_exclude_each_other():
    asked = ["rollout.num_workers=16", "rollout.min_workers=4"]
    with pytest.raises(ConfigError, match="for which 1 of 2 pods do: Kueue admits"):
        rendered(overrides=asked, words={"queue": "research"})
    rendered(overrides=asked, words={"queue": "research", "scheduler": "volcano"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run_dir=/tmp/x"], "run_dir is decided by the cluster"),
        (["resume=never"], "resume is decided by the cluster"),
        (["task.prompt_template={question}$(id)"], "put this value into a recipe"),
        (["weights.backend=ipc"], "in pods of their own"),
    ],
)
def test_an_override_that_cannot_hold_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        rendered(overrides=overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "cluster=(not set): available: kuberay, slurm, ray, local"),
        (["cluster=nomad", "out=x"], "cluster=nomad: available: kuberay"),
        (["cluster=kuberay", "out=x", "--rendered"], "expected rlpost submit"),
    ],
)
def test_a_command_is_read_whole(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_words(words)
