"""What `config.json` of a Nemotron-Labs-Diffusion checkpoint says, checked.

Field names follow the released `configuration_nemotron_labs_diffusion.py`; the file on disk
is the authority. Every architecture switch this code does not implement is refused by name, so a
model is never run as something it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicas.engine import EngineError


class CheckpointError(EngineError):
    """A checkpoint that cannot be used as it is; the message names the file, value and remedy."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding parameters (YaRN, arXiv 2309.00071) and Llama-4 query scaling."""

    theta: float
    rope_type: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    query_scaling_beta: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and special tokens of one checkpoint. `head_dim` does not follow from other sizes."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_positions: int
    rope: RopeConfig
    mask_token_id: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def kv_width(self) -> int:
        """Values of K and V that one token occupies in one layer."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Of the decoder, embedding and head included."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_layers * layer + 2 * self.vocab_size * self.hidden_size + self.hidden_size


_ROPE_REFUSED_UNLESS: Mapping[str, tuple[Any, ...]] = {
    "attention_factor": (None,),
    "partial_rotary_factor": (1.0, None),
    "truncate": (True, None),
}
_REFUSED_UNLESS: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "hidden_act": ("silu", None),
    "model_type": ("nemotron_labs_diffusion",),
}


def read_model_config(path: Path) -> ModelConfig:
    """Reads `config.json`.

    Raises:
        CheckpointError: no such file, not JSON, a missing or ill-typed key, or an architecture
            switch that this engine does not implement.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder holds config.json"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return _Reader(path, raw).model_config()


class _Reader:
    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path, self.raw = path, raw

    def model_config(self) -> ModelConfig:
        self._refuse(self.raw, _REFUSED_UNLESS)
        config = ModelConfig(
            vocab_size=self._int("vocab_size"),
            hidden_size=self._int("hidden_size"),
            num_layers=self._int("num_hidden_layers"),
            num_heads=self._int("num_attention_heads"),
            num_kv_heads=self._int("num_key_value_heads"),
            head_dim=self._int("head_dim"),
            intermediate_size=self._int("intermediate_size"),
            rms_norm_eps=self._float(self.raw, "rms_norm_eps", 1e-5),
            max_positions=self._int("max_position_embeddings"),
            rope=self._rope(),
            mask_token_id=self._int("mask_token_id", minimum=0),
            bos_token_id=self.raw.get("bos_token_id"),
            eos_token_ids=self._eos(),
        )
        if config.num_heads % config.num_kv_heads:
            raise self._error(
                f"num_attention_heads {config.num_heads} is not a multiple of "
                f"num_key_value_heads {config.num_kv_heads}"
            )
        if config.head_dim % 2:
            raise self._error(f"head_dim {config.head_dim} must be even for rotary embedding")
        if config.mask_token_id >= config.vocab_size:
            raise self._error(
                f"mask_token_id {config.mask_token_id} lies outside vocab_size {config.vocab_size}"
            )
        return config

    def _rope(self) -> RopeConfig:
        rope = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise self._error(f"rope_parameters must be an object, found {rope!r}")
        self._refuse(rope, _ROPE_REFUSED_UNLESS)
        theta = rope.get("rope_theta", self.raw.get("rope_theta"))
        if theta is None:
            raise self._error("rope_theta is missing (in rope_parameters or beside it)")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "yarn"):
            raise self._error(f"rope_type {rope_type!r}; supported: 'default', 'yarn'")
        original = rope.get("original_max_position_embeddings", 0)
        if rope_type == "yarn" and not original:
            raise self._error("rope_type yarn needs original_max_position_embeddings")
        return RopeConfig(
            theta=float(theta),
            rope_type=rope_type,
            factor=self._float(rope, "factor", 1.0),
            original_max_positions=int(original),
            beta_fast=self._float(rope, "beta_fast", 32.0),
            beta_slow=self._float(rope, "beta_slow", 1.0),
            mscale=rope.get("mscale"),
            mscale_all_dim=rope.get("mscale_all_dim"),
            query_scaling_beta=self._float(rope, "llama_4_scaling_beta", 0.0),
        )

    def _refuse(self, raw: Mapping[str, Any], unless: Mapping[str, tuple[Any, ...]]) -> None:
        for key, allowed in unless.items():
            if raw.get(key) not in allowed:
                raise self._error(f"{key} is {raw.get(key)!r}; supported: {allowed[0]!r}")

    def _eos(self) -> tuple[int, ...]:
        eos = self.raw.get("eos_token_id")
        if eos is None:
            return ()
        ids = eos if isinstance(eos, list) else [eos]
        if not all(isinstance(i, int) and i >= 0 for i in ids):
            raise self._error(f"eos_token_id {eos!r} must be a token id or a list of them")
        return tuple(ids)

    def _int(self, key: str, minimum: int = 1) -> int:
        value = self.raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._error(f"{key} must be an integer of at least {minimum}, found {value!r}")
        return value

    def _float(self, raw: Mapping[str, Any], key: str, default: float) -> float:
        value = raw.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self._error(f"{key} must be a number, found {value!r}")
        return float(value)

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {text}")
