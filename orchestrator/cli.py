"""The `trimode` command. Each sub-command is one function in a module of its own."""

from __future__ import annotations

import os
import sys

import click

from orchestrator.cli_calibrate import calibrate
from orchestrator.cli_control import pin, policy, status, unpin
from orchestrator.cli_dashboards import dashboards
from orchestrator.cli_generate import generate
from orchestrator.cli_replay import replay
from orchestrator.cli_serve import serve
from orchestrator.errors import TrimodeError
from replicas.engine import EngineError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def app() -> None:
    """Serve and run a tri-mode language model."""


policy.add_command(replay)
for command in (serve, status, pin, unpin, policy, calibrate, dashboards, generate):
    app.add_command(command)


def main() -> None:
    """Runs the command line: bad input is one line on stderr and exit status 2."""
    # A policy of the operator's own is a module where they work, as `serve run` finds it, too.
    sys.path.append(os.getcwd())
    try:
        result = app(standalone_mode=False, prog_name="trimode")
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (EngineError, TrimodeError, ValueError, OSError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(result or 0)


def _fail(message: str) -> None:
    print("trimode:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
