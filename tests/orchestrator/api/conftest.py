"""The application over an in-memory engine and a byte-level tokenizer: one byte is one token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orchestrator.api import ApiSettings, build_api
from replicas.in_memory_engine import InMemoryEngine

CONTEXT = 512
TEMPLATE = (
    "{%- for m in messages -%}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{%- if m['role'] == 'assistant' -%}<|eos|>{%- endif -%}{%- endfor -%}"
    "{%- if messages[-1]['role'] == 'assistant' -%}"
    "{{ raise_exception('the last turn must be the user') }}{%- endif -%}"
    "<|assistant|>"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def make_engine(tokenizer: PreTrainedTokenizerFast) -> Callable[..., InMemoryEngine]:
    """`make_engine(script=..., pace=...)`: an engine that ends a sequence at `<|eos|>`."""

    def make(**options: Any) -> InMemoryEngine:
        def decode(ids: Any) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True))

        return InMemoryEngine(decode, **{"eos_token_id": 0, "max_model_len": CONTEXT, **options})

    return make


@pytest.fixture
def make_app(
    make_engine: Callable[..., InMemoryEngine], tokenizer: PreTrainedTokenizerFast
) -> Callable[..., FastAPI]:
    """`make_app(engine, observer=..., api_keys=...)`: settings and arguments of build_api mixed."""

    def make(engine: InMemoryEngine | None = None, **options: Any) -> FastAPI:
        names = ("observer", "registry", "control", "is_ready", "clock")
        arguments = {name: options.pop(name) for name in names if name in options}
        arguments.setdefault("registry", CollectorRegistry())
        settings = ApiSettings(model_name="tiny", max_model_len=CONTEXT, **options)
        return build_api(engine or make_engine(), tokenizer, settings, **arguments)

    return make


@pytest.fixture
def client_of() -> Callable[..., httpx.AsyncClient]:
    def connect(app: Any, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://trimode", **options)

    return connect


@pytest.fixture
def openai_of(client_of: Callable[..., httpx.AsyncClient]) -> Callable[..., openai.AsyncOpenAI]:
    """The official client against an application."""

    def connect(app: FastAPI, key: str = "unused") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=key, base_url="http://trimode/v1", http_client=client_of(app), max_retries=0
        )

    return connect


@pytest.fixture
async def client(
    make_app: Callable[..., FastAPI], client_of: Callable[..., httpx.AsyncClient]
) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make_app()) as http:
        yield http


@pytest.fixture
def ask(
    make_app: Callable[..., FastAPI], openai_of: Callable[..., openai.AsyncOpenAI]
) -> openai.AsyncOpenAI:
    """The official client against the default application, which echoes its prompt."""
    return openai_of(make_app())
