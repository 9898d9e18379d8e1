"""What clients get back, asked with the official client. Run: pytest tests/orchestrator/api"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest
from transformers import PreTrainedTokenizerFast

from orchestrator.api import ApiSettings, build_api
from policies.vocabulary import Plan, Quality, Schedule
from replicas.in_memory_engine import InMemoryEngine, echo, failing_after, saying

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "hello"}]
HI = tuple(b"hello, world")


def says(tokenizer, text):
    return saying(tokenizer.encode(text))


def chunks_of(text):
    """The events of a stream, as JSON, `[DONE]` as it is."""
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def test_chat_answers_with_text_usage_and_finish_reason(
    make_app, make_engine, openai_of, tokenizer
):
    ask = openai_of(make_app(make_engine(script=says(tokenizer, "Grüße ✓"))))
    answer = await ask.chat.completions.create(model="tiny", messages=USER)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Grüße ✓"
    assert answer.choices[0].finish_reason == "stop"
    tokens = len(tokenizer.encode("Grüße ✓"))
    assert answer.usage.completion_tokens == tokens
    assert answer.usage.prompt_tokens == len("hello") + 2
    assert answer.usage.total_tokens == tokens + len("hello") + 2


async def test_streamed_chat_text_equals_the_whole_text(
    make_app, make_engine, openai_of, tokenizer
):
    engine = make_engine(script=says(tokenizer, "Grüße ✓ 🙂"))
    ask = openai_of(make_app(engine))
    plan = {"trimode": {"mode": "self_speculation", "block_length": 4}}
    stream = await ask.chat.completions.create(
        model="tiny", messages=USER, stream=True, extra_body=plan
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "Grüße ✓ 🙂"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]


async def test_a_stream_has_one_event_per_commit(client):
    body = {"prompt": "ab", "max_tokens": 17, "stream": True}
    body["trimode"] = {"mode": "self_speculation", "block_length": 8}
    response = await client.post("/v1/completions", json=body)
    events = chunks_of(response.text)
    assert [e["choices"][0]["text"] for e in events[:-1]] == ["a", "babababa", "babababa"]
    assert events[-1] == "data: [DONE]"


async def test_the_last_usage_chunk_has_no_choices(client):
    options = {"include_usage": True}
    body = {"prompt": "ab", "max_tokens": 3, "stream": True, "stream_options": options}
    events = chunks_of((await client.post("/v1/completions", json=body)).text)
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 3
    assert [event["usage"] for event in events[:-2]] == [None, None, None]


async def test_continuous_usage_counts_up_in_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "ab", "max_tokens": 3, "stream": True, "stream_options": options}
    events = chunks_of((await client.post("/v1/completions", json=body)).text)
    assert [e["usage"]["completion_tokens"] for e in events[:-1]] == [1, 2, 3, 3]


async def test_a_stream_without_usage_does_not_mention_it(client):
    body = {"prompt": "ab", "max_tokens": 3, "stream": True}
    assert "usage" not in (await client.post("/v1/completions", json=body)).text


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["abab"]),
        (["ab", "xyz"], ["abab", "xyzx"]),
        ([101, 102], None),
        ([[101, 102], [103]], None),
    ],
    ids=["string", "strings", "token ids", "lists of token ids"],
)
async def test_every_kind_of_prompt_is_continued(ask, tokenizer, prompt, texts):
    answer = await ask.completions.create(model="tiny", prompt=prompt, max_tokens=4)
    if texts is None:
        lists = prompt if isinstance(prompt[0], list) else [prompt]
        texts = [tokenizer.decode((ids * 4)[:4]) for ids in lists]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage.completion_tokens == 4 * len(texts)


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_each_prompt_before_its_own_choice(ask, stream):
    answer = await ask.completions.create(
        model="tiny", prompt=["ab", "xyz"], max_tokens=4, echo=True, stream=stream
    )
    texts = ["", ""]
    if stream:
        async for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        texts = [choice.text for choice in answer.choices]
    assert texts == ["ababab", "xyzxyzx"]


async def test_a_stop_string_inside_a_block_ends_the_text_before_it(client):
    body = {"prompt": "hello STOP never", "max_tokens": 64, "stop": ["zzz", "STOP"]}
    body["trimode"] = {"mode": "self_speculation", "block_length": 32}
    choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("hello ", "stop")


async def test_a_streamed_stop_string_never_leaks_its_beginning(client):
    body = {"prompt": "hello STOP never", "max_tokens": 64, "stop": "STOP", "stream": True}
    events = chunks_of((await client.post("/v1/completions", json=body)).text)[:-1]
    assert "".join(event["choices"][0]["text"] for event in events) == "hello "


async def test_sampling_parameters_reach_the_engine(make_app, make_engine, openai_of):
    engine = make_engine()
    await openai_of(make_app(engine)).completions.create(
        model="tiny", prompt="ab", max_tokens=5, temperature=0.5, top_p=0.9, seed=-1, stop=["q"],
        extra_body={"top_k": 7, "stop_token_ids": [9], "ignore_eos": True},
    )  # fmt: skip
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (5, 0.5, 0.9)
    assert (sampling.top_k, sampling.stop, sampling.stop_token_ids) == (7, ("q",), (9,))
    assert sampling.ignore_eos
    assert sampling.seed is not None
    assert sampling.seed >= 0


async def test_defaults_are_openais_where_openai_has_one(make_app, make_engine, client_of):
    engine = make_engine()
    async with client_of(make_app(engine)) as client:
        await client.post("/v1/completions", json={"prompt": "ab"})
        await client.post("/v1/chat/completions", json={"messages": USER})
    completion, chat = (request.sampling for request in engine.requests)
    assert (completion.max_tokens, completion.temperature) == (16, 1.0)
    assert chat.max_tokens == 512 - len("hello") - 2


@pytest.mark.parametrize(
    ("options", "plan", "quality"),
    [
        ({}, None, Quality.EXACT),
        ({"mode": "auto", "quality": "any"}, None, Quality.ANY),
        ({"mode": "ar"}, "ar", Quality.EXACT),
        ({"mode": "self_speculation"}, "self_speculation/16", Quality.EXACT),
        ({"mode": "diffusion", "block_length": 8}, "diffusion/8", Quality.ANY),
        ({"mode": "diffusion", "threshold": 0.7}, "diffusion/16@0.7", Quality.ANY),
        ({"mode": "ar", "quality": "any"}, "ar", Quality.ANY),
    ],
)
async def test_the_trimode_extras_choose_plan_and_quality(
    make_app, make_engine, client_of, options, plan, quality
):
    engine = make_engine()
    async with client_of(make_app(engine)) as client:
        await client.post("/v1/completions", json={"prompt": "ab", "trimode": options})
    assert engine.requests[0].plan == (Plan.parse(plan) if plan else None)
    assert engine.requests[0].quality is quality


async def test_modes_used_are_named_in_header_and_usage(make_app, make_engine, client_of):
    engine = make_engine(schedule=Schedule.pinned(Plan.parse("diffusion/4")))
    async with client_of(make_app(engine)) as client:
        body = {"prompt": "ab", "max_tokens": 9, "trimode": {"quality": "any"}}
        response = await client.post("/v1/completions", json=body)
    assert response.headers["x-trimode-mode"] == "diffusion"
    usage = response.json()["usage"]["trimode"]
    assert usage == {"modes": {"diffusion": 8}, "prefill_tokens": 1, "commits": 3}


async def test_a_change_of_plan_is_told_by_the_first_chunk_after_it(
    make_app, make_engine, client_of
):
    commits = 0

    async def switch_after_three():
        nonlocal commits
        commits += 1
        if commits == 3:
            engine.set_schedule(Schedule.pinned(Plan.parse("self_speculation/4"), version=1))

    engine = make_engine(pace=switch_after_three)
    async with client_of(make_app(engine)) as client:
        body = {"prompt": "ab", "max_tokens": 11, "stream": True}
        response = await client.post("/v1/completions", json=body)
    plans = [event.get("trimode") for event in chunks_of(response.text)[:-1]]
    told = [(index, plan["plan"]) for index, plan in enumerate(plans) if plan]
    assert told == [(1, "ar"), (3, "self_speculation/4")]


async def test_an_engine_failure_in_a_stream_is_an_error_event_then_done(
    make_app, make_engine, client_of
):
    engine = make_engine(script=failing_after(3, echo, "device lost"))
    async with client_of(make_app(engine)) as client:
        body = {"prompt": "ab", "stream": True}
        events = chunks_of((await client.post("/v1/completions", json=body)).text)
    assert events[-2]["error"]["message"] == "device lost"
    assert set(events[-2]["error"]) == {"message", "type", "param", "code"}
    assert events[-1] == "data: [DONE]"


async def test_the_official_client_raises_on_an_error_event(make_app, make_engine, openai_of):
    ask = openai_of(make_app(make_engine(script=failing_after(3))))
    stream = await ask.chat.completions.create(model="tiny", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="device lost"):
        _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_failure_before_the_first_token_is_a_500(
    make_app, make_engine, openai_of, stream
):
    ask = openai_of(make_app(make_engine(script=failing_after(0))))
    with pytest.raises(openai.InternalServerError):
        await ask.chat.completions.create(model="tiny", messages=USER, stream=stream)


async def test_one_failing_prompt_of_several_fails_the_request(make_app, make_engine, client_of):
    def script(request):
        fail = request.request_id.endswith("-1")
        return failing_after(0)(request) if fail else echo(request)

    engine = make_engine(script=script)
    async with client_of(make_app(engine)) as client:
        response = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert response.status_code == 500
    assert engine.report().decoding == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_with_retry_after(make_app, make_engine, client_of, stream):
    gate = asyncio.Event()
    engine = make_engine(pace=gate.wait, max_running=1, max_waiting=0)
    async with client_of(make_app(engine, retry_after_s=3)) as client:
        body = {"prompt": "ab", "max_tokens": 2}
        first = asyncio.create_task(client.post("/v1/completions", json=body))
        while not engine.report().decoding:
            await asyncio.sleep(0)
        refused = await client.post("/v1/completions", json={**body, "stream": stream})
        gate.set()
        assert (await first).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "3"
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_stopped_engine_is_a_503(make_app, make_engine, openai_of):
    engine = make_engine()
    await engine.stop()
    with pytest.raises(openai.InternalServerError) as raised:
        await openai_of(make_app(engine)).completions.create(model="tiny", prompt="ab")
    assert raised.value.status_code == 503


async def test_stopping_the_engine_ends_a_stream_with_an_error_event(
    make_app, make_engine, client_of
):
    commits = 0

    async def stop_at_two():
        nonlocal commits
        commits += 1
        if commits == 2:
            await engine.stop()

    engine = make_engine(pace=stop_at_two)
    async with client_of(make_app(engine)) as client:
        response = await client.post("/v1/completions", json={"prompt": "ab", "stream": True})
    assert chunks_of(response.text)[-2]["error"]["code"] == "engine_stopped"


async def test_min_tokens_is_honoured_where_nothing_can_end_the_text_early(client):
    body = {"prompt": "ab", "max_tokens": 5, "min_tokens": 5, "ignore_eos": True}
    response = await client.post("/v1/completions", json=body)
    assert response.json()["usage"]["completion_tokens"] == 5


async def test_the_demo_model_s_tokenizer_and_template_serve(make_engine, client_of):
    folder = Path(__file__).parents[3] / "replicas" / "tiny" / "checkpoint"
    demo = PreTrainedTokenizerFast.from_pretrained(folder)
    engine = InMemoryEngine(lambda ids: demo.decode(list(ids), skip_special_tokens=True))
    async with client_of(build_api(engine, demo, ApiSettings(model_name="demo"))) as client:
        response = await client.post("/v1/chat/completions", json={"messages": USER})
        assert response.status_code == 200, response.text
    prompt = demo.decode(list(engine.requests[0].prompt_token_ids))
    assert prompt == "<|user|>hello<|assistant|>"


async def test_content_parts_and_the_developer_role_reach_the_template(
    make_app, make_engine, client_of, tokenizer
):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    engine = make_engine()
    async with client_of(make_app(engine)) as client:
        await client.post("/v1/chat/completions", json={"messages": turns})
    prompt = tokenizer.decode(list(engine.requests[0].prompt_token_ids))
    assert prompt == "<|system|>be brief<|user|>a\nb<|assistant|>"
