"""Malformed requests: each gets its documented 4xx in OpenAI's shape, and the app serves on."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]

# name: (path, fields added to a good body, param, code)
FIELDS = {
    "max_tokens zero": (TEXT, {"max_tokens": 0}, "max_tokens", "invalid_value"),
    "max_tokens negative": (TEXT, {"max_tokens": -1}, "max_tokens", "invalid_value"),
    "max_tokens string": (TEXT, {"max_tokens": "5"}, "max_tokens", "invalid_value"),
    "max_tokens boolean": (TEXT, {"max_tokens": True}, "max_tokens", "invalid_value"),
    "max_tokens fraction": (TEXT, {"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    "max_tokens huge": (TEXT, {"max_tokens": 10**30}, "max_tokens", "invalid_value"),
    "max_tokens above the context": (
        TEXT, {"max_tokens": 511}, "max_tokens", "context_length_exceeded"),
    "max_completion_tokens above the context": (
        CHAT, {"max_completion_tokens": 511, "max_tokens": None}, "max_completion_tokens",
        "context_length_exceeded"),
    "max_completion_tokens contradicted": (
        CHAT, {"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "invalid_value"),
    "max_completion_tokens in completions": (
        TEXT, {"max_completion_tokens": 5}, "max_completion_tokens", "unknown_parameter"),
    "temperature negative": (TEXT, {"temperature": -0.1}, "temperature", "invalid_value"),
    "temperature too high": (TEXT, {"temperature": 2.1}, "temperature", "invalid_value"),
    "temperature list": (TEXT, {"temperature": [1]}, "temperature", "invalid_value"),
    "top_p zero": (TEXT, {"top_p": 0}, "top_p", "invalid_value"),
    "top_p above one": (TEXT, {"top_p": 1.01}, "top_p", "invalid_value"),
    "top_k below off": (TEXT, {"top_k": -2}, "top_k", "invalid_value"),
    "seed beyond 64 bits": (TEXT, {"seed": 2**63}, "seed", "invalid_value"),
    "seed string": (TEXT, {"seed": "x"}, "seed", "invalid_value"),
    "stop number": (TEXT, {"stop": 5}, "stop", "invalid_value"),
    "stop with an empty string": (TEXT, {"stop": [""]}, "stop", "invalid_value"),
    "stop with too many strings": (TEXT, {"stop": ["a"] * 17}, "stop", "invalid_value"),
    "stop_token_ids negative": (
        TEXT, {"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    "stream string": (TEXT, {"stream": "yes"}, "stream", "invalid_value"),
    "stream_options without stream": (
        TEXT, {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    "stream_options unknown": (
        TEXT, {"stream": True, "stream_options": {"usage": 1}}, "stream_options.usage",
        "unknown_parameter"),
    "min_tokens that cannot be honoured": (
        TEXT, {"min_tokens": 3}, "min_tokens", "unsupported_parameter"),
    "min_tokens above max_tokens": (
        TEXT, {"min_tokens": 9, "ignore_eos": True}, "min_tokens", "invalid_value"),
    "n two": (CHAT, {"n": 2}, "n", "unsupported_parameter"),
    "n true": (CHAT, {"n": True}, "n", "unsupported_parameter"),
    "best_of": (TEXT, {"best_of": 2}, "best_of", "unsupported_parameter"),
    "suffix": (TEXT, {"suffix": "end"}, "suffix", "unsupported_parameter"),
    "logprobs in chat": (CHAT, {"logprobs": True}, "logprobs", "unsupported_parameter"),
    "logprobs in completions": (TEXT, {"logprobs": 0}, "logprobs", "unsupported_parameter"),
    "top_logprobs": (CHAT, {"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
    "logit_bias": (CHAT, {"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    "presence_penalty": (
        CHAT, {"presence_penalty": 0.1}, "presence_penalty", "unsupported_parameter"),
    "frequency_penalty": (
        CHAT, {"frequency_penalty": -2}, "frequency_penalty", "unsupported_parameter"),
    "repetition_penalty": (
        TEXT, {"repetition_penalty": 1.1}, "repetition_penalty", "unsupported_parameter"),
    "tools": (CHAT, {"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    "tool_choice": (CHAT, {"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    "JSON schema": (
        CHAT, {"response_format": {"type": "json_object"}}, "response_format",
        "unsupported_parameter"),
    "echo in chat": (CHAT, {"echo": True}, "echo", "unsupported_parameter"),
    "unknown field": (CHAT, {"temprature": 1}, "temprature", "unknown_parameter"),
    "unknown field with an odd name": (CHAT, {"a.b[0] é": 1}, "a.b[0] é", "unknown_parameter"),
    "model number": (CHAT, {"model": 5}, "model", "invalid_value"),
    "metadata numbers": (CHAT, {"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
    "messages empty": (CHAT, {"messages": []}, "messages", "invalid_value"),
    "messages string": (CHAT, {"messages": "hi"}, "messages", "invalid_value"),
    "message without content": (
        CHAT, {"messages": [{"role": "user"}]}, "messages[0].content",
        "missing_required_parameter"),
    "message with null content": (
        CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content",
        "invalid_value"),
    "unknown role": (
        CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role",
        "invalid_value"),
    "tool role": (
        CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role",
        "invalid_value"),
    "turns that the template refuses": (
        CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
    "image part": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type", "invalid_value"),
    "content parts empty": (
        CHAT, {"messages": [{"role": "user", "content": []}]}, "messages[0].content",
        "invalid_value"),
    "prompt missing": (CHAT, {"prompt": "x"}, "prompt", "unknown_parameter"),
    "prompt number": (TEXT, {"prompt": 5}, "prompt", "invalid_value"),
    "prompt null": (TEXT, {"prompt": None}, "prompt", "invalid_value"),
    "prompt empty": (TEXT, {"prompt": ""}, "prompt", "invalid_value"),
    "prompt empty list": (TEXT, {"prompt": []}, "prompt", "invalid_value"),
    "prompt with an empty prompt": (TEXT, {"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    "prompt of mixed kinds": (TEXT, {"prompt": ["a", 5]}, "prompt", "invalid_value"),
    "token id negative": (TEXT, {"prompt": [-1]}, "prompt", "invalid_value"),
    "token id beyond the vocabulary": (TEXT, {"prompt": [9999]}, "prompt", "invalid_value"),
    "too many prompts": (TEXT, {"prompt": ["a"] * 65}, "prompt", "invalid_value"),
    "prompt too long": (TEXT, {"prompt": "a" * 600}, "prompt", "context_length_exceeded"),
    "conversation too long": (
        CHAT, {"messages": [{"role": "user", "content": "a" * 600}]}, "messages",
        "context_length_exceeded"),
    "trimode string": (CHAT, {"trimode": "ar"}, "trimode", "invalid_value"),
    "mode unknown": (CHAT, {"trimode": {"mode": "warp"}}, "trimode.mode", "invalid_value"),
    "quality unknown": (CHAT, {"trimode": {"quality": "x"}}, "trimode.quality", "invalid_value"),
    "trimode field unknown": (
        CHAT, {"trimode": {"modes": 1}}, "trimode.modes", "unknown_parameter"),
    "exact diffusion": (
        CHAT, {"trimode": {"mode": "diffusion", "quality": "exact"}}, "trimode.quality",
        "invalid_value"),
    "block length without mode": (
        CHAT, {"trimode": {"block_length": 8}}, "trimode.block_length", "invalid_value"),
    "block length odd": (
        CHAT, {"trimode": {"mode": "diffusion", "block_length": 7}}, "trimode.block_length",
        "invalid_value"),
    "block length of AR": (
        CHAT, {"trimode": {"mode": "ar", "block_length": 8}}, "trimode.block_length",
        "invalid_value"),
    "block length one of diffusion": (
        CHAT, {"trimode": {"mode": "diffusion", "block_length": 1}}, "trimode.block_length",
        "invalid_value"),
    "threshold without diffusion": (
        CHAT, {"trimode": {"mode": "self_speculation", "threshold": 0.5}}, "trimode.threshold",
        "invalid_value"),
    "threshold zero": (
        CHAT, {"trimode": {"mode": "diffusion", "threshold": 0}}, "trimode.threshold",
        "invalid_value"),
    "tokenize neither": ("/tokenize", {}, "prompt", "invalid_value"),
    "tokenize both": ("/tokenize", {"prompt": "x", "messages": USER}, "prompt", "invalid_value"),
    "detokenize beyond the vocabulary": (
        "/detokenize", {"tokens": [9999]}, "tokens", "invalid_value"),
    "detokenize missing": ("/detokenize", {}, "tokens", "missing_required_parameter"),
}  # fmt: skip
GOOD = {
    CHAT: {"messages": USER, "max_tokens": 4},
    TEXT: {"prompt": "hi", "max_tokens": 4},
    "/tokenize": {},
    "/detokenize": {},
}

# name: (method, path, body, headers, status, code)
JSON = {"content-type": "application/json"}
RAW = {
    "empty body": ("POST", CHAT, b"", JSON, 400, "invalid_json"),
    "not JSON": ("POST", CHAT, b"{", JSON, 400, "invalid_json"),
    "trailing garbage": ("POST", CHAT, b'{"prompt":"x"}}', JSON, 400, "invalid_json"),
    "array body": ("POST", CHAT, b"[]", JSON, 400, "invalid_value"),
    "null body": ("POST", CHAT, b"null", JSON, 400, "invalid_value"),
    "lone surrogate in a name": ("POST", TEXT, rb'{"prompt":"x","\ud800":1}', JSON, 400,
        "invalid_json"),
    "lone surrogate in a text": ("POST", TEXT, rb'{"prompt":"\uDFFF"}', JSON, 400, "invalid_json"),
    "bad UTF-8": ("POST", TEXT, b'{"prompt":"\xff\xfe"}', JSON, 400, "invalid_json"),
    "UTF-16": ("POST", TEXT, '{"prompt":"x"}'.encode("utf-16"), JSON, 400, "invalid_json"),
    "NaN": ("POST", TEXT, b'{"prompt":"x","temperature":NaN}', JSON, 400, "invalid_json"),
    "Infinity": ("POST", TEXT, b'{"prompt":"x","top_p":Infinity}', JSON, 400, "invalid_json"),
    "1e999": ("POST", TEXT, b'{"prompt":"x","temperature":1e999}', JSON, 400, "invalid_value"),
    "integer of 5000 digits": (
        "POST", TEXT, b'{"prompt":"x","seed":' + b"9" * 5000 + b"}", JSON, 400, "invalid_json"),
    "nested 100000 deep": ("POST", TEXT, b"[" * 100_000, JSON, 400, "invalid_json"),
    "nested 400 deep": (
        "POST", CHAT, b'{"logit_bias":' + b"[" * 400 + b"]" * 400 + b"}", JSON, 400,
        "unsupported_parameter"),
    "form body": (
        "POST", TEXT, b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}, 415,
        "unsupported_media_type"),
    "no content type": ("POST", TEXT, b'{"prompt":"x"}', {}, 415, "unsupported_media_type"),
    "body too large": ("POST", TEXT, b" " * 70_000, JSON, 413, "body_too_large"),
    "Content-Length too large": (
        "POST", TEXT, b"{}", {**JSON, "content-length": "9" * 30}, 413, "body_too_large"),
    "Content-Length negative": (
        "POST", TEXT, b"{}", {**JSON, "content-length": "-5"}, 400, "invalid_content_length"),
    "unknown model": (
        "POST", CHAT, json.dumps({"model": "gpt-9", "messages": USER}).encode(), JSON, 404,
        "model_not_found"),
    "unknown model by path": ("GET", "/v1/models/gpt-9", b"", {}, 404, "model_not_found"),
    "GET on a POST route": ("GET", CHAT, b"", {}, 405, "method_not_allowed"),
    "DELETE on a route": ("DELETE", TEXT, b"", {}, 405, "method_not_allowed"),
    "POST on a GET route": ("POST", "/v1/models", b"{}", JSON, 405, "method_not_allowed"),
    "unknown path": ("GET", "/v1/embeddings", b"", {}, 404, "unknown_url"),
    "unknown API": ("POST", "/v1/embeddings", b"{}", JSON, 404, "unknown_url"),
    "trailing slash": ("GET", "/health/", b"", {}, 404, "unknown_url"),
    "double slash": ("GET", "//health", b"", {}, 404, "unknown_url"),
    "dot segments": ("GET", "/v1/../../etc/passwd", b"", {}, 404, "unknown_url"),
    "encoded dot segments": (
        "GET", "/v1/models/..%2f..%2fetc%2fpasswd", b"", {}, 404, "model_not_found"),
    "path in capitals": ("GET", "/HEALTH", b"", {}, 404, "unknown_url"),
    "zero byte in the path": ("GET", "/v1/models/%00", b"", {}, 404, "model_not_found"),
    "no admin key set": ("GET", "/control/v1/replicas", b"", {}, 403, "control_closed"),
}  # fmt: skip


def assert_error(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert list(response.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    assert error["message"]
    return error


async def assert_serves(client):
    response = await client.post(TEXT, json={"prompt": "ab", "max_tokens": 3})
    assert response.json()["choices"][0]["text"] == "aba"


@pytest.mark.parametrize("name", FIELDS)
async def test_a_bad_parameter_is_refused_by_name(client, name):
    path, fields, param, code = FIELDS[name]
    content = json.dumps({**GOOD[path], **fields}).encode()
    error = assert_error(await client.post(path, content=content, headers=JSON), 400, code)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    await assert_serves(client)


@pytest.mark.parametrize("name", RAW)
async def test_a_bad_request_gets_its_documented_status(make_app, client_of, name):
    method, path, body, headers, status, code = RAW[name]
    limit = 64_000 if code == "body_too_large" else 200_000
    async with client_of(make_app(max_body_bytes=limit)) as client:
        response = await client.request(method, path, content=body, headers=headers)
        assert_error(response, status, code)
        await assert_serves(client)


async def test_a_chunked_body_is_refused_as_soon_as_it_exceeds_the_limit(make_app, client_of):
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b" " * 1000

    async with client_of(make_app(max_body_bytes=5_000)) as client:
        response = await client.post(TEXT, content=endless(), headers=JSON)
        assert_error(response, 413, "body_too_large")
        assert sent <= 6
        await assert_serves(client)


async def test_a_405_names_the_methods_that_are_allowed(client):
    assert (await client.get(CHAT)).headers["allow"] == "POST"


async def test_every_refused_parameter_accepts_its_neutral_values(client):
    neutral = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "presence_penalty": 0.0,
        "frequency_penalty": 0, "repetition_penalty": 1.0, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "parallel_tool_calls": True, "min_p": 0.0,
        "service_tier": "auto", "store": False, "user": "me", "metadata": {"a": "b"},
    }  # fmt: skip
    for extra in (neutral, dict.fromkeys(neutral)):
        response = await client.post(CHAT, json={**GOOD[CHAT], **extra})
        assert response.status_code == 200, response.text


async def test_an_unexpected_exception_is_a_500_that_tells_nothing(
    make_app, make_engine, client_of
):
    def broken(request):
        raise KeyError("secret internals")

    async with client_of(make_app(make_engine(script=broken))) as client:
        response = await client.post(TEXT, json={"prompt": "ab"})
    assert_error(response, 500, "internal_error")
    assert "secret" not in response.text
