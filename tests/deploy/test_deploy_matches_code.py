"""Deploy files rot silently: each name, port, path and version in them is compared with the code it stands for."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from deploy_files import OVERLAYS, ROOT, compose, container_env, pod_templates, render
from packaging.specifiers import SpecifierSet

from services.settings import GATEWAY_PORT, SERVE_PORT, Settings
from services.teacher_pool.control import PoolSettings

SECRETS = {"POSTGRES_PASSWORD": "0f" * 32, "RAY_AUTH_TOKEN": "1e" * 32}
STACK = compose("docker-compose.yml", "docker-compose.gpu.yml", env=SECRETS)
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if "==" in line
)
OURS = ("gateway", "ray-head", "ray-worker")
# Read by Ray, huggingface_hub and the PostgreSQL image, not by us.
FOREIGN = {
    *("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "HF_HOME"),
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA"),
}
NEEDED = {"DUALDISTILL_ROOT", "DUALDISTILL_DATA_ROOTS", "DUALDISTILL_DATABASE_URL"}


def settings_variables() -> set[str]:
    """Names that services/settings.py reads, from its syntax tree: every upper-case constant of our prefixes."""
    tree = ast.parse((ROOT / "services" / "settings.py").read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in strings if re.fullmatch(r"(DUALDISTILL|RAY)_[A-Z0-9_]+", text)}


def environments() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, service in STACK["services"].items():
        yield f"compose/{name}", service["environment"]
    for overlay in OVERLAYS:
        objects = render(overlay)
        for name, template in pod_templates(objects).items():
            yield f"{overlay}/{name}", container_env(template, objects)


ENVIRONMENTS = dict(environments())


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_every_variable_is_read_by_someone(where: str) -> None:
    """A misspelt variable is ignored in silence: the process runs with the default instead."""
    unknown = set(ENVIRONMENTS[where]) - settings_variables() - FOREIGN
    assert not unknown, f"{where} sets {sorted(unknown)}, which services/settings.py does not read"


@pytest.mark.parametrize("where", [where for where in ENVIRONMENTS if "postgres" not in where])
def test_every_process_is_told_where_things_are(where: str) -> None:
    """Drivers and teachers inherit the environment of the Ray container they land in."""
    assert set(ENVIRONMENTS[where]) >= NEEDED
    if "gateway" in where:
        assert {"DUALDISTILL_RAY_DASHBOARD_URL", "RAY_AUTH_TOKEN"} <= set(ENVIRONMENTS[where])


def test_settings_understand_the_compose_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = STACK["services"]["gateway"]["environment"]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment()
    assert settings.root == Path(env["DUALDISTILL_ROOT"])
    assert [str(folder) for folder in settings.data_roots] == ["/data", "/quickstart"]
    assert settings.ray_token == SECRETS["RAY_AUTH_TOKEN"]


def test_the_database_url_names_a_driver_we_install_and_the_service() -> None:
    url = urlsplit(STACK["services"]["gateway"]["environment"]["DUALDISTILL_DATABASE_URL"])
    dialect, driver = url.scheme.split("+")
    assert (dialect, url.hostname, url.port) == ("postgresql", "postgres", 5432)
    assert importlib.util.find_spec(driver) is not None
    assert driver in PINS
    database = STACK["services"]["postgres"]["environment"]
    assert (url.username, url.path.strip("/")) == (database["POSTGRES_USER"], database["POSTGRES_DB"])


GATEWAY_COMMANDS = [
    ("compose", STACK["services"]["gateway"]["command"]),
    ("Dockerfile", ast.literal_eval(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])),
    *(
        (name, pod_templates(render(name))["Deployment/gateway"]["spec"]["containers"][0]["command"])
        for name in OVERLAYS
    ),
]


@pytest.mark.parametrize(("where", "command"), GATEWAY_COMMANDS)
def test_the_gateway_command_starts_the_real_factory_on_the_real_port(where: str, command: list[str]) -> None:
    assert command[:3] == ["python", "-m", "uvicorn"]
    assert importlib.util.find_spec("uvicorn") is not None
    assert "--factory" in command
    module, factory = command[3].split(":")
    assert importlib.util.find_spec(module) is not None, f"{where}: there is no module {module}"
    assert callable(getattr(importlib.import_module(module), factory))
    assert command[command.index("--port") + 1] == str(GATEWAY_PORT)


def test_gateway_ports_agree() -> None:
    assert STACK["services"]["gateway"]["ports"] == [f"127.0.0.1:{GATEWAY_PORT}:{GATEWAY_PORT}"]
    assert f"EXPOSE {GATEWAY_PORT}\n" in DOCKERFILE
    for overlay in OVERLAYS:
        objects = {(item["kind"], item["metadata"]["name"]): item for item in render(overlay)}
        (port,) = objects["Deployment", "gateway"]["spec"]["template"]["spec"]["containers"][0]["ports"]
        assert port == {"name": "http", "containerPort": GATEWAY_PORT}
        assert objects["Service", "gateway"]["spec"]["ports"] == [
            {"name": "http", "port": GATEWAY_PORT, "targetPort": "http"}
        ]
        (rule,) = objects["NetworkPolicy", "gateway"]["spec"]["ingress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": GATEWAY_PORT}]


def test_probes_ask_for_routes_that_the_gateway_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.gateway.app import create_app

    monkeypatch.setenv("DUALDISTILL_ROOT", str(tmp_path))
    monkeypatch.setenv("DUALDISTILL_DATABASE_URL", f"sqlite:///{tmp_path / 'gateway.db'}")
    routes = set(create_app(Settings.from_environment()).openapi()["paths"])
    (health,) = re.findall(
        r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(STACK["services"]["gateway"]["healthcheck"]["test"])
    )
    assert health[0] == str(GATEWAY_PORT)
    container = pod_templates(render("dev"))["Deployment/gateway"]["spec"]["containers"][0]
    probed = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {health[1], *probed} <= routes


def test_ray_addresses_agree() -> None:
    """The worker's address, the gateway's URL and the head's flags are three spellings of two ports."""
    head, worker = (shlex.split(STACK["services"][name]["command"]) for name in ("ray-head", "ray-worker"))
    assert head[:3] == ["ray", "start", "--head"]
    assert worker[worker.index("--address") + 1] == f"ray-head:{head[head.index('--port') + 1]}"
    assert {"--block"} <= set(head) & set(worker)
    dashboard = head[head.index("--dashboard-port") + 1]
    assert (
        STACK["services"]["gateway"]["environment"]["DUALDISTILL_RAY_DASHBOARD_URL"] == f"http://ray-head:{dashboard}"
    )
    assert STACK["services"]["ray-head"]["ports"] == [f"127.0.0.1:{dashboard}:{dashboard}"]
    assert head[head.index("--num-cpus") + 1] == "0"
    for overlay in OVERLAYS:
        (cluster,) = (item for item in render(overlay) if item["kind"] == "RayCluster")
        url = ENVIRONMENTS[f"{overlay}/Deployment/gateway"]["DUALDISTILL_RAY_DASHBOARD_URL"]
        assert url == f"http://{cluster['metadata']['name']}-head-svc:{dashboard}", (
            "KubeRay names the head's service so"
        )


def test_the_gateway_finds_the_pools_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway tells Serve where to listen, and asks there: on the head, so not on a loopback of its own."""
    heads = {"compose/gateway": "ray-head"}
    heads |= {f"{overlay}/Deployment/gateway": "dualdistill-head-svc" for overlay in OVERLAYS}
    for where, head in heads.items():
        with monkeypatch.context() as patched:
            for name, value in ENVIRONMENTS[where].items():
                patched.setenv(name, value or "from-a-secret://x/y")
            pools, url = PoolSettings.of(Settings.from_environment()), urlsplit(Settings.from_environment().serve_url)
        assert (pools.proxy_host, pools.proxy_port, url.port) == ("0.0.0.0", SERVE_PORT, SERVE_PORT), where  # noqa: S104
        assert url.hostname == head, where
    assert not any(str(SERVE_PORT) in port for port in STACK["services"]["ray-head"]["ports"]), "only for the gateway"
    for overlay in OVERLAYS:
        head_pod = pod_templates(render(overlay))["RayCluster/dualdistill/head"]
        ports = {port["name"]: port["containerPort"] for port in head_pod["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == SERVE_PORT, "KubeRay's service of the head has the ports that its container names"


@pytest.mark.parametrize("where", [where for where in ENVIRONMENTS if "ray" in where.lower()])
def test_serve_may_kill_a_hung_replica(where: str) -> None:
    """Its health check fails because it hangs: asked politely, it would stay, and hold its GPU, for ever."""
    assert ENVIRONMENTS[where]["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"


def test_versions_agree() -> None:
    """Ray refuses to join nodes of two versions; an image tag that lags starts old code."""
    version = PYPROJECT["version"]
    assert {STACK["services"][name]["image"] for name in ("gateway", "ray-head")} == {f"dualdistill:{version}"}
    assert STACK["services"]["ray-worker"]["image"] == f"dualdistill:{version}-gpu"
    for overlay in OVERLAYS:
        objects = render(overlay)
        (cluster,) = (item for item in objects if item["kind"] == "RayCluster")
        assert cluster["spec"]["rayVersion"] == PINS["ray"]
        for name, template in pod_templates(objects).items():
            image, _, tag = template["spec"]["containers"][0]["image"].rpartition(":")
            if image.endswith("dualdistill"):
                assert tag == (f"{version}-gpu" if name.endswith("/gpu") else version), name


def test_the_dockerfile_copies_what_exists_and_runs_as_nobody_in_particular() -> None:
    stages = re.findall(r"^FROM python:(\d+\.\d+)-slim", DOCKERFILE, re.MULTILINE)
    assert len(stages) == 2
    assert all(version in SpecifierSet(PYPROJECT["requires-python"]) for version in stages)
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copies for source in line.split()[:-1]}
    assert {"pipelines", "services", "requirements.lock"} <= sources
    allowed = (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}"
        assert f"!{source}" in allowed, f"{source} is ignored by Dockerfile.dockerignore"
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    for overlay in OVERLAYS:
        for name, template in pod_templates(render(overlay)).items():
            if "postgres" not in name:
                assert template["spec"]["securityContext"]["runAsUser"] == int(user), name


def test_compose_builds_that_dockerfile() -> None:
    for name in OURS:
        build = STACK["services"][name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file(), name
        assert set(build.get("args", {})) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)), name


@pytest.mark.parametrize("name", OURS)
def test_health_checks_are_python_that_compiles(name: str) -> None:
    """The image has no curl and no wget."""
    kind, program, flag, code = STACK["services"][name]["healthcheck"]["test"]
    assert (kind, program, flag) == ("CMD", "python", "-c")
    compile(code, name, "exec")
