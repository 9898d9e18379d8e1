"""Writes the shipped profiles of GPUs, which were not measured: `python -m replay.make_profiles`.

Each figure is published, fitted to published figures, or assumed, and the profile's note says
which. A GPU at hand is worth more than any of them: `trimode calibrate` measures it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from policies.step_time import Curve, Fingerprint, Profile
from policies.vocabulary import AR, Mode, Plan

FOLDER = Path(__file__).resolve().parent.parent / "policies" / "profiles"
CREATED = "2026-11-21"

# Nemotron-Labs-Diffusion-8B (arXiv 2607.05722, its config.json): 36 layers of 4096 dimensions,
# 8 K/V heads of 128, feed-forward 12288, vocabulary 131072; bfloat16.
LAYERS, WIDTH, KV_WIDTH, FEED_FORWARD, VOCABULARY = 36, 4096, 8 * 128, 12288, 131072
LINEAR_PARAMETERS = (
    LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KV_WIDTH + 3 * WIDTH * FEED_FORWARD)
    + VOCABULARY * WIDTH
)
WEIGHT_BYTES = 2 * LINEAR_PARAMETERS
EMBEDDING_BYTES = 2 * VOCABULARY * WIDTH
KV_BYTES = 2 * LAYERS * KV_WIDTH * 2
SCORE_FLOP = 4 * WIDTH * LAYERS  # one position against one cached token
ACTIVATION_BYTES = 7.0e6  # per position: fused activations and float32 logits
MEMORY_SHARE, WORKSPACE_BYTES = 0.9, 5.0e9
BANDWIDTH_USE, ACTIVATION_USE, SCORE_USE = 0.75, 0.7, 0.55
SHARPNESS = 1.9
SWITCH_S = 0.010  # assumed; a reference swap where graphs of every shape are captured
MAX_SEQUENCES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """`flops` is what dense bfloat16 products reach, `overhead_s` what a forward costs besides."""

    name: str
    bytes_per_s: float
    flops: float
    memory_bytes: float
    overhead_s: float

    def curve(self) -> Curve:
        memory = self.bytes_per_s * BANDWIDTH_USE
        return Curve(
            weights_s=WEIGHT_BYTES / memory,
            position_s=2.0 * LINEAR_PARAMETERS / self.flops,
            kv_token_s=KV_BYTES / memory,
            score_s=SCORE_FLOP / (self.flops * SCORE_USE),
            activation_s=ACTIVATION_BYTES / (self.bytes_per_s * ACTIVATION_USE),
            overhead_s=self.overhead_s,
            block_overhead_s=0.2e-3,
            sharpness=SHARPNESS,
        )

    def kv_tokens(self) -> int:
        weights = WEIGHT_BYTES + EMBEDDING_BYTES + WORKSPACE_BYTES
        return int((self.memory_bytes * MEMORY_SHARE - weights) / KV_BYTES)


H100 = Gpu("NVIDIA H100 SXM", 3.35e12, 771e12, 80e9, 0.5e-3)
GB200 = Gpu("NVIDIA GB200", 8.0e12, 2.0e15, 186e9, 1.4e-3)
B200 = Gpu("NVIDIA B200", 8.0e12, 2.0e15, 180e9, 1.4e-3)

B200_CONTEXT = 640.0  # tokens; published mean contexts lie between 330 and 940
B200_AR_TOKENS_PER_S = {1: 222, 2: 424, 4: 834, 8: 1599, 16: 3027, 32: 5317, 64: 7906, 128: 11774}
"""Qwen3-8B in AR, bfloat16, SGLang, one B200 (sajadn's LinearSpec report, SPEED-Bench)."""
B200_SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
B200_DRAFT_VERIFY_MS = {
    8: (9.96, 10.96, 16.57, 17.11, 21.94, 23.84, 22.49, 27.79, 30.73, 39.24, 48.55),
    16: (10.24, 12.26, 17.10, 18.74, 24.39, 27.81, 28.95, 35.74, 43.55, 62.52, 76.84),
    32: (11.17, 13.16, 18.95, 21.48, 29.30, 34.93, 41.79, 58.98, 70.74, 100.64, 132.45),
}
"""Draft and verify of the 8B model, SGLang LinearSpec with CUDA graphs, one B200 (lin's report)."""


def h100() -> Profile:
    return _profile(
        "h100",
        H100,
        "roofline",
        "Bandwidth use, FLOP/s and the sharpness of the knee are fitted to published kernel times "
        "of Llama-3.1-8B on an H100 (LLMServingSim, MIT; mean error 1.0 %, largest 3.3 %). AR at "
        "one sequence comes out at 153 tokens/s, published 158 (SGLang docs). Assumed: overhead "
        "of a forward 0.5 ms, of a block 0.2 ms more, a change of plan 10 ms. Not measured.",
    )


def gb200() -> Profile:
    return _profile(
        "gb200",
        GB200,
        "roofline",
        "The H100's fit at 8 TB/s and 2.0 PFLOP/s. Overhead of a forward, 1.4 ms, makes AR at one "
        "sequence 255 tokens/s, published 253 (model card, FP8), and self_speculation/32 about "
        "825 at 6.82 tokens a round, published 851 (arXiv 2607.05722, figure 9). Assumed: a "
        "change of plan 10 ms. Not measured.",
    )


def b200() -> Profile:
    profile = _profile(
        "b200",
        B200,
        "published",
        "Published: draft and verify of the 8B model at blocks of 8, 16 and 32 and 1 to 128 "
        "sequences; AR is Qwen3-8B, of the same size (both SGLang on one B200). The curve is the "
        "GB200's roofline, the ratios make it meet these figures at 640 tokens of context. "
        "Assumed: blocks of 4 have the ratios of 8, a forward of diffusion takes half a draft and "
        "verify, a change of plan 10 ms. Not measured here.",
    )
    ratios = {AR: _ar_ratios(profile)}
    for length in (4, 8, 16, 32):
        drafts = _draft_ratios(profile, max(8, length))
        ratios[Plan(Mode.SELF_SPECULATION, length)] = drafts
        ratios[Plan(Mode.DIFFUSION, length)] = drafts
    return replace(profile, ratios=ratios)


def _profile(name: str, gpu: Gpu, source: str, note: str) -> Profile:
    return Profile(
        name=name,
        fingerprint=Fingerprint(gpu.name, "Nemotron-Labs-Diffusion-8B", "bfloat16", source),
        source=source,
        curve=gpu.curve(),
        switch_s=SWITCH_S,
        max_sequences=MAX_SEQUENCES,
        kv_tokens=gpu.kv_tokens(),
        created=CREATED,
        note=note,
    )


def _ar_ratios(profile: Profile) -> tuple[tuple[float, float], ...]:
    return tuple(
        (float(n), n / rate / profile.step_s(AR, n, n * B200_CONTEXT))
        for n, rate in B200_AR_TOKENS_PER_S.items()
    )


def _draft_ratios(profile: Profile, length: int) -> tuple[tuple[float, float], ...]:
    plan = Plan(Mode.SELF_SPECULATION, length)
    times = zip(B200_SEQUENCES, B200_DRAFT_VERIFY_MS[length], strict=True)
    return tuple(
        (float(n), ms / 1e3 / profile.step_s(plan, n, n * B200_CONTEXT)) for n, ms in times
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for profile in (h100(), b200(), gb200()):
        path = FOLDER / f"{profile.name}.json"
        fields = profile.to_dict()
        fields["ratios"] = {
            plan: [[n, round(ratio, 4)] for n, ratio in points]
            for plan, points in fields["ratios"].items()
        }
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        print(path.name, profile.source, f"{profile.kv_tokens} tokens of K/V")


if __name__ == "__main__":
    main()
