"""Is SGLang, in the right version and with the plugin, installed where it is to run?

Asked before the server is started, because a server that cannot start says so late and at length.
SGLang may live in another environment than the replica: it fixes versions of torch and transformers
that need not be the replica's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from replicas.sglang_engine.protocol import SGLANG_VERSION
from replicas.sglang_engine.server import ServerFailed

PLUGIN = "replicas.sglang_engine.plugin:register"
ANSWER_S = 60.0  # a cold interpreter on a busy machine
_QUESTION = """
import json
from importlib.metadata import PackageNotFoundError, entry_points, version
try:
    sglang = version("sglang")
except PackageNotFoundError:
    sglang = None
plugins = [point.value for point in entry_points(group="sglang.srt.plugins")]
print(json.dumps({"sglang": sglang, "plugins": plugins}))
"""


def check_installation(python: str, environment: Mapping[str, str]) -> None:
    """Raises ServerFailed unless this Python has the SGLang and the plugin that are needed."""
    found = _ask(python, environment)
    if found["sglang"] is None:
        raise ServerFailed(
            f"sglang is not installed for {python}; install sglang=={SGLANG_VERSION} there, or set "
            "sglang_python to the interpreter of the environment that it is in"
        )
    if found["sglang"] != SGLANG_VERSION:
        raise ServerFailed(
            f"sglang {found['sglang']} is installed for {python}, and the plugin supports "
            f"{SGLANG_VERSION} only; install sglang=={SGLANG_VERSION}"
        )
    if PLUGIN not in found["plugins"]:
        raise ServerFailed(
            f"the plugin is not installed for {python}, so SGLang would not find it; install this "
            "project there with pip install --no-deps"
        )


def _ask(python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    try:
        answer = subprocess.run(
            [python, "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            env=dict(environment),
            check=True,
        )
        # The last line: what a site's start-up code prints comes before it.
        found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except OSError as error:
        raise ServerFailed(
            f"sglang_python {python!r} cannot be run: {error.strerror}; give the Python of the "
            "environment that SGLang is in"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ServerFailed(f"sglang_python {python!r} failed: {error.stderr.strip()}") from error
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise ServerFailed(f"sglang_python {python!r} gave no answer: {error!r}") from error
    return found
