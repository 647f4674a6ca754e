"""Kubernetes' own schemas, which refuse what they do not name, of an old and a new version."""

import json
from functools import cache

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

VERSIONS = ("1.25.0", "1.37.0")


def core_objects(value):
    """Return Kubernetes' own objects: that which is given, or the pods of a Ray job or cluster."""
    if not value["apiVersion"].startswith("ray.io/"):
        return [value]
    spec = value["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    templates = [group["template"] for group in cluster["workerGroupSpecs"]]
    templates.append(cluster["headGroupSpec"]["template"])
    if value["kind"] == "RayJob":
        templates.append(spec["submitterPodTemplate"])
    return [{"apiVersion": "v1", "kind": "Pod"} | template for template in templates]


def problems(value):
    """Return what the schemas refuse in an object of Kubernetes' own."""
    return list(_problems(json.dumps(value)))


@cache  # many renderings have a part in common
def _problems(text):
    value = json.loads(text)
    validators = [_validator(value["kind"], value["apiVersion"], version) for version in VERSIONS]
    return [
        f"{version}: {'.'.join(map(str, error.path))}: {error.message}"
        for version, validator in zip(VERSIONS, validators, strict=True)
        for error in validator.iter_errors(value)
    ]


@cache
def _validator(kind, api, version):
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    group, _, api_version = api.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.partition(".")[0], api_version]))
    schema = schema_contents(f"{folder}/{name}.json", version)
    return Draft202012Validator(schema, registry=_registry(folder, version))


@cache
def _registry(folder, version):
    definitions = schema_contents(f"{folder}/_definitions.json", version)
    return Resource.from_contents(definitions) @ Registry()
