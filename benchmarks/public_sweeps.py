"""Throughput over concurrency that others have published for this model, on one B200."""

from __future__ import annotations

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 128)

SWEEP_SOURCE = (
    "sajadn's SGLang fork, B200, 713 SPEED-Bench prompts: AR is Qwen3-8B in BF16, self-speculation "
    "is the predecessor Exp-8B-v2 at block length 32"
)
AR_TOKENS_PER_S = (222, 424, 834, 1599, 3027, 5317, 7906, 11774)
SELF_SPECULATION_32_TOKENS_PER_S = (440, 777, 1317, 2204, 3069, 3651, 4024, 4230)

ROUND_SOURCE = (
    "linyewei, SGLang on B200, 8B: draft and verify with CUDA graphs, mean context 330 to 940"
)
ROUND_MS = {
    8: (9.96, 10.96, 16.57, 17.11, 21.94, 22.49, 30.73, 48.55),
    16: (10.24, 12.26, 17.10, 18.74, 24.39, 28.95, 43.55, 76.84),
    32: (11.17, 13.16, 18.95, 21.48, 29.30, 41.79, 70.74, 132.45),
}
"""Milliseconds of one round by block length, at `CONCURRENCY`."""
