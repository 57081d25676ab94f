"""Attention on a CPU is attention, whatever it is cut into."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet import attention
from masklet.attention import mix


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_MOST_WEIGHTS", 40)
        patch.setattr(attention, "_BLOCK_QUERIES", 3)
        patch.setattr(attention, "_BLOCK_KEYS", 5)
        yield


@settings(deadline=None)
@given(
    batch=st.integers(1, 5),
    queries=st.integers(1, 12),
    keys=st.integers(1, 12),
    width=st.sampled_from([2, 4]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_it_is_cut_into_blocks_without_a_trace(
    batch: int, queries: int, keys: int, width: int, scale: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    asking = scale * torch.randn(batch, queries, 4, generator=draw)
    there = torch.randn(batch, keys, 4, generator=draw)
    values = torch.randn(batch, keys, width, generator=draw)
    expected = F.scaled_dot_product_attention(asking.double(), there.double(), values.double())
    mixed = mix(asking, there, values)
    # a score of 1e4 is known to about 1e-3
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-5 + 1e-6 * scale)
    halved = mix(*(one.bfloat16() for one in (asking, there, values)))
    assert halved.dtype == torch.bfloat16
    if scale <= 1:
        torch.testing.assert_close(halved.double(), expected, rtol=0, atol=0.05)
