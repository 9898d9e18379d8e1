"""From options to SGLang's command line, and what is refused before anything starts.

Run: pytest tests/replicas/sglang_engine/test_loader.py
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from replicas.sglang_engine.engine import Limits
from replicas.sglang_engine.installation import check_installation
from replicas.sglang_engine.loader import LaunchOptions, command_for
from replicas.sglang_engine.protocol import GRAPHS_VARIABLE, SGLANG_VERSION
from replicas.sglang_engine.server import Command, ServerFailed
from replicas.tiny import CHECKPOINT
from replicas.torch_engine.model_config import CheckpointError, read_model_config

CONFIG = read_model_config(CHECKPOINT / "config.json")
OPTIONS = LaunchOptions(str(CHECKPOINT), Limits(512, 4, 2), device="cpu")


def command(**options: object) -> Command:
    return command_for(replace(OPTIONS, **options), CHECKPOINT, CONFIG)  # type: ignore[arg-type]


def value(built: Command, flag: str) -> str:
    return built.arguments[built.arguments.index(flag) + 1]


def test_limits_reach_sglang_with_room_for_what_it_keeps_free() -> None:
    built = command()
    assert value(built, "--max-running-requests") == "4"
    assert int(value(built, "--context-length")) > 512
    assert int(value(built, "--max-total-tokens")) >= 4 * (512 + 32)
    assert value(command(kv_tokens=3000), "--max-total-tokens") == "3000"


def test_the_server_listens_on_loopback_at_the_port_of_its_start() -> None:
    assert value(command(), "--host") == "127.0.0.1"
    assert value(command(), "--port") == "{port}"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("gpu")
def test_graphs_are_recorded_on_a_gpu_and_where_they_are_asked_for() -> None:
    def asks(device: str, cuda_graphs: bool) -> bool:
        return GRAPHS_VARIABLE in command(device=device, cuda_graphs=cuda_graphs).environment

    assert asks("cuda", True)
    assert not asks("cuda", False)
    assert not asks("cpu", True)


@pytest.mark.usefixtures("gpu")
def test_attention_is_tritons_on_a_gpu_unless_an_operator_says_otherwise() -> None:
    def backends(**options: object) -> list[str]:
        words = list(command(**options).arguments)
        places = [i for i, word in enumerate(words) if word == "--attention-backend"]
        return [words[i + 1] for i in places]

    assert backends() == ["torch_native"]
    assert backends(device="cuda") == ["triton"]
    chosen = ("--attention-backend", "torch_native")
    assert backends(device="cuda", arguments=chosen)[-1] == "torch_native"


def test_an_operators_arguments_come_last_and_so_win() -> None:
    built = command(arguments=("--log-level", "info"))
    assert list(built.arguments[-2:]) == ["--log-level", "info"]


@pytest.mark.parametrize("argument", ["--port=1", "--model-path", "--speculative-algorithm"])
def test_what_the_engine_gives_cannot_be_given_again(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"sglang_args {argument.partition('=')[0]} cannot be"):
        command(arguments=(argument,))


def test_braces_in_an_argument_reach_sglang_as_they_are(tmp_path: Path) -> None:
    """Regression: `{port}` was filled in by str.format, which failed on JSON in an argument."""
    from replicas.sglang_engine.server import Server

    server = Server(
        Command("python", ("--json-model-override-args", '{"a": 1}', "{port}")), tmp_path
    )
    assert server.arguments == ["--json-model-override-args", '{"a": 1}', str(server.port)]


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(CheckpointError, match="4096 exceeds the model's max_position_embeddings"):
        command(limits=Limits(4096, 4, 2))


def test_a_precision_that_is_not_exact_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype 'bfloat16': on a CPU"):
        command(dtype="bfloat16")


@pytest.mark.skipif(find_spec("sglang") is not None, reason="sglang is installed")
def test_a_python_without_sglang_is_named_with_the_version_to_install() -> None:
    with pytest.raises(ServerFailed, match=f"not installed.*install sglang=={SGLANG_VERSION}"):
        check_installation(sys.executable, os.environ)


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(ServerFailed, match="sglang_python '/no/python' cannot be run"):
        check_installation("/no/python", {})


@pytest.mark.parametrize(
    ("version", "plugin", "what"),
    [
        ("0.5.22", True, f"sglang 0.5.22 is installed.*supports {SGLANG_VERSION} only"),
        (SGLANG_VERSION, False, "the plugin is not installed"),
        (SGLANG_VERSION, True, None),
    ],
)
def test_the_environments_metadata_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, plugin: bool, what: str | None
) -> None:
    """The folder stands for an environment: Python finds its distributions there."""
    monkeypatch.chdir(tmp_path)  # not in this repository, whose own metadata would be found too
    install(tmp_path, "sglang", version)
    if plugin:
        points = "[sglang.srt.plugins]\ntrimode = replicas.sglang_engine.plugin:register\n"
        install(tmp_path, "trimode_plugin", "1", points)
    environment = {"PYTHONPATH": str(tmp_path)}
    bare = [sys.executable, "-S"]  # without this environment's own packages
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(bare)} "$@"\n')
    python.chmod(0o755)
    if what is None:
        check_installation(str(python), environment)
    else:
        with pytest.raises(ServerFailed, match=what):
            check_installation(str(python), environment)


def install(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(entry_points)
