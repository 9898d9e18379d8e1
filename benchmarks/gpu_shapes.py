"""Random weights in the shapes of the released models, made where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from replicas.torch_engine.checkpoint import expected_shapes
from replicas.torch_engine.model_config import ModelConfig, RopeConfig

_ADAPTER_RANK = 128
_STANDARD_DEVIATION = 0.02


def _released(hidden: int, layers: int, inner: int, theta: float) -> ModelConfig:
    rope = RopeConfig(theta, "yarn", 16.0, 16384, 32.0, 1.0, 1.0, 1.0, 0.1)
    return ModelConfig(
        vocab_size=131072,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=inner,
        rms_norm_eps=1e-5,
        max_positions=262144,
        rope=rope,
        mask_token_id=100,
        bos_token_id=1,
        eos_token_ids=(11,),
    )


SHAPES: Mapping[str, ModelConfig] = {
    "3b": _released(3072, 26, 9216, 1e6),
    "8b": _released(4096, 34, 14336, 1e6),
    "14b": _released(5120, 40, 16384, 1e9),
    "tiny": ModelConfig(
        vocab_size=848,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        rms_norm_eps=1e-5,
        max_positions=8192,
        rope=RopeConfig(1e4),
        mask_token_id=1,
        bos_token_id=None,
        eos_token_ids=(2,),
    ),
}


class RandomWeights(Mapping[str, torch.Tensor]):
    """Tensors by released name, each drawn on the device when it is asked for and not kept.

    So a model of 17 GB takes its own memory and no copy on the host. The draft adapter is included:
    the released instruct models have one, and drafting pays for it.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._shapes = dict(expected_shapes(config))
        width = config.num_heads * config.head_dim
        for i in range(config.num_layers):
            layer = f"encoder.layers.{i}.self_attn.o_proj"
            self._shapes[f"{layer}.lora_A.weight"] = (_ADAPTER_RANK, width)
            self._shapes[f"{layer}.lora_B.weight"] = (config.hidden_size, _ADAPTER_RANK)
        self._seeds = {name: i for i, name in enumerate(self._shapes)}

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if len(shape) == 1:
            return tensor.fill_(1.0)
        generator = torch.Generator(self._device).manual_seed(self._seeds[name])
        return tensor.normal_(0.0, _STANDARD_DEVIATION, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def forward_bytes(config: ModelConfig, element: int) -> int:
    """Bytes of weights that one forward reads: all but the embedding table."""
    return (config.num_parameters - config.vocab_size * config.hidden_size) * element


def kv_bytes(config: ModelConfig, element: int) -> int:
    """Bytes of K and V per token."""
    return config.num_layers * config.kv_width * element


def forward_flops(config: ModelConfig, rows: int, width: int, context: int) -> float:
    """Multiply-adds, twice, of one forward of rows x width positions over `context` keys."""
    positions = rows * width
    weights = config.num_parameters - config.vocab_size * config.hidden_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * (context + width)
    return positions * (2.0 * weights + attention)
