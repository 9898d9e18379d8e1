"""Nemotron-Labs-Diffusion on SGLang's Ministral-3: names, the draft adapter, the mask token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.models.ministral3 import Ministral3ForCausalLM
from sglang.srt.runtime_context import get_parallel

from replicas.torch_engine.checkpoint import ADAPTER_FOLDER, read_adapter, resolve
from replicas.torch_engine.model_config import read_model_config

_RENAMED = {"encoder.": "model.", "diffusion_head.": "lm_head."}


class DraftProjection(torch.nn.Module):
    """An output projection to which drafting adds the adapter's low-rank term."""

    down: torch.Tensor  # [rank, in]
    up: torch.Tensor  # [out, rank], scale folded in

    def __init__(self, inner: torch.nn.Module, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.is_drafting = inner, False
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out, bias = self.inner(x, *args, **kwargs)
        if self.is_drafting:
            out = out + x @ self.down.T @ self.up.T
        return out, bias


class NemotronLabsDiffusionModel(Ministral3ForCausalLM):  # type: ignore[misc]
    """Same head for causal and bidirectional logits; the mask token is never among the likely."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        loaded = super().load_weights(_renamed(weights))
        self._load_adapter()
        return loaded

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        logits = getattr(output, "next_token_logits", None)
        if logits is not None:
            # It can be fed, as the place of a token to come, but is no token itself.
            logits[:, self.config.mask_token_id] = float("-inf")
        return output

    @property
    def has_adapter(self) -> bool:
        """Whether drafting is another computation than the rest."""
        return bool(self._projections)

    @contextmanager
    def drafting(self, is_drafting: bool) -> Iterator[None]:
        """With the draft adapter, if the checkpoint has one."""
        if not is_drafting:
            yield
            return
        self._set_drafting(True)
        try:
            yield
        finally:
            self._set_drafting(False)

    def _set_drafting(self, is_drafting: bool) -> None:
        for module in self._projections:
            module.is_drafting = is_drafting

    @property
    def _projections(self) -> list[DraftProjection]:
        attentions = (layer.self_attn for layer in self.model.layers)
        return [a.o_proj for a in attentions if isinstance(a.o_proj, DraftProjection)]

    def _load_adapter(self) -> None:
        path = resolve(self.config._name_or_path)
        adapter = read_adapter(path / ADAPTER_FOLDER, read_model_config(path / "config.json"))
        if not adapter:
            return
        if (size := get_parallel().tp_size) != 1:
            raise ValueError(
                f"the draft adapter of {path} is not split over {size} ranks; start with --tp 1, "
                f"or without the folder {ADAPTER_FOLDER}"
            )
        for i, layer in enumerate(self.model.layers):
            projection = layer.self_attn.o_proj
            like = next(projection.parameters())
            prefix = f"encoder.layers.{i}.self_attn.o_proj.lora"
            down, up = (adapter[f"{prefix}_{side}.weight"].to(like) for side in "AB")
            layer.self_attn.o_proj = DraftProjection(projection, down, up)


def _renamed(
    weights: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        for released, sglang in _RENAMED.items():
            if name.startswith(released):
                name = sglang + name.removeprefix(released)
                break
        yield name, tensor


EntryClass = NemotronLabsDiffusionModel
