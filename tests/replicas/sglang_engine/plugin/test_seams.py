"""The plugin where it touches SGLang, in this process. Run with: make test-sglang"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from replicas.sglang_engine.plugin.compatibility import check_version, missing_seams
from replicas.sglang_engine.protocol import GRAPHS_VARIABLE, cpu_flags, gpu_flags, launch_flags

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("_sglang")]

RUN = {
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 32,
    "disable_overlap_schedule": True,
    "disable_cuda_graph": True,
    "attention_backend": "triton",
    "prefill_attention_backend": None,
    "decode_attention_backend": None,
    "page_size": 1,
    "enable_mixed_chunk": False,
    "tp_size": 1,
    "pp_size": 1,
    "dp_size": 1,
}


def test_the_installed_sglang_has_every_seam() -> None:
    check_version()
    assert missing_seams() == []


def test_the_launch_flags_are_what_is_accepted() -> None:
    from replicas.sglang_engine.plugin.algorithm import check_server_args

    switches = {name for name, value in RUN.items() if value is True}
    flags = {flag.removeprefix("--").replace("-", "_") for flag in launch_flags()}
    assert flags >= {*switches, "32"}
    for flags in (gpu_flags(), cpu_flags()):
        backend = flags[flags.index("--attention-backend") + 1]
        check_server_args(SimpleNamespace(**{**RUN, "attention_backend": backend}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speculative_eagle_topk", 4),
        ("speculative_num_draft_tokens", 12),
        ("speculative_num_draft_tokens", None),
        ("disable_overlap_schedule", False),
        ("disable_cuda_graph", False),
        ("attention_backend", "fa3"),
        ("page_size", 16),
        ("tp_size", 2),
        ("enable_mixed_chunk", True),
    ],
)
def test_what_the_worker_cannot_do_is_refused_at_start_by_name(name: str, value: Any) -> None:
    from replicas.sglang_engine.plugin.algorithm import check_server_args

    with pytest.raises(ValueError, match=name.replace("_", "[_-]")) as refused:
        check_server_args(SimpleNamespace(**{**RUN, name: value}))
    assert str(value) in str(refused.value)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_two_attention_backends_are_refused_at_start(phase: str) -> None:
    from replicas.sglang_engine.plugin.algorithm import check_server_args

    with pytest.raises(ValueError, match=r"needs one attention_backend.*torch_native"):
        check_server_args(SimpleNamespace(**{**RUN, f"{phase}_attention_backend": "torch_native"}))


def test_a_kernel_whose_tiles_would_cut_a_block_is_refused_with_the_longest_that_fits() -> None:
    from replicas.sglang_engine.plugin.attention import attention_for

    runner = SimpleNamespace(
        device="cpu",
        decode_attention_backend_str="triton",
        attn_backend=SimpleNamespace(extend_attention_block_m=16),
    )
    attention_for(runner, 16)
    with pytest.raises(ValueError, match=r"a block of 32 .*--speculative-num-draft-tokens 16"):
        attention_for(runner, 32)


def test_graphs_need_an_attention_whose_mask_is_data() -> None:
    from replicas.sglang_engine.plugin.forwards import Forwards
    from replicas.torch_engine.cuda_graphs import replay_eagerly

    runner = SimpleNamespace(model=torch.nn.Module(), decode_attention_backend_str="torch_native")
    worker = SimpleNamespace(model_runner=runner, device="cpu")
    with pytest.raises(ValueError, match="needs --attention-backend triton, found torch_native"):
        Forwards(worker, None, 32).record(replay_eagerly)


def test_graphs_are_asked_for_with_a_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from replicas.sglang_engine.plugin import graphs

    for value, wanted in {"": False, "0": False, "1": True}.items():
        monkeypatch.setenv(GRAPHS_VARIABLE, value)
        assert graphs.are_wanted() is wanted
    monkeypatch.setenv(GRAPHS_VARIABLE, "yes")
    with pytest.raises(ValueError, match=f"{GRAPHS_VARIABLE}=yes must be 0 or 1"):
        graphs.are_wanted()


def test_a_step_without_tokens_changes_no_request_unless_it_is_aborted() -> None:
    from replicas.sglang_engine.plugin.hooks import _finish

    asked: list[int] = []

    def original(req: Any, count: int) -> None:
        asked.append(count)

    _finish(original, SimpleNamespace(to_finish=None), 0)
    assert asked == []
    _finish(original, SimpleNamespace(to_finish="abort"), 0)
    _finish(original, SimpleNamespace(to_finish=None), 3)
    _finish(original, SimpleNamespace(to_finish=None))
    assert asked == [0, 3, 1]


def test_a_request_with_nothing_new_sends_no_event() -> None:
    from replicas.sglang_engine.plugin.hooks import _stream

    sent: list[Any] = []

    def original(accumulator: Any, *, req: Any) -> None:
        sent.append(req)

    def req(tokens: int, offset: int, finished: bool = False) -> Any:
        return SimpleNamespace(
            output_ids=[0] * tokens, send_token_offset=offset, finished=lambda: finished
        )

    silent = req(4, 4)
    speaking = [req(4, 3), req(0, 0), req(4, 4, finished=True)]
    for one in [silent, *speaking]:
        _stream(original, None, req=one)
    assert sent == speaking
