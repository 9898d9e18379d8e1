"""Reading traces. Run: pytest tests/replay/test_trace.py"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from replay import trace
from replay.trace import parse, read


def test_optional_columns_and_their_order_do_not_matter() -> None:
    found = parse("t", b"client,out,in,t,cached\n7,20,100,0.0,64\n7,1,50,1.5,\n")
    assert found.arrivals_s.tolist() == [0.0, 1.5]
    assert found.prompts.tolist() == [100, 50]
    assert found.outputs.tolist() == [20, 1]
    assert found.cached.tolist() == [64, 0]


def test_gzip_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(b"t,in,out\n0,10,20\n"))
    found = read(str(path))
    assert (found.name, len(found)) == ("day", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"t,in\n0,1\n", "column 'out' is missing"),
        (b"t,in,out\n", "no requests"),
        (b"", "column 't' is missing"),
        (b"t,in,out\n0,1,1\n0,x,1\n", "bad, line 3: invalid literal"),
        (b"t,in,out\n5,1,1\n4,1,1\n", "bad, line 3: t 4 is before 5; sort the file"),
        (b"t,in,out\nnan,1,1\n", "bad, line 2: t nan"),
        (b"t,in,out\n0,0,1\n", "bad, line 2: in 0 and out 1 must be at least 1"),
        (b"t,in,out\n0,1\n", "bad, line 2"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("bad", content)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="azure23_conv"):
        read("azure")


def test_every_shipped_trace_is_there_and_can_be_read() -> None:
    names = trace.shipped()
    assert len(names) == 7
    for name in names:
        found = read(name)
        assert len(found) > 3000
        assert (np.diff(found.arrivals_s) >= 0).all()


def test_compressing_time_raises_the_rate_and_keeps_everything_else() -> None:
    found = read("azure23_code")
    fast = found.faster(4.0)
    assert fast.duration_s == pytest.approx(found.duration_s / 4)
    assert (fast.outputs == found.outputs).all()
    with pytest.raises(ValueError, match="speed 0 must be above 0"):
        found.faster(0.0)


def test_what_is_longer_than_the_cache_is_cut_and_counted() -> None:
    found, cut = parse("t", b"t,in,out\n0,900,300\n1,10,20\n").fitting(400)
    assert cut == 1
    assert (found.prompts + found.outputs).tolist() == [400, 30]
