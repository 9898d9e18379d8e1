"""Makes the checkpoint's model type known to transformers and to SGLang."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoConfig, PretrainedConfig

MODEL_TYPE = "nemotron_labs_diffusion"
_MODEL_PACKAGES = "SGLANG_EXTERNAL_MODEL_PACKAGE"


class NemotronLabsDiffusionConfig(PretrainedConfig):  # type: ignore[misc]
    """config.json as it is, with what SGLang's Ministral-3 looks for besides.

    Query scaling and rotary tables there read `original_max_position_embeddings` beside the rope
    parameters, not in them, and take another value if it is missing. `pad_token_id` must be there.
    """

    model_type = MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"pad_token_id": None, **kwargs})
        rope = getattr(self, "rope_parameters", None) or {}
        if original := rope.get("original_max_position_embeddings"):
            self.original_max_position_embeddings = original


def register() -> None:
    AutoConfig.register(MODEL_TYPE, NemotronLabsDiffusionConfig)
    # Read when SGLang's model registry is first imported. With it, SGLang's own models are left
    # alone until one is asked for, which also takes seconds off the start.
    os.environ[_MODEL_PACKAGES] = "replicas.sglang_engine.plugin.models"
