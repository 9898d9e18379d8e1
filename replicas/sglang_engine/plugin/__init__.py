"""The plugin: gives an unmodified SGLang the model and a worker that decodes in three modes.

SGLang calls `register` in each of its processes, through the entry point group
`sglang.srt.plugins`. `README.md` beside this file says how it works and how to move to a new
SGLang.
"""

from __future__ import annotations

import logging
import os

from replicas.sglang_engine.protocol import CONTROL_DIR_VARIABLE

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the model, the algorithm and the hooks, or says why not and raises.

    SGLang logs what a plugin raises and starts without it. Where a replica started it that would
    be a server that cannot decode as it should, so there the process ends instead.
    """
    from replicas.sglang_engine.plugin import model_config
    from replicas.sglang_engine.plugin.compatibility import (
        IncompatibleSGLang,
        check_seams,
        check_version,
    )

    try:
        check_version()
        # Before the seams are looked up: what that imports would load SGLang's two hundred models.
        model_config.register()
        check_seams()
    except IncompatibleSGLang as error:
        if os.environ.get(CONTROL_DIR_VARIABLE):
            logger.critical("%s", error)
            raise SystemExit(f"trimode: {error}") from None
        raise
    from replicas.sglang_engine.plugin import algorithm, hooks

    algorithm.register()
    hooks.register()
