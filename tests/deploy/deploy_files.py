"""Read the deploy files the way their tools do: compose merged and interpolated, kustomize rendered, CRDs strict.

Enters: a path or an overlay's name. Leaves: plain dicts. It is here so that the tests beside it only assert.
"""

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

__all__ = [
    "OVERLAYS",
    "ROOT",
    "SCHEMAS",
    "compose",
    "container_env",
    "pod_templates",
    "ray_cluster_validator",
    "render",
    "strict",
    "variables",
]

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("dev", "gpu", "prod")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def variables(text: str) -> dict[str, tuple[str | None, str]]:
    """Every `${NAME...}` of a compose file -> (`-` default, `?` required or None; the default or the message)."""
    return {match["name"]: (match["kind"], match["rest"] or "") for match in _VARIABLE.finditer(text)}


def compose(*names: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The compose files, interpolated and merged as `docker compose --file A --file B` does it.

    Raises:
        KeyError: a required variable is missing or empty.
    """
    merged: dict[str, Any] = {}
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        merged = _merge(merged, yaml.safe_load(_VARIABLE.sub(lambda match: _value(match, env), body)))
    return merged


def _value(match: re.Match[str], env: Mapping[str, str]) -> str:
    if value := env.get(match["name"]):
        return value
    if match["kind"] == "-":
        return match["rest"]
    raise KeyError(match["name"])


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}
    return over


@cache
def _rendered(overlay: str) -> str:
    if kubectl := shutil.which("kubectl"):
        folder = str(KUBERNETES / "overlays" / overlay)
        return subprocess.run([kubectl, "kustomize", folder], check=True, capture_output=True, text=True).stdout
    return "\n---\n".join(path.read_text(encoding="utf-8") for path in _sources(KUBERNETES / "overlays" / overlay))


def _sources(folder: Path) -> Iterator[Path]:
    """The resource files below a kustomization, unpatched: what can be checked where kubectl is missing."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for item in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        path = (folder / item).resolve()
        yield from _sources(path) if path.is_dir() else [path]


def render(overlay: str) -> list[dict[str, Any]]:
    """Every object of an overlay, as `kubectl kustomize` renders it (as written, where there is no kubectl)."""
    return [item for item in yaml.safe_load_all(_rendered(overlay)) if item]


def pod_templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`Kind/name[/group]` -> pod template, for everything that starts pods."""
    found: dict[str, dict[str, Any]] = {}
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "RayCluster":
            found[f"{name}/head"] = item["spec"]["headGroupSpec"]["template"]
            found |= {f"{name}/{group['groupName']}": group["template"] for group in item["spec"]["workerGroupSpecs"]}
        elif "template" in item.get("spec", {}):
            found[name] = item["spec"]["template"]
    return found


def container_env(template: Mapping[str, Any], objects: list[dict[str, Any]]) -> dict[str, str | None]:
    """Environment of a template's first container, ConfigMaps followed; None where a Secret holds the value."""
    container = template["spec"]["containers"][0]
    maps = {item["metadata"]["name"]: item["data"] for item in objects if item["kind"] == "ConfigMap"}
    env: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        env |= maps[source["configMapRef"]["name"]]
    return env | {item["name"]: item.get("value") for item in container.get("env", [])}


def strict(schema: Any) -> Any:
    """A Kubernetes structural schema as JSON Schema that refuses unknown fields, like `kubectl --validate=strict`.

    The API server fills defaults in before it validates, so a field with a default is never missing.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if out.get("x-kubernetes-int-or-string") is True:
        out = {key: value for key, value in out.items() if key not in ("type", "format")}
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    properties = out.get("properties")
    if isinstance(properties, dict) and "type" in out:
        if not out.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
        if "required" in out:
            out["required"] = [name for name in out["required"] if "default" not in properties.get(name, {})]
    if out.pop("nullable", False) is True and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


@cache
def ray_cluster_validator() -> jsonschema.Draft7Validator:
    """KubeRay's own CRD for `ray.io/v1 RayCluster`, strict."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((SCHEMAS / "ray.io_rayclusters.yaml").read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    (version,) = (item for item in crd["spec"]["versions"] if item["name"] == "v1")
    schema = strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)
