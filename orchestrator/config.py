"""Everything an operator may choose, in one frozen model.

`Config` is what `build_app` takes: from keyword arguments, a YAML file, or the command line of
`serve run orchestrator:build_app key=value`, whose values are text. A fault raises `ConfigError`
with one line for each. Units are in the names. What nobody could choose well is a constant where it
is used, not an option here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)

from orchestrator.api.settings import ApiSettings
from orchestrator.config_values import Bands, Keys, Plans, PlanText, explain
from orchestrator.errors import ConfigError
from orchestrator.signals import DirectScrape, PrometheusServer, SignalSource
from policies.base import BUILT_IN, load_policy
from policies.guard import Guard, Rules
from policies.vocabulary import SAFE_PLAN, Plan, Quality, all_plans

MODEL_BASED = ("predictive", "bandit")
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class Config(BaseModel):
    """Frozen; an unknown key is an error. Every description ends the question that it answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # What is served, on what.
    model: str = Field(
        "tiny",
        min_length=1,
        description="Checkpoint folder, Hugging Face id, or tiny for the demo model.",
    )
    served_model_name: str | None = Field(
        None, min_length=1, description="Name that clients use; by default the model's."
    )
    engine: Literal["torch", "sglang"] = Field(
        "torch",
        description="What decodes: the embedded engine, or an SGLang server beside each replica.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights."
    )
    num_replicas: int = Field(2, ge=1, le=4096, description="Copies of the model.")
    max_context_tokens: int = Field(2048, ge=2, description="Prompt and output of one request.")
    max_sequences: int = Field(64, ge=1, description="Sequences that decode together.")
    kv_tokens: int = Field(0, ge=0, description="KV cache of one replica; 0 is what fits.")
    max_waiting: int = Field(
        1024, ge=0, description="Requests that may queue in one replica; more get 429."
    )

    # Who may call, with how much.
    route_prefix: str = Field("/", pattern=r"^/", description="Path before every route.")
    api_keys: Keys = Field((), description="Keys that clients must send one of; none is open.")
    admin_key: SecretStr | None = Field(None, description="Key of /control/v1; none closes it.")
    protect_metrics: bool = Field(False, description="Whether /metrics needs an API key.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body.")
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens a request may ask for; none is what the context leaves.",
    )

    # Which plan.
    quality: Quality = Field(
        Quality.EXACT, description="exact keeps to AR's distribution; any allows diffusion."
    )
    allowed_plans: Plans | None = Field(
        None, description="Plans that may be used besides ar; none is every plan of the quality."
    )
    policy: str = Field(
        "predictive",
        min_length=1,
        description="Who chooses: predictive, bandit, threshold, static, or your own as "
        "package.module:Class.",
    )
    plan: PlanText | None = Field(None, description="The static policy's plan.")
    bands: Bands | None = Field(
        None,
        description="The threshold policy's bands, written "
        "4=self_speculation/16,32=self_speculation/4,ar.",
    )
    policy_options: dict[str, Any] = Field({}, description="Further arguments of the policy.")
    ttft_target_s: Seconds | None = Field(None, description="p95 time to first token to keep to.")
    tpot_target_s: Seconds | None = Field(None, description="p95 time per output token to keep to.")
    advisory: bool = Field(False, description="Decide and show, but change nothing.")

    # The control loop.
    interval_s: Seconds = Field(1.0, description="Time between two rounds of the control loop.")
    stale_after_s: Seconds = Field(5.0, description="Age at which a signal is no longer known.")
    hold_s: Seconds = Field(
        60.0, description="How long the last schedule holds without signals before the safe plan."
    )
    schedule_ttl_s: Seconds = Field(
        60.0, description="How long a replica follows a schedule that nobody refreshes."
    )
    schedule_dwell_s: float = Field(
        2.0, ge=0, le=86400, description="Shortest time between two schedules for one replica."
    )
    signal_window_s: Seconds = Field(
        10.0,
        description="Time over which rates and quantiles are taken: four scrape intervals of a "
        "Prometheus server or more, two rounds or more where replicas are read without one. A "
        "policy that chooses every plan in the controller (`bandit`, `local: false`) follows the "
        "sooner the shorter it is; p95 of latencies, and so their targets, want ten seconds.",
    )
    prometheus_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Prometheus server to read signals from; none scrapes the replicas directly.",
    )
    prometheus_bearer_token: SecretStr | None = Field(None, description="Sent to that server.")
    prometheus_username: str | None = Field(None, description="For its basic auth.")
    prometheus_password: SecretStr | None = Field(None, description="For its basic auth.")
    prometheus_ca_file: str | None = Field(
        None, description="CA bundle that signed its certificate; none is the system's."
    )
    prometheus_verify: bool = Field(True, description="Whether its certificate is checked.")

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [
            fault
            for fault in (*self._time_faults(), *self._plan_faults(), *self._prometheus_faults())
            if fault
        ]
        if faults:
            raise ConfigError("\n".join(faults))
        return self

    @property
    def model_name(self) -> str:
        """The name that clients use."""
        return self.served_model_name or self.model.rstrip("/").rpartition("/")[2]

    @property
    def plans(self) -> frozenset[Plan]:
        """The plans that may be used, the safe one included."""
        chosen = self.allowed_plans
        if chosen is None:
            chosen = tuple(plan for plan in all_plans() if plan.serves(self.quality))
        return frozenset((*chosen, SAFE_PLAN))

    @property
    def rules(self) -> Rules:
        return Rules(
            allowed=self.plans,
            ttft_target_s=self.ttft_target_s,
            tpot_target_s=self.tpot_target_s,
            dwell_s=self.schedule_dwell_s,
            stale_after_s=self.stale_after_s,
            hold_s=self.hold_s,
            ttl_s=self.schedule_ttl_s,
        )

    @property
    def api_settings(self) -> ApiSettings:
        values = {
            "model_name": self.model_name,
            "max_model_len": self.max_context_tokens,
            "max_output_tokens": self.max_output_tokens,
            "max_body_bytes": self.max_body_bytes,
            "default_quality": self.quality,
            "api_keys": self.api_keys,
            "admin_keys": () if self.admin_key is None else (self.admin_key,),
            "protect_metrics": self.protect_metrics,
        }
        return ApiSettings.model_validate(values)

    def make_guard(self) -> Guard:
        """The policy with the rules around it.

        Raises:
            ConfigError: the policy is unknown or does not take its options.
        """
        chosen: dict[str, Any] = {"plan": self.plan, "bands": self.bands}
        if self.policy in MODEL_BASED:
            chosen["tpot_target_s"] = self.tpot_target_s
        given = {name: value for name, value in chosen.items() if value is not None}
        try:
            policy = load_policy(self.policy, {**given, **self.policy_options})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return Guard(policy, self.rules, name=self.policy)

    def make_source(self) -> SignalSource:
        """Where the controller reads signals."""
        window_s, stale_after_s = self.signal_window_s, self.stale_after_s
        if self.prometheus_url is None:
            return DirectScrape(window_s=window_s, stale_after_s=stale_after_s)
        token, password = self.prometheus_bearer_token, self.prometheus_password
        basic = None
        if self.prometheus_username is not None and password is not None:
            basic = (self.prometheus_username, password.get_secret_value())
        return PrometheusServer(
            self.prometheus_url,
            window_s=window_s,
            stale_after_s=stale_after_s,
            verify=self.prometheus_ca_file or self.prometheus_verify,
            bearer_token=None if token is None else token.get_secret_value(),
            basic_auth=basic,
        )

    def _time_faults(self) -> list[str]:
        faults = []
        for name in ("stale_after_s", "schedule_ttl_s", "signal_window_s"):
            value = getattr(self, name)
            if value < 2 * self.interval_s:
                faults.append(
                    f"{name}={value:g} must be at least twice interval_s="
                    f"{self.interval_s:g}, or one slow round looks like silence; raise it"
                )
        if (self.max_output_tokens or 0) >= self.max_context_tokens:
            faults.append(
                f"max_output_tokens={self.max_output_tokens} must be below "
                f"max_context_tokens={self.max_context_tokens}; lower it or raise that"
            )
        return faults

    def _plan_faults(self) -> list[str]:
        faults = []
        for plan in self.allowed_plans or ():
            if not plan.serves(self.quality):
                faults.append(
                    f"allowed_plans={plan} is not exact and quality={self.quality.value}; "
                    "remove it or set quality=any"
                )
        for name, policy in (("plan", "static"), ("bands", "threshold")):
            if getattr(self, name) is not None and self.policy in set(BUILT_IN) - {policy}:
                faults.append(
                    f"{name} is for policy={policy} and policy={self.policy}; "
                    "remove the one or change the other"
                )
        wanted = [band.plan for band in self.bands or ()] + ([self.plan] if self.plan else [])
        for plan in dict.fromkeys(wanted):
            if plan not in self.plans:
                faults.append(
                    f"the policy's plan {plan} is not allowed; add it to allowed_plans, "
                    "or set quality=any if it is diffusion"
                )
        return faults

    def _prometheus_faults(self) -> list[str]:
        login = (self.prometheus_username, self.prometheus_password)
        if self.prometheus_url is None:
            extra = self.prometheus_bearer_token or self.prometheus_ca_file or any(login)
            return (
                [
                    "prometheus_url is missing, yet there are prometheus_ options; set it or "
                    "remove them"
                ]
                if extra
                else []
            )
        if any(login) and not all(login):
            return ["prometheus_username and prometheus_password need each other; set both"]
        if any(login) and self.prometheus_bearer_token is not None:
            return ["prometheus_bearer_token and prometheus_username exclude each other; keep one"]
        return []
