"""Requests shaped as the benchmark tools send them, read as those tools read the answers."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.anyio

TEXT_PARTS = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}

STREAMED = {
    "vllm bench serve, completions": ("/v1/completions", {
        "model": "tiny", "prompt": "hello", "repetition_penalty": 1.0, "max_tokens": 8,
        "logprobs": None, "stream": True, "stream_options": USAGE, "ignore_eos": True,
    }),
    "vllm bench serve, token ids": ("/v1/completions", {
        "model": "tiny", "prompt": [104, 105], "repetition_penalty": 1.0, "max_tokens": 8,
        "logprobs": None, "stream": True, "stream_options": USAGE, "temperature": 0.0,
        "top_p": 1.0, "top_k": -1, "min_p": 0.0,
    }),
    "vllm bench serve, chat": ("/v1/chat/completions", {
        "model": "tiny", "messages": TEXT_PARTS, "max_completion_tokens": 8, "stream": True,
        "stream_options": USAGE, "ignore_eos": True,
    }),
    "guidellm, completions": ("/v1/completions", {
        "model": "tiny", "stream": True, "stream_options": CONTINUOUS, "max_tokens": 8,
        "stop": None, "ignore_eos": True, "prompt": "hello",
    }),
    "guidellm, chat": ("/v1/chat/completions", {
        "model": "tiny", "stream": True, "stream_options": CONTINUOUS, "max_completion_tokens": 8,
        "stop": None, "ignore_eos": True, "messages": TEXT_PARTS,
    }),
    "aiperf, chat": ("/v1/chat/completions", {
        "messages": [{"role": "user", "name": "bench", "content": "hello"}], "model": "tiny",
        "stream": True, "max_completion_tokens": 8, "min_tokens": 8, "ignore_eos": True,
        "stream_options": USAGE,
    }),
    "sglang.bench_serving, sglang-oai": ("/v1/completions", {
        "model": "tiny", "prompt": "hello", "temperature": 0.0, "best_of": 1, "max_tokens": 8,
        "stream": True, "ignore_eos": True, "stream_options": USAGE,
    }),
    "sglang.bench_serving, sglang-oai-chat": ("/v1/chat/completions", {
        "model": "tiny", "messages": TEXT_PARTS, "temperature": 0.0, "max_completion_tokens": 8,
        "stream": True, "ignore_eos": True, "stream_options": USAGE,
    }),
    "llmperf": ("/v1/chat/completions", {
        "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True,
        "max_tokens": 8, "stream_options": USAGE,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
async def test_a_tool_s_streamed_request_gives_what_the_tool_reads(client, name):
    path, body = STREAMED[name]
    headers = {"x-request-id": "bench-7", "authorization": "Bearer anything"}
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-request-id"] == "bench-7"
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)  # no comments: llmperf breaks on them
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines[:-1]]
    kind = "chat.completion.chunk" if "chat" in path else "text_completion"
    for event in events:
        assert {"id", "object", "created", "model", "choices"} <= set(event)
        assert event["object"] == kind
    assert [event["choices"] for event in events].index([]) == len(events) - 1
    assert events[-1]["usage"]["completion_tokens"] == 8
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_aiperf_s_readiness_probe_gets_a_whole_answer(client):
    body = {"messages": TEXT_PARTS, "model": "tiny", "stream": False, "max_completion_tokens": 1}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.json()["object"] == "chat.completion"
    assert response.json()["usage"]["completion_tokens"] == 1


async def test_tools_find_health_models_and_metrics(client):
    assert (await client.get("/health")).status_code == 200
    models = (await client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert (await client.get("/metrics")).headers["content-type"].startswith("text/plain")
