"""Who may use which path."""

from __future__ import annotations

import openai
import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis.specs.openapi.checks import status_code_conformance

from orchestrator.api import build_control_api
from orchestrator.errors import UnknownReplica
from policies.vocabulary import Plan

pytestmark = pytest.mark.anyio

OPEN = ["/health", "/ready", "/live", "/metrics"]
CLOSED = ["/v1/models", "/v1/models/tiny", "/version", "/openapi.json", "/nowhere", "//health"]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


class FakeControl:
    def __init__(self):
        self.pins = []

    async def replicas(self):
        return [{"replica": "r1", "plan": "ar"}]

    async def decisions(self, replica, limit):
        return [{"replica": replica, "reason": "hold"}] * min(limit, 2)

    async def policy(self):
        return {"name": "threshold"}

    async def pin(self, replica, plan, ttl_s):
        if replica == "gone":
            raise UnknownReplica.named(replica, ["replica-0"])
        self.pins.append((replica, plan, ttl_s))
        return {"replica": replica, "plan": str(plan), "ttl_s": ttl_s}

    async def unpin(self, replica):
        self.pins.append((replica, None, 0))
        return {"replica": replica}

    async def targets(self):
        return [{"targets": ["10.0.0.1:9100"], "labels": {"replica": "r1"}}]


@pytest.mark.parametrize("path", OPEN)
async def test_health_and_metrics_need_no_key(make_app, client_of, path):
    async with client_of(make_app(api_keys=["k1"])) as client:
        assert (await client.get(path)).status_code == 200


async def test_metrics_can_be_made_to_need_the_key(make_app, client_of):
    async with client_of(make_app(api_keys=["k1"], protect_metrics=True)) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=bearer("k1"))).status_code == 200


@pytest.mark.parametrize("path", CLOSED)
async def test_everything_else_answers_401_in_openais_shape(make_app, client_of, path):
    async with client_of(make_app(api_keys=["k1"])) as client:
        response = await client.get(path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        bearer("wrong"),
        bearer("k"),
        bearer("k11"),
        bearer(""),
        {"authorization": "k1"},
        {"authorization": "Basic k1"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "k1"},
        [("authorization", "Bearer k1"), ("authorization", "Bearer k1")],
    ],
)
async def test_a_wrong_key_is_a_401(make_app, client_of, headers):
    async with client_of(make_app(api_keys=["k1", "k2"])) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 401


@pytest.mark.parametrize("key", ["k1", "k2", "ключ"])
async def test_any_of_the_keys_opens(make_app, client_of, key):
    async with client_of(make_app(api_keys=["k1", "k2", "ключ"])) as client:
        headers = {"authorization": f"Bearer {key}".encode()}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_the_official_client_sees_an_authentication_error(make_app, openai_of):
    app = make_app(api_keys=["k1"])
    with pytest.raises(openai.AuthenticationError):
        await openai_of(app, key="no").models.list()
    assert [model.id async for model in openai_of(app, key="k1").models.list()] == ["tiny"]


async def test_a_wrong_key_is_refused_before_the_body_is_read(make_app, client_of):
    async def body():
        raise AssertionError("the body was read")
        yield b""

    async with client_of(make_app(api_keys=["k1"])) as client:
        response = await client.post("/v1/completions", content=body())
    assert response.status_code == 401


async def test_keys_do_not_show_in_the_settings_repr(make_app):
    from orchestrator.api import ApiSettings

    assert "k1" not in repr(ApiSettings(model_name="tiny", api_keys=["k1"]))


async def test_the_control_api_is_closed_without_an_admin_key(make_app, client_of):
    async with client_of(make_app(api_keys=["k1"], control=FakeControl())) as client:
        response = await client.get("/control/v1/replicas", headers=bearer("k1"))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "control_closed"


async def test_the_control_api_takes_only_the_admin_key(make_app, client_of):
    app = make_app(api_keys=["k1"], admin_keys=["a1"], control=FakeControl())
    async with client_of(app) as client:
        assert (await client.get("/control/v1/replicas", headers=bearer("k1"))).status_code == 401
        assert (await client.get("/control/v1/replicas", headers=bearer("a1"))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer("a1"))).status_code == 401


@pytest.fixture
async def admin(client_of):
    control = FakeControl()
    app = build_control_api(control, ["a1"])
    async with client_of(app, headers=bearer("a1")) as client:
        client.control = control
        yield client


async def test_the_control_api_alone_needs_its_key_on_every_path(client_of):
    for keys, status in (([], 403), (["a1"], 401)):
        async with client_of(build_control_api(FakeControl(), keys)) as client:
            assert (await client.get("/control/v1/targets")).status_code == status
            assert (await client.post("/control/v1/pin", json={"plan": "ar"})).status_code == status


async def test_control_lists_replicas_decisions_policy_and_targets(admin):
    assert (await admin.get("/control/v1/replicas")).json() == [{"replica": "r1", "plan": "ar"}]
    rows = (await admin.get("/control/v1/decisions?replica=r1&limit=1")).json()
    assert rows == [{"replica": "r1", "reason": "hold"}]
    assert (await admin.get("/control/v1/policy")).json() == {"name": "threshold"}
    groups = (await admin.get("/control/v1/targets")).json()
    assert groups == [{"targets": ["10.0.0.1:9100"], "labels": {"replica": "r1"}}]


async def test_a_pin_names_plan_replica_and_expiry(admin):
    body = {"replica": "r1", "plan": "diffusion/8@0.7", "ttl_s": 60}
    assert (await admin.post("/control/v1/pin", json=body)).status_code == 200
    assert (await admin.post("/control/v1/unpin", json={"replica": "r1"})).status_code == 200
    assert admin.control.pins == [("r1", Plan.parse("diffusion/8@0.7"), 60.0), ("r1", None, 0)]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"plan": "warp"}, 400, "plan"),
        ({"plan": "ar/8"}, 400, "plan"),
        ({"plan": "ar", "ttl_s": 0}, 400, "ttl_s"),
        ({"plan": "ar", "ttl_s": 1e9}, 400, "ttl_s"),
        ({"plan": "ar", "ttl": 5}, 400, "ttl"),
        ({}, 400, "plan"),
        ({"plan": "ar", "replica": "gone"}, 404, "replica"),
    ],
)
async def test_a_bad_pin_is_refused_by_name(admin, body, status, param):
    response = await admin.post("/control/v1/pin", json=body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_a_bad_query_is_refused_by_name(admin):
    response = await admin.get("/control/v1/decisions?limit=0")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "limit"


def test_schemathesis_finds_no_server_error_in_the_control_api(make_app):
    app = make_app(admin_keys=["a1"], control=FakeControl())
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex="^/control/")
    for result in schema.get_all_operations():
        call = settings(max_examples=20, deadline=None, derandomize=True, database=None)(
            given(case=result.ok().as_strategy())(_answers_without_a_server_error)
        )
        call()


def _answers_without_a_server_error(case):
    case.call_and_validate(
        headers=bearer("a1"),
        checks=[schemathesis.checks.not_a_server_error, status_code_conformance],
    )
