"""What clients get through Serve's proxy. Run with: pytest tests/serve"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import openai
import pytest

from tests.serve.cluster import PROMPTS, App


def test_a_chat_streams_and_ends_with_usage(app: App) -> None:
    chunks = list(
        app.client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": PROMPTS[0]}],
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = app.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=64
    )
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 2


def test_a_completion_streams_what_it_answers_whole(app: App) -> None:
    options = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 32, "temperature": 0}
    whole = app.client.completions.create(**options).choices[0].text
    chunks = app.client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole


def test_a_prefix_before_every_route_changes_nothing_else(app: App) -> None:
    assert [model.id for model in app.client.models.list()] == ["tiny"]
    assert app.get("/health") == {"status": "ok"}
    assert app.get("/ready") == {"status": "ok"}


def test_the_control_routes_are_for_the_admin_key_alone(app: App) -> None:
    url = f"{app.root}/control/v1/replicas"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": "Bearer none"}).status_code == 401
    assert len(app.replicas()) == 2


def test_an_unknown_replica_is_404_through_the_controller(app: App) -> None:
    with pytest.raises(httpx.HTTPStatusError) as raised:
        app.pin("ar", replica="nobody")
    assert raised.value.response.status_code == 404
    assert raised.value.response.json()["error"]["code"] == "replica_not_found"


def test_a_full_replica_answers_429_with_retry_after(deploy: Callable[..., App]) -> None:
    small = deploy("small", num_replicas=1, max_sequences=1, max_waiting=1)

    async def crowd() -> list[openai.APIStatusError | str]:
        async def one() -> openai.APIStatusError | str:
            try:
                answer = await small.async_client.completions.create(
                    model="tiny",
                    prompt=PROMPTS[0],
                    max_tokens=400,
                    extra_body={"ignore_eos": True, "trimode": {"mode": "ar"}},
                )
            except openai.APIStatusError as error:
                return error
            return answer.choices[0].finish_reason

        return await asyncio.gather(*(one() for _ in range(8)))

    results = asyncio.run(crowd())
    refused = [r for r in results if not isinstance(r, str)]
    assert {error.status_code for error in refused} == {429}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert 2 <= len(results) - len(refused) <= 4
