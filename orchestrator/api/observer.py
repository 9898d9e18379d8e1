"""The seam to metrics: what the HTTP surface tells about each request."""

from __future__ import annotations

from typing import Protocol

from replicas.engine import Delta, Request


class RequestObserver(Protocol):
    """Told of each sequence's life, on the event loop, so it must not block.

    Per sequence: `queued`, then on the first delta `first_token`, then `commit` for every delta
    (the first included), and always `finished`, once.
    """

    def queued(self, request: Request) -> None:
        """The request is valid and goes to the engine."""

    def first_token(self, request: Request, seconds: float) -> None:
        """The first delta came `seconds` after `queued`."""

    def commit(self, request: Request, delta: Delta, seconds: float) -> None:
        """A delta came `seconds` after the one before (for the first: after `queued`)."""

    def finished(self, request: Request, outcome: str, seconds: float, tokens: int) -> None:
        """The end, `seconds` after `queued`, with `tokens` committed.

        `outcome` is one of stop, length, cancelled, rejected, overloaded, stopped, error.
        """


class NullObserver:
    """Observes nothing."""

    def queued(self, request: Request) -> None: ...

    def first_token(self, request: Request, seconds: float) -> None: ...

    def commit(self, request: Request, delta: Delta, seconds: float) -> None: ...

    def finished(self, request: Request, outcome: str, seconds: float, tokens: int) -> None: ...
