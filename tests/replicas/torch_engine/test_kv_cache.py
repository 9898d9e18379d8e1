"""The KV pool keeps what sequences wrote, however it is cut and whatever moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.torch_engine.kv_cache import SCRATCH_TOKENS, KVPool
from tests.replicas.torch_engine.builders import CPU


def pool(tokens: int, max_context: int, **options) -> KVPool:
    shape = {"num_layers": 2, "kv_width": 3, "dtype": torch.float32, "device": CPU}
    return KVPool(tokens=tokens, max_context=max_context, **shape, **options)


@given(tokens=st.integers(1, 5000), max_context=st.integers(1, 3000))
def test_every_cut_divides_the_pool_and_holds_a_block(tokens, max_context):
    cut = pool(tokens, max_context)
    assert list(cut.row_lengths) == sorted(set(cut.row_lengths))
    assert cut.row_lengths[-1] >= max_context + SCRATCH_TOKENS
    assert cut.row_lengths[0] >= 2 * SCRATCH_TOKENS
    assert all(cut.tokens == cut.rows_at(n) * n for n in cut.row_lengths)
    assert cut.tokens <= max(tokens, cut.row_lengths[-1])
    for length in range(1, max_context + 1, 37):
        row = cut.row_length_for(length)
        assert row >= length + SCRATCH_TOKENS
        assert all(n < length + SCRATCH_TOKENS for n in cut.row_lengths if n < row)


@pytest.mark.parametrize("spare_row", [False, True])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_cuts_and_moves_keep_every_rows_content(spare_row, data):
    """Random writes, moves and cuts, against a plain dictionary of rows."""
    cut = pool(192 * 4, 160, spare_row=spare_row)
    rows: list[list[float]] = []
    stamp = 0.0

    def write(row: int, length: int) -> None:
        nonlocal stamp
        values = []
        for at in range(length):
            stamp += 1
            for layer, stored in enumerate(cut.layers):
                stored[row * cut.row_length + at] = stamp + layer / 2
            values.append(stamp)
        rows[row] = values

    def check() -> None:
        for row, values in enumerate(rows):
            for layer, stored in enumerate(cut.layers):
                start = row * cut.row_length
                kept = stored[start : start + len(values)]
                expected = torch.tensor(values)[:, None] + layer / 2
                assert (kept == expected).all()

    for action in data.draw(st.lists(st.sampled_from(["write", "move", "cut"]), max_size=12)):
        if action == "write" and len(rows) < cut.rows_at(cut.row_length):
            rows.append([])
            write(len(rows) - 1, data.draw(st.integers(0, cut.row_length)))
        elif action == "move" and rows:
            hole = data.draw(st.integers(0, len(rows) - 1))
            last = rows.pop()
            if hole < len(rows):
                cut.move(len(rows), hole, len(last))
                rows[hole] = last
        elif action == "cut":
            longest = max(map(len, rows), default=0)
            fits = [n for n in cut.row_lengths if n >= longest and cut.rows_at(n) >= len(rows)]
            length = data.draw(st.sampled_from(fits or [cut.row_length]))
            cut.recut(length, [len(values) for values in rows])
            assert cut.row_length == length
        check()


def test_a_spare_row_belongs_to_no_sequence():
    cut = pool(192 * 2, 160, spare_row=True)
    assert cut.tokens == 192 * 2
    assert cut.layers[0].shape[0] == 192 * 3
