"""KubeRay's own schemas, made strict; they lie beside the checkout."""

from functools import cache
from pathlib import Path

import pytest
import yaml

CRDS = Path(__file__).parents[3] / "shared" / "data" / "kuberay_crds"


def strict(schema):
    """Return an OpenAPI schema as JSON schema that refuses what it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: strict(part) for name, part in value.items()}
        elif key not in ("enum", "default", "required", "format"):
            found[key] = strict(value)
        elif key in ("enum", "required"):
            found[key] = value
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


@cache
def schema_of(kind):
    path = CRDS / f"ray.io_{kind}s.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay schemas: {path} is not there")
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    # The API server itself knows these.
    names = {"name": {"type": "string"}, "namespace": {"type": "string"}}
    text = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": names | {"labels": text, "annotations": text},
        "additionalProperties": False,
    }
    return schema
