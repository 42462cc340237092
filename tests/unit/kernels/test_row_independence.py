"""Is a row's result the same to the bit whatever is computed beside it? (What replay after a crash rests on.)"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from nvstreamd import ggml
from nvstreamd.kernels.torch_attention import PAGE_TOKENS, QUERY_TILE, attend_tile
from nvstreamd.kernels.torch_ops import ROW_TILE, TorchOps
from nvstreamd.kernels.weight import Weight
from nvstreamd.kernels.workers import Workers

SHAPES = [(2048, 576), (576, 1536), (1000, 4096), (96, 64)]


def half_precision_weight(rows: int, columns: int) -> Weight:
    data = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).half()
    return Weight(ggml.F16, rows, columns, data.view(torch.uint8).view(-1))


def activations(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_linear_rows_do_not_see_each_other(out: int, width: int, threads: int) -> None:
    weight = half_precision_weight(out, width)
    x = activations(5 * ROW_TILE, width)
    with ExitStack() as stack:
        workers = Workers(threads)
        workers.start(stack)
        ops = TorchOps(workers)
        together = ops.linear(x, weight)
        order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(3))
        assert torch.equal(ops.linear(x[order], weight), together[order])
        for row in range(0, x.shape[0], 7):
            alone = torch.zeros(ROW_TILE, width)
            alone[row % ROW_TILE] = x[row]
            assert torch.equal(ops.linear(alone, weight)[row % ROW_TILE], together[row])


def test_linear_is_the_product() -> None:
    weight = half_precision_weight(1000, 4096)
    x = activations(ROW_TILE, 4096)
    expected = x.double() @ weight.data.view(torch.float16).view(1000, 4096).double().T
    found = TorchOps(Workers(1)).linear(x, weight).double()
    assert (found - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (32, 8, 128), (4, 4, 16)])
def test_attention_ignores_what_lies_behind_a_row(heads: int, kv_heads: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(5)
    keys = torch.randn(11, kv_heads, PAGE_TOKENS, dim, generator=generator).half()
    values = torch.randn(11, kv_heads, PAGE_TOKENS, dim, generator=generator).half()
    q = torch.randn(QUERY_TILE, heads, dim, generator=generator)
    positions = torch.tensor([0, 31, 32, 63, 70, 90, 95, 95])
    full = attend_tile(q, keys, values, positions)
    for pages in (3, 4, 7):
        assert torch.equal(attend_tile(q, keys[:pages], values[:pages], positions), full)
    turned = torch.roll(torch.arange(QUERY_TILE), 3)
    assert torch.equal(attend_tile(q[turned], keys, values, positions[turned]), full[turned])


def test_attention_is_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(6)
    keys = torch.randn(3, 2, PAGE_TOKENS, 16, generator=generator).half()
    values = torch.randn(3, 2, PAGE_TOKENS, 16, generator=generator).half()
    q = torch.randn(QUERY_TILE, 6, 16, generator=generator)
    positions = torch.arange(60, 60 + QUERY_TILE)
    found = attend_tile(q, keys, values, positions).view(QUERY_TILE, 6, 16)
    flat_k = keys.transpose(1, 2).reshape(-1, 2, 16).double()
    flat_v = values.transpose(1, 2).reshape(-1, 2, 16).double()
    for row, last in enumerate(positions.tolist()):
        for head in range(6):
            scores = flat_k[: last + 1, head // 3] @ q[row, head].double() / 4
            expected = torch.softmax(scores, 0) @ flat_v[: last + 1, head // 3]
            torch.testing.assert_close(found[row, head].double(), expected, rtol=1e-5, atol=1e-5)


def test_elementwise_operations_do_not_see_other_rows() -> None:
    ops = TorchOps(Workers(1))
    x, other = activations(40, 1536), activations(40, 1536, 2)
    norm = ops.rms_norm(x, other[0], 1e-5)
    gated = ops.swiglu(x.clone(), other)
    for row in (0, 13, 39):
        assert torch.equal(ops.rms_norm(x[row : row + 1], other[0], 1e-5)[0], norm[row])
        assert torch.equal(ops.swiglu(x[row : row + 8].clone(), other[row : row + 8])[0], gated[row])
