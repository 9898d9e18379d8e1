"""Token ids of one sequence to text, as they come, with exact stop strings."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes one sequence token by token.

    Text that could still become a stop string, or an incomplete UTF-8 character, is held back, so
    nothing that was handed out ever has to be taken back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that is now certain. Sets `stopped` when a stop string is complete."""
        self._ids.append(token_id)
        piece = self._decoder.step(self._tokenizer, token_id) or ""
        self._decoded += len(piece)
        return self._release(piece)

    def flush(self) -> str:
        """What was held back, at the end of a sequence that no stop string ended."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = self._release(text[self._decoded :])
        self._decoded = len(text)
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, piece: str) -> str:
        if not self._stop:
            return piece
        self._held += piece
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max(_overlap(self._held, text) for text in self._stop)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
