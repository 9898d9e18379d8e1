"""HTTP surface, control loop, command line, wiring.

`orchestrator:app` and `orchestrator:build_app` are what `serve run` takes. They are imported when
they are asked for, so that importing this package needs no Ray.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["app", "build_app"]


class _Package(ModuleType):
    # Properties, and not a module's `__getattr__`: importing the submodule `orchestrator.app` would
    # put the module itself under the name `app`.
    @property
    def app(self) -> Any:
        return import_module("orchestrator.app").app

    @app.setter
    def app(self, submodule: ModuleType) -> None:
        pass

    @property
    def build_app(self) -> Any:
        return import_module("orchestrator.app").build_app


sys.modules[__name__].__class__ = _Package
