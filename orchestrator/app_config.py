"""What only a deployment adds to the configuration: processes, ports, resources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from orchestrator.api.settings import ApiSettings
from orchestrator.config import Config, Seconds
from orchestrator.config_values import Words
from orchestrator.errors import ConfigError

DEMO_MODEL = "tiny"
PREFIX = "TRIMODE_"
_SET_BY_OTHERS = {"URL"}  # read by the command line's clients


class AppConfig(Config):
    """The whole application. Frozen; an unknown key is an error."""

    served_model_aliases: tuple[str, ...] = Field((), description="Further names of the model.")
    default_temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="When a request gives none; none is OpenAI's 1, and 0 for the demo model.",
    )
    max_step_tokens: int = Field(512, ge=1, description="Positions of one step, prefill included.")
    threads: int = Field(
        1, ge=0, description="CPU threads of a replica's engine; 0 leaves it to torch."
    )
    cuda_graphs: bool | None = Field(
        None,
        description="Whether decode steps are captured on a GPU; unset: yes in the embedded "
        "engine, no in SGLang.",
    )
    sglang_python: str | None = Field(
        None,
        min_length=1,
        description="Python of the environment that SGLang is in; none is the replica's own.",
    )
    sglang_args: Words = Field(
        (),
        description="Further arguments of sglang.launch_server, written as in a shell or a list.",
    )
    profile: str = Field(
        "auto",
        min_length=1,
        description="Step times of a replica: auto measures them at the first start, none does "
        "without; else a file that trimode calibrate wrote, or a shipped profile's name.",
    )
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs of a replica; none is 1 with device=cuda, else 0."
    )
    num_cpus: float = Field(0, ge=0, description="CPUs that Ray reserves for a replica.")
    drain_s: Seconds = Field(60.0, description="How long a replica that is replaced may finish.")
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address that metrics pages are bound to; 0.0.0.0 on a cluster.",
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of a replica's metrics page; 0 is any. Another one needs a node or pod "
        "of its own for every replica.",
    )
    controller_metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of the controller's metrics page; 0 is any."
    )
    access_log: bool = Field(False, description="Whether every request is logged.")
    decision_log: str | None = Field(
        None, min_length=1, description="File that decisions are appended to as JSON lines."
    )

    @staticmethod
    def values_from(environment: Mapping[str, str]) -> dict[str, Any]:
        """The options that `TRIMODE_MODEL`, `TRIMODE_NUM_REPLICAS` and so on give, as text."""
        values: dict[str, Any] = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in _SET_BY_OTHERS
        }
        options = values.get("policy_options")
        if options is not None:
            try:
                values["policy_options"] = json.loads(options)
            except ValueError as error:
                raise ConfigError(f"{PREFIX}POLICY_OPTIONS is no JSON: {error}") from None
        return values

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """From `TRIMODE_*` variables; defaults otherwise.

        Raises:
            ConfigError: a variable of that prefix names no option, or has a wrong value.
        """
        return cls.model_validate(cls.values_from(environment))

    @property
    def is_demo(self) -> bool:
        return self.model == DEMO_MODEL

    @property
    def gpus(self) -> float:
        return self.num_gpus if self.num_gpus is not None else float(self.device == "cuda")

    @property
    def api_settings(self) -> ApiSettings:
        temperature = self.default_temperature
        if temperature is None:
            temperature = 0.0 if self.is_demo else 1.0
        update = {
            "model_aliases": self.served_model_aliases,
            "default_temperature": temperature,
        }
        return super().api_settings.model_copy(update=update)
