"""`trimode status`, `pin`, `unpin`, `policy`: what a running controller does, and orders to it.

All of it is HTTP to `/control/v1`, so it works from wherever the server can be reached.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import httpx

Row = Mapping[str, Any]
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MODE_STYLES = {"ar": "blue", "self_speculation": "green", "diffusion": "magenta"}


@dataclass(frozen=True, slots=True)
class Server:
    """Where the control API is."""

    url: str
    key: str

    def get(self, path: str, **params: Any) -> Any:
        return self._ask("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Row) -> Any:
        return self._ask("POST", path, json=body)

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        import httpx

        url = f"{self.url.rstrip('/')}/control/v1/{path}"
        # Without a key the server says what is missing; an empty one cannot even be sent.
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        with _readable(self.url), httpx.Client(timeout=10, trust_env=False) as client:
            response = client.request(method, url, headers=headers, **content)
            response.raise_for_status()
            return response.json()


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Errors of the network and of the server as one line each."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise click.ClickException(_reason(error.response)) from None
    except httpx.TransportError as error:
        raise click.ClickException(
            f"{url} does not answer ({error}); is it running? --url says where"
        ) from None


def _reason(response: httpx.Response) -> str:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {response.status_code}"
    if response.status_code == 401:
        return message.rstrip(".") + "; give --admin-key or TRIMODE_ADMIN_KEY"
    return message


def with_server(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --url and --admin-key, and passes the `Server` they make."""

    @click.option("--url", default="http://127.0.0.1:8000", envvar="TRIMODE_URL", show_default=True)
    @click.option(
        "--admin-key", default="", envvar="TRIMODE_ADMIN_KEY", help="Or TRIMODE_ADMIN_KEY."
    )
    def wrapped(url: str, admin_key: str, **arguments: Any) -> None:
        command(Server(url, admin_key), **arguments)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    # Options that were declared below this decorator.
    wrapped.__click_params__ += getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return wrapped


@click.command(short_help="What every replica does now, and why.")
@with_server
@click.option("--watch", is_flag=True, help="Keep it up to date.")
@click.option("--every", default=1.0, help="Seconds between two updates of --watch.")
def status(server: Server, watch: bool, every: float) -> None:
    """Show every replica's plan, load, throughput and last decision."""
    console = Console(highlight=False)
    if not watch:
        console.print(status_table(server.get("replicas")))
        return
    with Live(status_table(server.get("replicas")), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(status_table(server.get("replicas")), refresh=True)


def status_table(rows: list[Row]) -> Table:
    table = Table(
        *("replica", "plan", "decoding", "waiting", "tokens/s", "TTFT p95", "TPOT p95"),
        *("KV", "switches", "last decision"),
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for name in ("decoding", "waiting", "tokens/s", "TTFT p95", "TPOT p95", "KV", "switches"):
        next(c for c in table.columns if c.header == name).justify = "right"
    for row in sorted(rows, key=lambda row: str(row["replica"])):
        signals = {name: signal["value"] for name, signal in row["signals"].items()}
        table.add_row(
            str(row["replica"]),
            _plan_cell(row),
            _number(signals["decoding"]),
            _number(signals["waiting"]),
            _number(signals["tokens_per_s"]),
            _milliseconds(signals["ttft_p95_s"]),
            _milliseconds(signals["tpot_p95_s"]),
            "-" if signals["kv_use"] is None else f"{signals['kv_use']:.0%}",
            str(row["switches"]),
            _decision_cell(row),
        )
    if not rows:
        table.add_row("none registered")
    return table


def _plan_cell(row: Row) -> Text:
    plan = str(row["plan"])
    cell = Text(plan, style=_MODE_STYLES.get(plan.partition("/")[0], ""))
    if row["pin"] is not None:
        cell.append(f" pinned, {_duration(row['pin']['expires_in_s'])} left", style="yellow")
    if row["seen_s_ago"] > 5:
        cell.append(f" silent for {row['seen_s_ago']:.0f} s", style="red")
    return cell


def _decision_cell(row: Row) -> str:
    decision = row["decision"]
    if decision is None:
        return "none yet"
    detail = f": {decision['detail']}" if decision["detail"] else ""
    return f"{decision['reason']}{detail}" + (" (advisory)" if decision["advisory"] else "")


@click.command(short_help="Hold a replica in one plan for a while.")
@with_server
@click.argument("replica")
@click.argument("plan")
@click.option("--for", "duration", default="15m", show_default=True, help="As 90s, 10m or 2h.")
def pin(server: Server, replica: str, plan: str, duration: str) -> None:
    """Pin REPLICA (all: every one) to PLAN: ar, self_speculation/16 or diffusion/8@0.9."""
    ttl_s = parse_duration(duration)
    body = {"plan": plan, "ttl_s": ttl_s, "replica": None if replica == "all" else replica}
    pinned = server.post("pin", body)
    click.echo(f"{pinned['plan']} for {_duration(ttl_s)} on {', '.join(pinned['replicas'])}")


@click.command(short_help="Give a replica back to the policy.")
@with_server
@click.argument("replica")
def unpin(server: Server, replica: str) -> None:
    """End the pin of REPLICA (all: every one)."""
    unpinned = server.post("unpin", {"replica": None if replica == "all" else replica})
    click.echo(f"unpinned {', '.join(unpinned['replicas'])}")


@click.group(short_help="The policy in force, and why it decided as it did.")
def policy() -> None:
    """The policy in force, and why it decided as it did."""


@policy.command()
@with_server
def show(server: Server) -> None:
    """Show the policy and its rules."""
    table = Table.grid(padding=(0, 2))
    for name, value in server.get("policy").items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console(highlight=False).print(table)


@policy.command()
@with_server
@click.argument("replica")
@click.option("--last", default=10, show_default=True, help="How many decisions.")
def explain(server: Server, replica: str, last: int) -> None:
    """Show the latest decisions for REPLICA (all: every one), newest first."""
    name = None if replica == "all" else replica
    table = Table(
        *("time", "replica", "times", "reason", "plan", "detail", "schedule"),
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    rows = server.get("decisions", replica=name, limit=last)
    for row, older in zip(rows, [*rows[1:], None], strict=True):
        schedule = _bands(row["schedule"])
        is_same = older is not None and _bands(older["schedule"]) == schedule
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(row["time_s"])),
            row["replica"],
            str(row["count"]),
            row["reason"] + (" (advisory)" if row["advisory"] else ""),
            row["plan"] or "-",
            _detail(row),
            Text("as before", style="dim") if is_same else schedule,
        )
    Console(highlight=False).print(table)


def _detail(row: Row) -> str:
    ranked = sorted(row["predicted"].items(), key=lambda item: -item[1])
    predicted = ", ".join(f"{plan} {value:.0f}/s" for plan, value in ranked)
    return "; ".join(part for part in (row["detail"], predicted) if part)


def _bands(schedule: Row) -> str:
    return ", ".join(
        str(band["plan"]) if band["up_to"] is None else f"to {band['up_to']} {band['plan']}"
        for band in schedule["bands"]
    )


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `10m`, `2h` or `1d`.

    Raises:
        click.UsageError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise click.UsageError(f"{text!r} is no duration; write 90s, 10m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def _duration(seconds: float) -> str:
    unit = next((u for u in ("d", "h", "m") if seconds >= 2 * _UNITS_S[u]), "s")
    return f"{seconds / _UNITS_S[unit]:.0f} {unit}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.0f} ms"
