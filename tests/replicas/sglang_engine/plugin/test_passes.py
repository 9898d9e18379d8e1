"""SGLang's Triton kernels with the plugin's masks, pass by pass, in Triton's interpreter.

The kernels are SGLang's own and nothing is stood in for; what is missing is the compiler, the GPU
and the recording of graphs. Run with: make test-sglang
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from replicas.sglang_engine.protocol import CPU_ENVIRONMENT
from tests.replicas.torch_engine.checkpoints import write_checkpoint

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("_sglang")]

KINDS = ("draft", "denoise", "verify", "mixed")
PASSES = {
    *(f"plain/1x{rows}" for rows in (1, 2, 3)),
    *(f"{kind}/{w}x{rows}" for kind in KINDS for w in (4, 8, 16, 32) for rows in (1, 2, 3)),
}
ROUNDING = 1e-3
"""Of logits; a wrong mask changes those of a pass by fifty times as much and more."""


@pytest.fixture(scope="module")
def report(_sglang: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("release") / "model")
    environment = {**CPU_ENVIRONMENT, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.replicas.sglang_engine.plugin.passes", str(checkpoint)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kind_of_pass_is_the_dense_models_at_every_width(report: dict[str, Any]) -> None:
    """Rows of 5, 13 and 40 committed tokens; drafts with the adapter; mixed: causal and not."""
    assert report["eager"].keys() == PASSES
    assert max(report["eager"].values()) < ROUNDING


def test_a_replay_with_new_inputs_is_the_eager_pass(report: dict[str, Any]) -> None:
    """Each time another shape, kind or length than before, so nothing of the last pass may stay;
    three rows are padded to four."""
    assert report["replayed"].keys() == PASSES
    assert max(report["replayed"].values()) < 1e-5
    assert report["replays"] == list(range(1, len(PASSES) + 1))


def test_rows_width_and_adapter_make_a_shape_and_the_mask_makes_none(
    report: dict[str, Any],
) -> None:
    counts, widths = 3, 4  # 1, 2 and 4 rows; 4 to 32 tokens, with the adapter and without
    assert report["captures"] == counts * (1 + 2 * widths)


def test_what_was_not_recorded_runs_eagerly(report: dict[str, Any]) -> None:
    assert report["unrecorded"]["replays"] == 0
    assert report["unrecorded"]["difference"] < ROUNDING


def test_sglangs_plain_steps_are_replayed(report: dict[str, Any]) -> None:
    assert report["plain"]["replays"] == 1
    assert report["plain"]["difference"] < 1e-5
