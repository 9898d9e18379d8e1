"""`trimode serve`: the application on a Ray cluster, in one command.

Flags are spelled as vLLM spells them where it has the same thing. Everything else that the
configuration knows is given as `-o name=value` or in a YAML file.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.app_config import AppConfig

REFRESH_S = 0.25
RENAMED = {
    "max_model_len": "max_context_tokens",
    "max_num_seqs": "max_sequences",
    "max_num_batched_tokens": "max_step_tokens",
    "api_key": "api_keys",
}


@click.command(short_help="Serve a model over HTTP.")
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", default=8000, help="Port to listen on.")
@click.option("--served-model-name", help="Name that clients use; by default the model's.")
@click.option("--num-replicas", type=int, help="Copies of the model; 2.")
@click.option("--max-model-len", type=int, help="Prompt and output of one request; 2048.")
@click.option("--max-num-seqs", type=int, help="Sequences of a replica that decode together; 64.")
@click.option("--max-num-batched-tokens", type=int, help="Positions of one step; 512.")
@click.option("--device", help="auto, cpu or cuda.")
@click.option("--dtype", help="auto, float32 or bfloat16.")
@click.option("--api-key", multiple=True, help="Key that clients must send; may be repeated.")
@click.option("--admin-key", help="Key of /control/v1; one is made up if there is none.")
@click.option("--policy", help="Who chooses the plan: threshold, static, or package.module:Class.")
@click.option("--plan", help="The static policy's plan.")
@click.option("--bands", help="The threshold policy's, as 4=self_speculation/16,ar.")
@click.option("--quality", help="exact keeps to AR's distribution; any allows diffusion.")
@click.option("--prometheus-url", help="Read signals from this server, not from the replicas.")
@click.option("--advisory", is_flag=True, default=None, help="Decide and show, change nothing.")
@click.option("-o", "--option", multiple=True, metavar="NAME=VALUE", help="Any other option.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Options as YAML.")
@click.option("--address", help="A Ray cluster's; by default the one here, else a new one.")
@click.option("--verbose", is_flag=True, help="Show the replicas' logs.")
def serve(
    host: str,
    port: int,
    option: tuple[str, ...],
    config: str | None,
    address: str | None,
    verbose: bool,
    **flags: Any,
) -> None:
    """Serve MODEL (a checkpoint folder or Hugging Face id; by default the demo model) over HTTP.

    TRIMODE_* environment variables are read first, then --config, then the flags.
    """
    settings, made_up = _configuration(flags, option, config)
    if address is None and _is_taken(host, port):
        raise click.UsageError(f"port {port} on {host} is in use; choose another with --port")
    _run(settings, host, port, address, verbose, made_up)


def _configuration(
    flags: dict[str, Any], options: tuple[str, ...], file: str | None
) -> tuple[AppConfig, bool]:
    """The configuration, and whether its admin key was made up here."""
    import yaml

    from orchestrator.app_config import AppConfig

    values = AppConfig.values_from(os.environ)
    if file is not None:
        read = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ConfigError(f"{file} is no mapping of options to values")
        values |= read
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    values |= {RENAMED.get(name, name): value for name, value in given.items()}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"-o {text}: write NAME=VALUE")
        values[name.replace("-", "_")] = value
    made_up = "admin_key" not in values
    if made_up:
        values["admin_key"] = secrets.token_urlsafe(16)
    return AppConfig.model_validate(values), made_up


def _is_taken(host: str, port: int) -> bool:
    # Serve's proxies share a port with whoever has it, and requests would go to either.
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1" if host == "0.0.0.0" else host, port)) == 0


def _run(
    config: AppConfig, host: str, port: int, address: str | None, verbose: bool, made_up: bool
) -> None:
    # Ray takes seconds to import, so --help and usage errors do without it.
    from orchestrator.app import connect, launch, progress, shut_down

    console = Console(highlight=False)
    started = time.monotonic()
    with console.status("starting Ray"):
        is_own = connect(address, quiet=not verbose)
    try:
        with console.status("starting Serve") as status:
            launch(config, host, port)
            while not (now := progress(config)).is_running:
                if now.failure:
                    raise ConfigError(f"the application did not start: {now.failure}")
                waited = f"{time.monotonic() - started:.0f} s"
                status.update(
                    f"loading {config.model}: {now.ready} of {now.wanted} replicas ready, {waited}"
                )
                time.sleep(REFRESH_S)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        _summarise(console, config, url, time.monotonic() - started, made_up)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("ending; streams in flight may finish (Ctrl-C again: at once)")
    finally:
        shut_down(is_own=is_own)


def _summarise(
    console: Console, config: AppConfig, url: str, seconds: float, made_up: bool
) -> None:
    import httpx

    assert config.admin_key is not None
    key = config.admin_key.get_secret_value()
    root = url + config.route_prefix.rstrip("/")
    client = httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=10, trust_env=False)
    with client:
        targets = client.get(f"{root}/control/v1/targets").json()
    grid = Table.grid(padding=(0, 2))
    grid.add_row("API", f"{root}/v1", "with a key" if config.api_keys else "open, no key")
    note = f"admin key {key}, for this run" if made_up else "with your admin key"
    grid.add_row("control", f"{root}/control/v1", note)
    for group in targets:
        for target in group["targets"]:
            grid.add_row("metrics", f"http://{target}/metrics", group["labels"]["component"])
    policy = config.policy + (", advisory" if config.advisory else "")
    signals = config.prometheus_url or "scraped from the replicas"
    grid.add_row("policy", policy, f"quality {config.quality.value}, signals {signals}")
    console.print(
        f"[bold]{config.model_name}[/] on {config.num_replicas} replicas, "
        f"ready after {seconds:.0f} s"
    )
    console.print(grid)
    console.print("Ctrl-C ends it.")
