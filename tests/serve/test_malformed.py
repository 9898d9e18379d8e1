"""Malformed requests through Serve's proxy: the documented 4xx, and the replicas serve on."""

from __future__ import annotations

import json

import httpx

from tests.orchestrator.api.test_api_bad_requests import FIELDS, GOOD, JSON, RAW
from tests.serve.cluster import PROMPTS, App

# Those that depend on the limits or the chat template of the other file, that an HTTP client will
# not send as they stand, or that need an application without an admin key.
ELSEWHERE = {
    "turns that the template refuses",
    "body too large",
    "Content-Length too large",
    "Content-Length negative",
    "double slash",
    "dot segments",
    "no admin key set",
}


def test_malformed_requests_get_their_documented_status_and_the_replicas_serve_on(
    app: App,
) -> None:
    before = {name: row["metrics_url"] for name, row in app.replicas().items()}
    wrong: dict[str, str] = {}
    with httpx.Client(base_url=app.root, timeout=20, trust_env=False) as client:
        for name, (path, fields, param, code) in FIELDS.items():
            if code != "context_length_exceeded" and name not in ELSEWHERE:
                body = json.dumps({**GOOD[path], **fields}).encode()
                response = client.post(path, content=body, headers=JSON)
                _note(wrong, name, response, 400, code, param)
        for name, (method, path, body, headers, status, code) in RAW.items():
            if name not in ELSEWHERE:
                response = client.request(method, path, content=body, headers=headers)
                _note(wrong, name, response, status, code)
        large = client.post("/v1/completions", content=b" " * (5 << 20), headers=JSON)
        _note(wrong, "five megabytes", large, 413, "body_too_large")
        key = {"authorization": "Bearer wrong"}
        _note(wrong, "wrong key", client.get("/control/v1/replicas", headers=key), 401, None)
    assert wrong == {}
    answers = {_ask(app) for _ in range(4)}
    assert len(answers) == 1
    assert {name: row["metrics_url"] for name, row in app.replicas().items()} == before


def _ask(app: App) -> str:
    message = {"role": "user", "content": PROMPTS[0]}
    answer = app.client.chat.completions.create(model="tiny", messages=[message], max_tokens=32)
    return answer.choices[0].message.content or ""


def _note(
    wrong: dict[str, str],
    name: str,
    response: httpx.Response,
    status: int,
    code: str | None,
    param: str | None = None,
) -> None:
    """Keeps what is not as documented, so that one run shows all of it."""
    error = response.json().get("error", {}) if response.content else {}
    is_right = response.status_code == status and (code is None or error.get("code") == code)
    if not is_right or (param is not None and error.get("param") != param):
        wrong[name] = f"{response.status_code} {response.text[:200]}"
