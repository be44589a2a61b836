# SPDX-License-Identifier: Apache-2.0
"""The grid of scales: always provable, as near as can be, and the same in numpy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.packing.format import LANE_LIMIT
from tvhil.quantization import grid
from tvhil.quantization.grid import gain_and_shift

SCALES = st.floats(-1e4, 1e4) | st.floats(-1e-3, 1e-3) | st.just(0.0)
BIASES = st.floats(-300, 300) | st.floats(-1e9, 1e9)


def _rows(scale, bias, nnz):
    return np.array([scale]), np.array([bias]), np.array([nnz])


@given(SCALES, BIASES, st.integers(0, 4095), st.sampled_from([127, 128]), st.sampled_from([64, 127, 32767]))
@settings(max_examples=300, deadline=None)
def test_every_channel_record_keeps_its_row_inside_a_20_bit_lane(scale, bias, nnz, xmax, limit):
    sign, gain, shift, b = (float(x[0]) for x in gain_and_shift(*_rows(scale, bias, nnz), xmax, limit))
    assert sign in (-1, 0, 1)
    assert 1 <= gain <= 127 and 0 <= shift <= 31 and gain == int(gain) and b == int(b)
    assert gain * xmax * nnz * abs(sign) + abs(b) < LANE_LIMIT


@given(st.floats(1e-4, 50), st.floats(-100, 100), st.integers(1, 1536))
@settings(max_examples=200, deadline=None)
def test_no_other_gain_and_shift_that_the_proof_allows_is_nearer(scale, bias, nnz):
    sign, gain, shift, _ = (float(x[0]) for x in gain_and_shift(*_rows(scale, bias, nnz), 127, 32767))
    best = math.inf
    for s in range(32):
        half = 2 ** (s - 1) if s else 0
        room = LANE_LIMIT - 1 - abs(math.floor(bias * 2.0**s + 0.5) + half)
        for g in range(1, 128):
            if g * 127 * nnz <= room:
                best = min(best, abs(g * 2.0**-s - scale))
    if sign == 0:
        assert best >= scale
    else:
        assert abs(gain * 2.0**-shift - scale) == best


@given(st.lists(st.tuples(SCALES, BIASES, st.integers(0, 4095)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_torch_and_numpy_find_the_same_grid(rows):
    scale, bias, nnz = (np.array(v, np.float64) for v in zip(*rows, strict=True))
    expected = gain_and_shift(scale, bias, nnz, 127, 127)
    got = gain_and_shift(torch.tensor(scale), torch.tensor(bias), torch.tensor(nnz), 127, 127)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@given(st.floats(0.001, 0.5), st.floats(-200, 200), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_the_grid_computes_the_rounded_affine_function_within_its_gain_error(scale, bias, nnz, seed):
    sign, gain, shift, b = (x[0] for x in gain_and_shift(*_rows(scale, bias, nnz), 127, 32767))
    acc = np.random.default_rng(seed).integers(-127 * nnz, 127 * nnz + 1, 50)
    y = np.floor((sign * gain * acc + b) / 2**shift)
    error = abs(sign * gain * 2.0**-shift - scale) * abs(acc)
    assert (abs(y - (scale * acc + bias)) <= error + 0.5 + 2.0 ** -(shift + 1) + 1e-9).all()


def test_a_negative_scale_flips_the_row():
    up, down = (gain_and_shift(*_rows(s, 3.0, 100), 127) for s in (0.37, -0.37))
    assert (up.sign[0], down.sign[0]) == (1, -1)
    assert (up.gain[0], up.shift[0], up.bias[0]) == (down.gain[0], down.shift[0], down.bias[0])


def test_a_scale_nearer_to_nothing_than_to_any_gain_empties_the_row_and_keeps_its_bias():
    sign, gain, shift, bias = gain_and_shift(*_rows(1e-9, 100.4, 200), 127, 32767)
    assert (sign[0], gain[0]) == (0, 1)
    assert int(bias[0]) >> int(shift[0]) == 100


@pytest.mark.parametrize("bias", [-1e12, -4e5, 4e5, 1e12])
def test_a_huge_bias_saturates_every_output_as_the_real_one_would(bias):
    sign, gain, shift, b = (x[0] for x in gain_and_shift(*_rows(0.01, bias, 100), 127, 127))
    acc = np.arange(-12700, 12701, 100)
    y = np.clip(np.floor((sign * gain * acc + b) / 2**shift), -127, 127)
    assert (y == np.sign(bias) * 127).all()


@given(st.floats(0, 50), st.floats(0, 20), st.floats(1e-5, 0.05), st.floats(1e-5, 0.2), st.integers(1, 4096))
@settings(max_examples=200, deadline=None)
def test_layernorm_constants_are_inside_the_contracts_ranges(gamma, beta, stream, out, channels):
    c, beta_unit, epsilon, shift = (
        int(x) for x in grid.layernorm_constants(*map(np.float64, (gamma, beta, stream, out)), channels, 1e-6)
    )
    assert 1 <= shift <= 24 and 1 <= c < 1 << 62 and 1 <= epsilon < 1 << 54
    if gamma / out < 2**13 and beta / out < 2**20:
        root = math.isqrt(channels - 1) + 1
        assert (root * c // channels >> 15) + abs(beta_unit) + (1 << shift) < 1 << 30


@given(st.floats(1e-9, 1), st.floats(1e-4, 1), st.floats(1e-7, 1), st.integers(1, 128))
@settings(max_examples=200, deadline=None)
def test_attention_constants_are_inside_the_contracts_ranges_and_as_fine_as_they_allow(score, v, out, head_dim):
    score = min(score, grid.max_score_scale(head_dim))
    shift, multiplier, out_multiplier, out_shift = (
        int(x) for x in grid.attention_constants(*map(np.float64, (score, v, out)), head_dim)
    )
    assert 0 <= shift <= 15 and 1 <= multiplier <= 32767
    assert 1 <= out_multiplier < 1 << 28 and 1 <= out_shift <= 24
    g = score / math.sqrt(head_dim) * math.log2(math.e) * 1024
    if g > 2**-10:
        assert multiplier / 2.0 ** (shift + 15) == pytest.approx(g, rel=2**-5 / 4)
    if 2**-8 < v / out < 2**8:
        assert out_multiplier / 2.0**out_shift == pytest.approx(16 * v / out, rel=2**-15)


def test_the_clamp_of_q_keeps_scores_in_20_bits():
    assert [grid.q_limit(h) for h in (16, 32, 48, 64, 96)] == [127, 127, 86, 64, 43]
    assert all(grid.q_limit(h) * 127 * h < LANE_LIMIT for h in range(1, 129))


@given(st.floats(1e-3, 0.5), st.floats(1e-3, 0.5), st.sampled_from([127, 32767]))
@settings(max_examples=50, deadline=None)
def test_the_gelu_table_is_the_exact_gelu_rounded(in_scale, out_scale, limit):
    table = grid.gelu_table(np.float64(in_scale), np.float64(out_scale), limit)
    twin = grid.gelu_table(torch.tensor(in_scale).double(), torch.tensor(out_scale).double(), limit)
    assert table[0] == 0 and len(table) == 256
    for y in range(-127, 128):
        x = y * float(np.float64(in_scale))
        exact = x * 0.5 * math.erfc(-x / math.sqrt(2)) / out_scale
        nearest = min(max(exact, -limit), limit)
        assert abs(table[y + 128] - nearest) <= 0.5 + 1e-9
    assert np.abs(table).max() <= limit
    assert np.abs(table - twin.numpy()).max() <= (1e-9 if limit == 127 else 1)


def test_the_position_multiplier_covers_the_largest_value_until_it_ends():
    assert [float(grid.position_multiplier(np.float64(x), np.float64(0.001))) for x in (0.0, 0.127, 0.128, 99.0)] == [
        1, 1, 2, 255,
    ]  # fmt: skip
