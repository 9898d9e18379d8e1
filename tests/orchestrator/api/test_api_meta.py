"""Models, health, tokens, metrics, ids; and that docs/http.md and OpenAPI tell the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from prometheus_client import CollectorRegistry, Counter
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from orchestrator.api.schemas import ChatBody, CompletionBody, TrimodeOptions

DOCS = Path(__file__).parents[3] / "docs" / "http.md"
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
anyio = pytest.mark.anyio


@anyio
async def test_a_model_is_found_under_each_of_its_names(make_app, client_of):
    async with client_of(make_app(model_aliases=["org/tiny-1b"])) as client:
        assert (await client.get("/v1/models/org/tiny-1b")).json()["id"] == "org/tiny-1b"
        body = {"model": "org/tiny-1b", "prompt": "a", "max_tokens": 1}
        assert (await client.post("/v1/completions", json=body)).json()["model"] == "org/tiny-1b"


@anyio
async def test_ready_follows_start_up_draining_and_the_engine(make_app, make_engine, client_of):
    engine, ready = make_engine(), False
    async with client_of(make_app(engine, is_ready=lambda: ready)) as client:
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        ready = True
        assert (await client.get("/ready")).status_code == 200
        await engine.stop()
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/live")).status_code == 200


@anyio
async def test_detokenize_gives_back_what_tokenize_took(client):
    tokens = (await client.post("/tokenize", json={"prompt": "Grüße"})).json()
    assert tokens["count"] == len(tokens["tokens"]) == 7
    text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert text == {"prompt": "Grüße"}


@anyio
async def test_tokenize_counts_a_conversation_as_chat_does(client):
    turns = [{"role": "user", "content": "hello"}]
    tokens = (await client.post("/tokenize", json={"messages": turns})).json()
    chat = await client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 1})
    assert tokens["count"] == chat.json()["usage"]["prompt_tokens"]


@anyio
async def test_metrics_render_the_given_registry(make_app, client_of):
    registry = CollectorRegistry()
    Counter("trimode_tests", "A counter.", registry=registry).inc(3)
    async with client_of(make_app(registry=registry)) as client:
        assert "trimode_tests_total 3.0" in (await client.get("/metrics")).text
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await client.get("/metrics", headers=accept)
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")


@anyio
@pytest.mark.parametrize("given", ["", "a b", "x" * 129])
async def test_an_unusable_request_id_is_replaced(client, given):
    response = await client.get("/live", headers={"x-request-id": given})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@anyio
async def test_paths_are_found_under_the_prefix_of_a_mount(make_app, client_of):
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/llm", make_app(api_keys=["k1"]))
    async with client_of(outer) as client:
        assert (await client.get("/llm/health")).status_code == 200
        assert (await client.get("/llm/v1/models")).status_code == 401
        headers = {"authorization": "Bearer k1"}
        assert (await client.get("/llm/v1/models", headers=headers)).status_code == 200


@anyio
async def test_openapi_names_the_paths_that_need_a_key(make_app, client_of):
    async with client_of(make_app(api_keys=["k1"])) as client:
        headers = {"authorization": "Bearer k1"}
        paths = (await client.get("/openapi.json", headers=headers)).json()["paths"]
    needs = {path for path, methods in paths.items() if "security" in next(iter(methods.values()))}
    assert set(paths) - needs == {"/health", "/ready", "/live", "/metrics"}


@pytest.mark.parametrize("model", [ChatBody, CompletionBody, TrimodeOptions])
def test_every_parameter_is_in_the_reference(model):
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    assert set(model.model_fields) - documented == set()


def test_every_route_is_in_the_reference(make_app):
    text = DOCS.read_text()
    assert [path for path in make_app().openapi()["paths"] if path not in text] == []


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_schemathesis_finds_no_server_error_and_no_undocumented_answer(make_app, mode):
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == len(schema.raw_schema["paths"])
    for operation in operations:
        # Any string is a path parameter, so only bodies can be wrong.
        if mode is GenerationMode.POSITIVE or operation.body:
            _try_many(operation, mode)


def _try_many(operation, mode):
    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case):
        case.call_and_validate(checks=CHECKS)

    call()
