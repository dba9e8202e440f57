"""No daemon runs here, so no container is started: the schema, the wiring and the doors of the stack are checked."""

import copy
import json
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_files import ROOT, SCHEMAS, compose, variables

FILES = (("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml"))
SECRETS = {"POSTGRES_PASSWORD": "0f" * 32, "RAY_AUTH_TOKEN": "1e" * 32}
OURS = ("gateway", "ray-head", "ray-worker")
VALIDATOR = jsonschema.Draft7Validator(json.loads((SCHEMAS / "compose-spec.json").read_text(encoding="utf-8")))


@pytest.fixture(params=FILES, ids=["cpu", "gpu"])
def stack(request: pytest.FixtureRequest) -> dict[str, Any]:
    return compose(*request.param, env=SECRETS)


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_each_file_as_written_is_valid(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def test_the_merged_stack_is_valid_and_complete(stack: dict[str, Any]) -> None:
    VALIDATOR.validate(stack)
    assert set(stack["services"]) == {*OURS, "postgres"}


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [("gateway", "helthcheck", {}), ("ray-worker", "shm_sise", "2gb"), ("ray-head", "ports", "8265")],
)
def test_the_schema_catches_a_typo(stack: dict[str, Any], service: str, key: str, value: object) -> None:
    """A check that cannot fail proves nothing."""
    broken = copy.deepcopy(stack)
    broken["services"][service][key] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(broken)


def test_every_published_port_is_on_loopback(stack: dict[str, Any]) -> None:
    """The gateway has no authentication yet, and Ray runs any code: neither may face a network."""
    ports = {name: service.get("ports", []) for name, service in stack["services"].items()}
    assert ports["gateway"]
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published), ports
    assert not ports["postgres"]
    assert not any("network_mode" in service for service in stack["services"].values())


def test_services_wait_for_services_that_can_become_healthy(stack: dict[str, Any]) -> None:
    services = stack["services"]
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_healthy", (name, other)
            assert "healthcheck" in services[other]
    assert set(services["gateway"]["depends_on"]) == {"postgres", "ray-head"}
    assert "ray-head" in services["ray-worker"]["depends_on"]


def test_every_ray_container_and_the_gateway_share_the_token(stack: dict[str, Any]) -> None:
    for name in OURS:
        env = stack["services"][name]["environment"]
        assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"]) == ("token", SECRETS["RAY_AUTH_TOKEN"]), name


def test_secrets_have_no_default_and_the_example_names_every_variable() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    used = variables(text)
    assert set(example) == set(used)
    for name, (kind, default) in used.items():
        if name in SECRETS:
            assert (kind, example[name]) == ("?", ""), f"{name} must be asked for, never defaulted"
        else:
            assert (kind, default) == ("-", example[name]), f"{name}: .env.example shows another default"
    with pytest.raises(KeyError, match="RAY_AUTH_TOKEN"):
        compose("docker-compose.yml", env=SECRETS | {"RAY_AUTH_TOKEN": ""})


def test_volumes_match_the_folders_that_the_settings_name(stack: dict[str, Any]) -> None:
    for name in OURS:
        service = stack["services"][name]
        env = service["environment"]
        root, data, examples = service["volumes"]
        own, quickstart = env["DUALDISTILL_DATA_ROOTS"].split(":")
        assert root == f"root:{env['DUALDISTILL_ROOT']}", name
        assert (data["target"], data["read_only"]) == (own, True), name
        assert examples == f"./examples:{quickstart}/examples:ro", name
        assert env["HF_HOME"].startswith(env["DUALDISTILL_ROOT"]), "the image's user can write nowhere else"
    assert set(stack["volumes"]) == {"root", "postgres"}
    assert (ROOT / variables((ROOT / "docker-compose.yml").read_text("utf-8"))["DATA_FOLDER"][1]).is_dir()


def test_the_quickstart_job_finds_its_data_as_it_is_written() -> None:
    job = yaml.safe_load((ROOT / "examples" / "quickstart" / "job.yaml").read_text(encoding="utf-8"))
    assert job["dataset"]["path"].startswith("examples/")
    for name in OURS:
        assert compose(*FILES[0], env=SECRETS)["services"][name]["build"]["args"] == {"EXTRAS": "quickstart"}


def test_the_object_store_fits_into_the_shared_memory(stack: dict[str, Any]) -> None:
    """Ray silently moves a store that is larger than /dev/shm to the disk, where every put is slow."""
    sizes = {"mb": 2**20, "gb": 2**30}
    for name in ("ray-head", "ray-worker"):
        service = stack["services"][name]
        words = service["command"].split()
        store = int(words[words.index("--object-store-memory") + 1])
        shm = int(service["shm_size"][:-2]) * sizes[service["shm_size"][-2:]]
        assert store < 0.95 * shm, name


def test_one_gpu_worker_holds_all_gpus() -> None:
    """Replicas that each reserve `count: 1` are all given the first GPU of the machine."""
    stack = compose(*FILES[1], env=SECRETS | {"RAY_WORKERS": "3"})
    worker = stack["services"]["ray-worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], worker["deploy"]["replicas"]) == ("nvidia", "all", 1)
    assert {"gpu", "compute", "utility"} == set(device["capabilities"])
    assert worker["image"] != stack["services"]["gateway"]["image"], "two builds must not fight for one tag"
    assert compose(*FILES[0], env=SECRETS | {"RAY_WORKERS": "3"})["services"]["ray-worker"]["deploy"]["replicas"] == 3
