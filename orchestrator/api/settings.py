"""What an operator may choose about the HTTP surface."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from policies.vocabulary import Quality


class ApiSettings(BaseModel):
    """Frozen; an unknown key is an error. Lists of keys that are empty mean: no key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_name: str = Field(description="The name clients use; the first entry of /v1/models.")
    model_aliases: tuple[str, ...] = Field((), description="Other names for the same model.")
    max_model_len: int = Field(2048, ge=2, description="Prompt and output tokens together.")
    max_output_tokens: int | None = Field(
        None, ge=1, description="Most tokens one request may ask for; None: the context's rest."
    )
    max_body_bytes: int = Field(4 << 20, ge=1, description="Largest request body, in bytes.")
    max_prompts: int = Field(64, ge=1, description="Most prompts in one /v1/completions request.")
    retry_after_s: int = Field(1, ge=0, description="What Retry-After says when the queue is full.")
    default_temperature: float = Field(1.0, ge=0, le=2, description="When a request gives none.")
    default_quality: Quality = Field(
        Quality.EXACT, description="When a request gives none and does not ask for diffusion."
    )
    default_block_length: int = Field(
        16, description="When a request names a block mode without a block length."
    )
    api_keys: tuple[SecretStr, ...] = Field((), description="Accepted on /v1 and the rest.")
    admin_keys: tuple[SecretStr, ...] = Field((), description="Accepted on /control/v1.")
    protect_metrics: bool = Field(False, description="Whether /metrics needs an API key, too.")

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.model_name, *self.model_aliases)
