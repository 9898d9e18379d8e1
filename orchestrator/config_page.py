"""Writes the configuration reference from the models, so that it cannot say anything else.

`python -m orchestrator.config_page --write docs/configuration.md` writes it, `--check` compares it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from orchestrator.app_config import PREFIX, AppConfig
from orchestrator.cli_serve import serve

PAGE = Path("docs/configuration.md")

_INTRODUCTION = """# Configuration

Generated from `orchestrator/config.py` and `orchestrator/app_config.py`; change it there and run
`python -m orchestrator.config_page --write docs/configuration.md`.

An option is set in one of these ways, and has the same name in all of them:

| how | example |
|---|---|
| `serve run` with arguments | `serve run orchestrator:build_app model=/models/8b num_replicas=4` |
| environment, for `serve run orchestrator:app` | `TRIMODE_NUM_REPLICAS=4` |
| YAML of Ray Serve, under `args:` with `import_path: orchestrator:build_app` | `num_replicas: 4` |
| `trimode serve` | a flag where there is one, else `-o num_replicas=4`; or YAML with `--config` |

Values may be text everywhere: lists are separated by commas, bands are written
`4=self_speculation/16,32=self_speculation/4,ar`. An unknown option and a value out of range are
errors that name the option, the value and the remedy. `policy_options` is JSON in the environment.
"""


def to_markdown() -> str:
    """The page."""
    flags = _flags()
    lines = [*_INTRODUCTION.splitlines(), "", "| option | default | `trimode serve` | meaning |"]
    lines.append("|---|---|---|---|")
    for name, field in AppConfig.model_fields.items():
        flag = f"`{flags[name]}`" if name in flags else ""
        cells = (f"`{name}`", _default(field), flag, field.description or "")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Environment variables are `{PREFIX}` and the option's name in capitals."]
    return "\n".join(lines) + "\n"


def _flags() -> dict[str, str]:
    from orchestrator.cli_serve import RENAMED

    flags = {}
    for parameter in serve.params:
        name = RENAMED.get(str(parameter.name), str(parameter.name))
        if name in AppConfig.model_fields:
            flags[name] = "MODEL" if name == "model" else parameter.opts[0]
    return flags


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None or value in ((), {}) or SecretStr in get_args(field.annotation):
        return "none"
    return f"`{getattr(value, 'value', value)}`"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.config_page", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    for name, help in (("--write", "write the page"), ("--check", "fail if it is out of date")):
        action.add_argument(name, metavar="PAGE", type=Path, nargs="?", const=PAGE, help=help)
    options = parser.parse_args(arguments)
    if options.write is not None:
        options.write.write_text(to_markdown(), encoding="utf-8")
        return 0
    written = options.check.read_text(encoding="utf-8") if options.check.is_file() else ""
    if written == to_markdown():
        return 0
    remedy = f"run python -m orchestrator.config_page --write {options.check}"
    print(f"{options.check} is out of date: {remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
