"""No cluster runs here: every overlay is rendered, held against KubeRay's schema, and its references are followed."""

import copy
import json
from typing import Any

import jsonschema
import pytest
from deploy_files import OVERLAYS, container_env, pod_templates, ray_cluster_validator, render

from services.settings import SERVE_PORT

# Made by hand before the first apply (deploy/README.md), and by KubeRay for authOptions.mode token.
SECRETS = {"dualdistill-database": {"url", "password"}, "dualdistill": {"auth_token"}}
IMAGES = {"dualdistill", "registry.example.com/dualdistill", "postgres"}


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def test_the_ray_cluster_passes_the_strict_schema(objects: list[dict[str, Any]]) -> None:
    ray_cluster_validator().validate(of_kind(objects, "RayCluster")["dualdistill"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"minReplicas"', '"minReplica"'),
        ('"rayStartParams"', '"rayStartParam"'),
        ('"mode": "token"', '"mode": "tokens"'),
        ('"replicas": 2', '"replicas": "two"'),
        ('"readOnly": true', '"readonly": true'),
    ],
)
def test_the_schema_catches_a_typo(old: str, new: str) -> None:
    """A check that cannot fail proves nothing."""
    cluster = json.dumps(of_kind(render("gpu"), "RayCluster")["dualdistill"])
    assert old in cluster
    with pytest.raises(jsonschema.ValidationError):
        ray_cluster_validator().validate(json.loads(cluster.replace(old, new)))


def test_ray_asks_for_the_token_and_works_on_workers_only(objects: list[dict[str, Any]]) -> None:
    spec = of_kind(objects, "RayCluster")["dualdistill"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all("cpu" in limits(group) for group in spec["workerGroupSpecs"])


def limits(group: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return found


def test_gpu_workers_ask_for_a_gpu_and_stand_beside_the_cpu_ones() -> None:
    groups = {
        group["groupName"]: group
        for group in of_kind(render("gpu"), "RayCluster")["dualdistill"]["spec"]["workerGroupSpecs"]
    }
    if "gpu" not in groups:
        pytest.skip("kubectl is not installed: patches are not applied")
    assert limits(groups["gpu"])["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits(groups["cpu"])
    assert groups["gpu"]["template"]["spec"]["containers"][0]["image"].endswith("-gpu")
    assert groups["gpu"]["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_every_pod_meets_the_restricted_standard(objects: list[dict[str, Any]]) -> None:
    """The namespace enforces it, so a pod that breaks it would be refused at admission."""
    (namespace,) = of_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pod_templates(objects).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name


def test_every_container_is_probed_limited_and_pinned(objects: list[dict[str, Any]]) -> None:
    for name, template in pod_templates(objects).items():
        (container,) = template["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= set(container), name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name
        image, _, tag = container["image"].rpartition(":")
        if image:  # without kubectl the tags are not filled in
            assert image in IMAGES, container["image"]
            assert tag != "latest", name


def test_claims_maps_and_secrets_exist(objects: list[dict[str, Any]]) -> None:
    claims, maps = of_kind(objects, "PersistentVolumeClaim"), of_kind(objects, "ConfigMap")
    for name, template in pod_templates(objects).items():
        container = template["spec"]["containers"][0]
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        templated = {"data"} if name == "StatefulSet/postgres" else set()
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims, name
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | templated, name
        assert all(source["configMapRef"]["name"] in maps for source in container.get("envFrom", [])), name
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom"):
                secret = reference["secretKeyRef"]
                assert secret["key"] in SECRETS[secret["name"]], (name, variable["name"])


def test_dualdistill_pods_mount_the_folders_that_the_settings_name(objects: list[dict[str, Any]]) -> None:
    for name, template in pod_templates(objects).items():
        if name == "StatefulSet/postgres":
            continue
        env = container_env(template, objects)
        mounts = {mount["mountPath"]: mount for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert not mounts[env["DUALDISTILL_ROOT"] or ""].get("readOnly"), name
        assert mounts[env["DUALDISTILL_DATA_ROOTS"] or ""]["readOnly"] is True, name


def test_shared_folders_can_be_shared() -> None:
    """Drivers, teachers and the gateway sit on different nodes; only the one-node overlay may do with less."""
    for overlay in ("gpu", "prod"):
        for name, claim in of_kind(render(overlay), "PersistentVolumeClaim").items():
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"], (overlay, name)


def test_selectors_select_pods(objects: list[dict[str, Any]]) -> None:
    labels = [template.get("metadata", {}).get("labels", {}) for template in pod_templates(objects).values()]
    # What KubeRay adds to the pods it makes.
    labels += [{"ray.io/cluster": "dualdistill", "ray.io/node-type": kind} for kind in ("head", "worker")]

    def selects(selector: dict[str, str]) -> bool:
        return any(selector.items() <= pod.items() for pod in labels)

    for service in of_kind(objects, "Service").values():
        assert selects(service["spec"]["selector"]), service["metadata"]["name"]
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, item in of_kind(objects, kind).items():
            assert selects(item["spec"][key].get("matchLabels", {})), (kind, name)


def test_only_the_gateway_and_ray_itself_reach_ray(objects: list[dict[str, Any]]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert policies["deny-ingress"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    inside, gateway = policies["ray"]["spec"]["ingress"]
    assert peers(inside) == [{"ray.io/cluster": "dualdistill"}]
    assert peers(gateway) == [{"app.kubernetes.io/name": "dualdistill-gateway"}]
    assert gateway["ports"] == [{"protocol": "TCP", "port": 8265}, {"protocol": "TCP", "port": SERVE_PORT}]
    assert not any(
        service["spec"].get("type", "ClusterIP") != "ClusterIP" for service in of_kind(objects, "Service").values()
    )
    assert not of_kind(objects, "Ingress")
    if postgres := policies.get("postgres"):
        (rule,) = postgres["spec"]["ingress"]
        assert peers(rule) == [*peers(gateway), *peers(inside)]


def peers(rule: dict[str, Any]) -> list[dict[str, str]]:
    assert all(set(peer) == {"podSelector"} for peer in rule["from"]), "no other namespace, no address block"
    return [peer["podSelector"]["matchLabels"] for peer in rule["from"]]


def test_prod_has_no_database_of_its_own() -> None:
    assert not of_kind(render("prod"), "StatefulSet")
    assert of_kind(render("gpu"), "StatefulSet")


def test_budgets_over_ray_pods_use_what_is_allowed_there() -> None:
    """Eviction of pods whose controller has no scale is refused for maxUnavailable and for percentages."""
    budget = copy.deepcopy(of_kind(render("gpu"), "PodDisruptionBudget")["ray-workers"]["spec"])
    budget.pop("selector")
    assert budget == {"minAvailable": 1}
