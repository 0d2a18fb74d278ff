"""A caller's buffer, layouts in memory, rows of different lengths, and threads: none of it changes a result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import normcore
from normcore.errors import InvalidParameter, NonFinite, ShapeMismatch
from normcore.kernels import launch

Norm = Callable[..., Tensor]

CENTRE = torch.tensor([0.1, -0.7, 0.0, 2.0], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 0.3, 2.0, 5.0], dtype=torch.float64)
RANGE = normcore.ToRange(-1.0, 1.0, clip=True)

# x is (N, 4, L, M) throughout.
EVERY: dict[str, Norm] = {
    "standardize": lambda x, **o: normcore.standardize(x, CENTRE, SPREAD, eps=1e-5, channel_axis=1, **o),
    "unstandardize": lambda x, **o: normcore.unstandardize(x, CENTRE, SPREAD, eps=1e-5, channel_axis=1, **o),
    "min max": lambda x, **o: normcore.min_max(x, CENTRE, CENTRE + SPREAD, channel_axis=1, **o),
    "unmin max": lambda x, **o: normcore.unmin_max(x, CENTRE, CENTRE + SPREAD, channel_axis=1, **o),
    "batch": lambda x, **o: normcore.batch_norm(x, eps=1e-5, **o)[0],
    "ghosts": lambda x, **o: normcore.batch_norm(x, eps=1e-5, virtual_batch_size=2, **o)[0],
    "own range": lambda x, **o: normcore.by_own_statistics(x, RANGE, channel_axis=1, **o)[0],
    "renorm": lambda x, **o: normcore.batch_renorm(x, CENTRE, SPREAD, r_max=2, d_max=1, eps=1e-5, **o)[0],
    "layer": lambda x, **o: normcore.layer_norm(x, x.shape[-2:], **o),
    "rms": lambda x, **o: normcore.rms_norm(x, x.shape[-1], **o),
    "group": lambda x, **o: normcore.group_norm(x, 2, **o),
    "instance": lambda x, **o: normcore.instance_norm(x, **o),
    "adaptive": lambda x, **o: normcore.adaptive_instance_norm(x, CENTRE, SPREAD, **o),
    "mean variance": lambda x, **o: normcore.mean_variance_norm(x, (0, 2, 3), **o),
    "mean variance, moved": lambda x, **o: normcore.mean_variance_norm(x, (0, 2), **o),
    "lp": lambda x, **o: normcore.lp_norm(x, **o),
    "lp, last": lambda x, **o: normcore.lp_norm(x, axis=-1, **o),
    "local response": lambda x, **o: normcore.local_response_norm(x, 3, **o),
}
every_norm = pytest.mark.parametrize("norm", EVERY.values(), ids=EVERY)


def images(*, last: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    x = (torch.randn(5, 4, 6, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@every_norm
@pytest.mark.parametrize("last", [False, True])
def test_the_output_goes_into_the_buffer_that_is_given(norm: Norm, last: bool) -> None:
    x = images(last=last)
    expected = norm(x)
    for out in (torch.full_like(x, 7), torch.full((5, 4, 6, 14), 7.0)[..., ::2], torch.full(x.shape, 7.0)):
        assert norm(x, out=out) is out
        assert out.equal(expected)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_buffer_may_be_the_input(norm: Norm, dtype: torch.dtype) -> None:
    x, mask = images(dtype=dtype), torch.rand(5, 1, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    for options in ({}, {"mask": mask}):
        expected, given = norm(x, **options), x.clone()
        assert norm(given, out=given, **options) is given
        assert given.equal(expected)


@every_norm
def test_a_buffer_that_does_not_fit_is_refused(norm: Norm) -> None:
    with pytest.raises(ShapeMismatch, match=r"out\.shape"):
        norm(images(), out=torch.empty(5, 4, 6))
    with pytest.raises(InvalidParameter, match=r"out is torch\.float64"):
        norm(images(), out=torch.empty(5, 4, 6, 7, dtype=torch.float64))
    with pytest.raises(InvalidParameter, match=r"out is torch\.uint8 .* expected torch\.float32"):
        norm(images(dtype=torch.uint8), out=torch.empty(5, 4, 6, 7, dtype=torch.uint8))


@every_norm
def test_channels_that_lie_last_in_memory_give_the_same(norm: Norm) -> None:
    torch.testing.assert_close(norm(images(last=True)), norm(images()), rtol=3e-7, atol=1e-7)


def test_channels_last_stay_so_and_are_not_copied() -> None:
    x = images(last=True)
    y, _ = normcore.batch_norm(x, eps=1e-5)
    assert y.stride() == x.stride()
    assert normcore.layout.by_channel(x, 1).x.data_ptr() == x.data_ptr()


def test_a_batch_that_is_refused_is_left_as_it_was() -> None:
    x = images()
    x[1, 2, 3, 4] = torch.nan
    before = x.clone()
    with pytest.raises(NonFinite):
        normcore.batch_norm(x, eps=1e-5, nan_policy="reject", out=x)
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(20000, 65, 1), (40, 40, 900), (3, 5, 40000), (900, 30, 49)])
def test_results_do_not_depend_on_how_many_threads_there_are(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y, moments = launch.channel_norm(x, shape, normcore.ToUnit(1e-5))
            found.append((moments.values, y, normcore.layer_norm(x, shape[2])))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(one.equal(two) for one, two in zip(found[0], other, strict=True))


def test_calls_from_many_threads_do_not_meet() -> None:
    x = [torch.randn(3000, 300, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    expected = [(normcore.moments_of(one, 1).values, normcore.layer_norm(one, 300)) for one in x]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(lambda one: (normcore.moments_of(one, 1).values, normcore.layer_norm(one, 300)), x))
            for (values, y), (wanted, z) in zip(found, expected, strict=True):
                assert values.equal(wanted)
                assert y.equal(z)


def test_a_forked_process_computes() -> None:
    code = (
        "import os, torch, normcore; x = torch.randn(3000, 300); a = normcore.layer_norm(x, 300)\n"
        "if not (child := os.fork()): os._exit(0 if normcore.layer_norm(x, 300).equal(a) else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"


def test_large_output_goes_past_the_caches_and_is_the_same() -> None:
    x = torch.randn(70000, 65, generator=torch.Generator().manual_seed(0))
    y, _ = normcore.batch_norm(x, eps=1e-5)
    rows = normcore.layer_norm(x, 65)
    some = slice(33333, 33343)
    torch.testing.assert_close(rows[some], normcore.layer_norm(x[some], 65), rtol=0, atol=0)
    mean, var = x.double().mean(0), x.double().var(0, correction=0)
    torch.testing.assert_close(y[some], normcore.standardize(x[some], mean, var, eps=1e-5, channel_axis=1))


@every_norm
@pytest.mark.parametrize("last", [False, True])
def test_large_output_may_begin_at_any_address(norm: Norm, last: bool) -> None:
    """As it does behind a reply's header; vectors that go past the caches may not."""
    x = torch.randn(128, 4, 110, 80, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last) if last else x
    mask = torch.rand(128, 1, 110, 80, generator=torch.Generator().manual_seed(1)) < 0.7
    expected, masked = norm(x), norm(x, mask=mask)
    for offset in (1, 2, 3, 17):
        assert norm(x, out=anywhere(x, offset)).equal(expected), offset
    assert norm(x, mask=mask, out=anywhere(x, 1)).equal(masked)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_so_may_a_row_that_threads_share_and_many_short_ones(dtype: torch.dtype, offset: int) -> None:
    for shape in ((1, 9_000_000), (300_000, 30)):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
        like = torch.empty(shape, dtype=dtype if dtype.is_floating_point else torch.float32)
        for norm in (normcore.layer_norm, normcore.rms_norm):
            assert norm(x, shape[1], out=anywhere(like, offset)).equal(norm(x, shape[1]))
        assert normcore.lp_norm(x, axis=-1, out=anywhere(like, offset)).equal(normcore.lp_norm(x, axis=-1))


def anywhere(x: Tensor, offset: int) -> Tensor:
    """Memory for as much as x, laid out likewise, so many bytes after an address that 64 divides."""
    memory = torch.empty(x.nbytes + 128, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + offset
    flat = torch.frombuffer(memory.numpy(), dtype=x.dtype, offset=start, count=x.numel())
    return flat.as_strided(x.shape, x.stride())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8], ids=str)
def test_rows_of_different_lengths_are_as_alone(dtype: torch.dtype) -> None:
    lengths = torch.tensor([5, 0, 17, 1, 300])
    x = (torch.randn(323, generator=torch.Generator().manual_seed(0)).abs() * 9).to(dtype)
    weight, bias = torch.randn(300, dtype=torch.float64), torch.randn(310, dtype=torch.float64)
    y = normcore.ragged_row_norm(x, lengths, weight=weight, bias=bias)
    plain = normcore.ragged_row_norm(x, lengths, center=False, eps=1e-6)
    for row, alone, rms in zip(
        x.split(lengths.tolist()), y.split(lengths.tolist()), plain.split(lengths.tolist()), strict=True
    ):
        size = row.shape[0]
        torch.testing.assert_close(alone, normcore.layer_norm(row, size, weight=weight[:size], bias=bias[:size]))
        torch.testing.assert_close(rms, normcore.rms_norm(row, size, eps=1e-6))
    if dtype.is_floating_point:
        assert normcore.ragged_row_norm(x, lengths, weight=weight, bias=bias, out=x) is x
        assert x.equal(y)


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        ([3, 4], "lengths add up to 7; expected the 10 values of x"),
        ([11, -1], "lengths have -1; expected at least 0"),
        ([4.0, 6.0], "expected integers"),
        ([4, 6], "weight has 5 values; expected 6, the longest row's, or more"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: list[float], sentence: str) -> None:
    with pytest.raises(normcore.NormcoreError, match=sentence):
        normcore.ragged_row_norm(torch.randn(10), torch.tensor(lengths), weight=torch.ones(5))


def test_kernels_compile_ahead_of_their_use(tmp_path: object) -> None:
    command = [sys.executable, "-m", "normcore.kernels", "float31"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    assert "'float31' is no type of input; expected usual, or some of float16, " in done.stderr
