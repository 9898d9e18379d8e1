"""Where signals come from: the replicas' own `/metrics`, or a Prometheus server that scrapes them.

Both give the same `Signals`. `collect` never raises: what could not be read is counted by kind,
keeps its last value while that is younger than `stale_after_s`, and is missing after that, with its
age.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import httpx

from orchestrator import measures
from orchestrator.scrape_window import ScrapeWindow, WrongPage, parse_page
from orchestrator.signal_ledger import SignalLedger
from policies.decisions import Signals

ERROR_KINDS = ("timeout", "connect", "status", "malformed", "missing", "not_finite", "too_large")
MAX_PAGE_BYTES = 8 << 20  # a page is some 100 kB; whatever sends this much is not a replica


class SignalSource(Protocol):
    """Reads the signals of replicas."""

    @property
    def errors(self) -> Mapping[str, int]:
        """Failures so far by kind (`ERROR_KINDS`)."""

    async def collect(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        """The signals of every replica named, at `now` seconds; `replicas` maps names to the URLs
        of their metrics pages. Never raises."""

    async def close(self) -> None: ...


class _Source:
    """What both sources share: a ledger per replica, error counts, and bounded requests."""

    def __init__(self, client: httpx.AsyncClient, stale_after_s: float, timeout_s: float) -> None:
        self._client = client
        self._stale_after_s = stale_after_s
        self._timeout_s = timeout_s
        self._errors: Counter[str] = Counter(dict.fromkeys(ERROR_KINDS, 0))
        self._ledgers: dict[str, SignalLedger] = {}

    @property
    def errors(self) -> Mapping[str, int]:
        return dict(self._errors)

    async def close(self) -> None:
        await self._client.aclose()

    def _signals(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        return {
            name: self._ledgers[name].signals(name, now, self._stale_after_s) for name in replicas
        }

    def _keep_only(self, replicas: Mapping[str, str]) -> None:
        self._ledgers = {name: self._ledgers.get(name, SignalLedger()) for name in replicas}

    async def _counted(self, work: Awaitable[Any]) -> Any:
        """The result of `work`, or None and one more error of its kind."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work
        except Exception as error:  # `collect` promises to survive anything a network can send
            self._errors[_kind(error)] += 1
            return None

    async def _read(self, request: httpx.Request) -> bytes:
        response = await self._client.send(request, stream=True)
        try:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_PAGE_BYTES:
                    raise _TooLargeError
            return bytes(body)
        finally:
            await response.aclose()


class _TooLargeError(Exception):
    pass


def _kind(error: Exception) -> str:
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return "timeout"
        case httpx.HTTPStatusError():
            return "status"
        case httpx.TransportError():
            return "connect"
        case WrongPage():
            return "missing"
        case _TooLargeError():
            return "too_large"
    return "malformed"


class DirectScrape(_Source):
    """Scrapes each replica's `/metrics` itself: the default, with no server to install.

    Args:
        window_s: seconds over which rates and quantiles are taken.
        stale_after_s: age above which a value counts as missing.
        timeout_s: for one page.
        transport: instead of the network, for tests.
    """

    def __init__(
        self,
        *,
        window_s: float = 10.0,
        stale_after_s: float = 5.0,
        timeout_s: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        client = httpx.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False)
        super().__init__(client, stale_after_s, timeout_s)
        self._window_s = window_s
        self._windows: dict[str, ScrapeWindow] = {}

    async def collect(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        self._keep_only(replicas)
        self._windows = {
            name: self._windows.get(name, ScrapeWindow(self._window_s)) for name in replicas
        }
        await asyncio.gather(
            *(self._counted(self._scrape(name, url, now)) for name, url in replicas.items())
        )
        return self._signals(replicas, now)

    async def _scrape(self, replica: str, url: str, now: float) -> None:
        body = await self._read(self._client.build_request("GET", url))
        page, refused = parse_page(body.decode(), replica)
        self._errors["not_finite"] += refused
        window = self._windows[replica]
        window.add(now, page)
        self._ledgers[replica].record_window(window, now)


class PrometheusServer(_Source):
    """Asks a Prometheus server by PromQL, one query per signal.

    Args:
        url: the server's base address, its path prefix included.
        window_s: seconds over which rates are taken: four scrape intervals or more.
        verify: False to accept any certificate, or the path of a CA bundle.
        bearer_token, basic_auth: sent with every query; at most one of them.
        timeout_s: for one query.
        transport: instead of the network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        window_s: float = 15.0,
        stale_after_s: float = 5.0,
        timeout_s: float = 2.0,
        verify: bool | str = True,
        bearer_token: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if bearer_token is not None and basic_auth is not None:
            raise ValueError("a Prometheus server takes a bearer token or basic auth, not both")
        client = httpx.AsyncClient(
            auth=basic_auth,
            headers={} if bearer_token is None else {"authorization": f"Bearer {bearer_token}"},
            verify=ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify,
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
        )
        super().__init__(client, stale_after_s, timeout_s)
        self._url = url.rstrip("/") + "/api/v1/query"
        self._queries = _queries(window_s)

    async def collect(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        self._keep_only(replicas)
        names = list(self._queries)
        results = await asyncio.gather(
            *(self._counted(self._query(promql)) for promql in self._queries.values())
        )
        answers = dict(zip(names, results, strict=True))
        ages = {row["replica"]: age_s for row, age_s in answers.pop(AGE) or []}
        for replica in replicas:
            if replica in ages:
                self._record(replica, answers, now - max(0.0, ages[replica]))
        return self._signals(replicas, now)

    def _record(self, replica: str, answers: Mapping[str, list[Row] | None], at: float) -> None:
        for name, rows in answers.items():
            if rows is not None:
                mine = [(labels, value) for labels, value in rows if labels["replica"] == replica]
                try:
                    self._ledgers[replica].record_rows(name, mine, at)
                except (KeyError, ValueError):  # labels that are not ours
                    self._errors["malformed"] += 1

    async def _query(self, promql: str) -> list[Row]:
        request = self._client.build_request("POST", self._url, data={"query": promql})
        answer = json.loads(await self._read(request))
        rows = [_row(result) for result in answer["data"]["result"]]
        # A ratio without growth below the line is NaN in PromQL: absent, not an error.
        return [(labels, value) for labels, value in rows if math.isfinite(value)]


Row = tuple[Mapping[str, str], float]
AGE = "age"


def _row(result: Mapping[str, Any]) -> Row:
    labels = {str(name): str(value) for name, value in result["metric"].items()}
    labels.setdefault("replica", "")
    return labels, float(result["value"][1])


def _queries(window_s: float) -> dict[str, str]:
    """PromQL by the name under which the ledger records the answer."""
    signals = {name: measure.promql(window_s) for name, measure in measures.SIGNALS.items()}
    ratios = {name: ratio.promql(window_s) for name, ratio in measures.PLAN_SIGNALS.items()}
    return {
        AGE: measures.age_promql(),
        "plan": measures.plan_in_use_promql(),
        "acceptance": measures.acceptance_promql(window_s),
        **signals,
        **ratios,
    }
