"""Text in, token ids out: prompts, chat templates, and the checks on both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from orchestrator.api.schemas import Message
from orchestrator.errors import ApiError

# Shorter texts take less time to tokenize than a thread takes to start on them.
_INLINE_CHARACTERS = 16_384


class Tokenizer(Protocol):
    """What is used of a `transformers.PreTrainedTokenizerFast`."""

    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ...) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...

    def __len__(self) -> int: ...


class PromptEncoder:
    """Turns what clients send into token ids. Long texts are encoded off the event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    async def text(self, text: str, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        if len(text) <= _INLINE_CHARACTERS:
            ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            ids = await asyncio.to_thread(
                self.tokenizer.encode, text, add_special_tokens=add_special_tokens
            )
        return self._not_empty(ids, param)

    async def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        # The template writes the special tokens itself.
        return await self.text(self._render(messages), "messages", add_special_tokens=False)

    def token_ids(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        size = len(self.tokenizer)
        if ids and max(ids) >= size:
            message = f"{param}: token id {max(ids)} is not below the vocabulary's size {size}"
            raise ApiError(message, param=param, code="invalid_value")
        return self._not_empty(ids, param)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render(self, messages: Sequence[Message]) -> str:
        if not self.tokenizer.chat_template:
            message = "This model has no chat template; use /v1/completions."
            raise ApiError(message, param="messages", code="no_chat_template")
        turns = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text}
            for m in messages
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            message = f"messages: the model's chat template refuses them: {error}"
            raise ApiError(message, param="messages", code="invalid_value") from None

    @staticmethod
    def _not_empty(ids: Sequence[int], param: str) -> tuple[int, ...]:
        if not ids:
            message = f"{param} has no tokens; send at least one"
            raise ApiError(message, param=param, code="invalid_value")
        return tuple(ids)
