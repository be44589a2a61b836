# SPDX-License-Identifier: Apache-2.0
"""The numpy operators against the contract, written a second time with Python's own integers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import small_file

from tvhil.errors import InputError
from tvhil.packing import read_model
from tvhil.prediction import Predictor
from tvhil.prediction import operators as ops

seeds = st.integers(0, 2**32 - 1)


def clamp(v, limit):
    return max(-limit, min(limit, v))


def test_exp2_is_within_two_units_of_the_real_exponential_everywhere_and_never_rises():
    t = np.arange(32768)
    e = ops.exp2_q14(t)
    assert np.abs(e - 2.0**14 * 2.0 ** (-t / 1024)).max() < 2
    assert (np.diff(e) <= 0).all()
    assert e[0] == 16384


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20))
def test_isqrt_is_exact(values):
    assert ops.isqrt(np.array(values)).tolist() == [math.isqrt(v) for v in values]


@pytest.mark.parametrize("v", [0, 1, 3, 4, (1 << 27) ** 2 - 1, (1 << 27) ** 2, (1 << 31) ** 2 - 1])
def test_isqrt_is_exact_around_squares(v):
    assert ops.isqrt(np.array([v]))[0] == math.isqrt(v)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), seeds)
def test_a_linear_operator_equals_integer_arithmetic(k, n, seed):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (n, k)).astype(np.int8)
    nnz = np.count_nonzero(trits, axis=1)
    gain = rng.integers(1, np.minimum(127, (2**19 - 1) // np.maximum(128 * nnz, 1)) + 1)
    room = 2**19 - 1 - gain * 128 * nnz
    bias, shift = rng.integers(-room, room + 1), rng.integers(0, 20, n)
    x = rng.integers(-128, 128, (3, k))
    m = rng.integers(1, 32768, 3)
    kernel = ops.LinearKernel(trits, gain, shift, bias)
    static, token = kernel.static(x, 127), kernel.per_token(x, m, 32767)
    for t in range(3):
        for c in range(n):
            acc = sum(int(a) * int(b) for a, b in zip(trits[c], x[t], strict=True))
            g, s, b = int(gain[c]), int(shift[c]), int(bias[c])
            assert static[t, c] == clamp((g * acc + b) >> s, 127)
            assert token[t, c] == clamp((((((g * acc) >> 4) * int(m[t])) >> 15) + b) >> s, 32767)


@settings(deadline=None)
@given(st.integers(1, 100), st.sampled_from([1, 30, 3000, 32767]), seeds)
def test_layernorm_equals_integer_arithmetic(n, spread, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-spread, spread + 1, n)
    gamma, beta = rng.integers(-1, 2, n), rng.integers(-1, 2, n)
    c, unit, eps, shift = (
        int(rng.integers(1, 40 << 30)) * n,
        int(rng.integers(-(2**20), 2**20)),
        int(rng.integers(1, 1000)),
        15,
    )
    got = ops.layernorm(x[None], gamma, beta, c, unit, eps, shift, 127)[0]
    s1, s2 = int(x.sum()), sum(int(v) ** 2 for v in x)
    a = min(c // math.isqrt(n * s2 - s1 * s1 + eps), 2**30 - 1)
    b = s1 * a // n
    for i in range(n):
        u = (int(x[i]) * a - b) >> 15
        assert got[i] == clamp((int(gamma[i]) * u + int(beta[i]) * unit + (1 << (shift - 1))) >> shift, 127)


@settings(deadline=None)
@given(st.integers(2, 400), st.floats(0.5, 3.9), seeds)
def test_layernorm_stays_within_its_proven_bound(n, log_sigma, seed):
    """Against float64, before the clamp: half a unit, the two floors, and the relative errors of d and A."""
    rng = np.random.default_rng(seed)
    x = np.clip(np.round(rng.normal(rng.normal(0, 500), 10**log_sigma, n)), -32767, 32767).astype(np.int64)
    scale, shift, eps = 32.0, 15, 1
    c = round(scale * n * 2.0 ** (15 + shift))
    got = ops.layernorm(x[None], np.ones(n, int), np.zeros(n, int), c, 0, eps, shift, 1 << 40)[0]
    v = n * (x.astype(object) ** 2).sum() - x.sum() ** 2 + eps
    d = math.isqrt(int(v))
    a = min(c // d, ops.A_MAX)
    real = (x - x.mean()) / (np.sqrt(float(v)) / n) * scale
    saturated = c // d > ops.A_MAX
    relative = 1 / d + 1 / a
    if not saturated:
        assert (np.abs(got - real) <= 0.5 + 2.0 ** (1 - shift) + np.abs(real) * relative + 1e-9 * np.abs(real)).all()


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 6), st.integers(1, 32767), seeds)
def test_probabilities_fit_their_lanes_and_follow_the_softmax(tokens, score_shift, multiplier, seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(0, 10 ** rng.uniform(0, 5.5), (4, tokens)))
    p = ops.softmax_probabilities(scores, score_shift, multiplier)
    assert p.min() >= 0 and p.max() <= 127
    assert (p.sum(-1) <= ops.SUM_LIMIT).all() and (p.sum(-1) >= 1).all()
    a = np.clip(scores.astype(int) >> score_shift, -32767, 32767)
    octaves = ((np.minimum(a.max(-1, keepdims=True) - a, 32767) * multiplier) >> 15) / 1024
    real = 2.0**-octaves / (2.0**-octaves).sum(-1, keepdims=True)
    z = p.sum(-1, keepdims=True)
    # p is real * z within a rounding of half a unit, an exponential error of 2 in 16384, and floors of R and delta.
    assert (np.abs(p / z - real) <= 0.5 * (1 + tokens * real) / z + real * 0.03 + 0.004).all()


def test_a_uniform_row_of_the_longest_sequence_still_sums_to_something():
    p = ops.softmax_probabilities(np.zeros((1, 2048)), 0, 1)
    assert p.min() >= 1 and p.sum() <= ops.SUM_LIMIT


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 10), seeds)
def test_attention_equals_integer_arithmetic(tokens, heads, head_dim, seed):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-127, 128, (1, tokens, heads * head_dim)).astype(np.int8) for _ in range(3))
    shift, mult, out_mult, out_shift = 3, int(rng.integers(1, 32768)), int(rng.integers(1, 1 << 22)), 16
    got = ops.attention(q, k, v, heads, shift, mult, out_mult, out_shift, 127)[0]
    for h in range(heads):
        part = slice(h * head_dim, (h + 1) * head_dim)
        qh, kh, vh = (x[0, :, part].astype(int).tolist() for x in (q, k, v))
        for i in range(tokens):
            a = [clamp(sum(x * y for x, y in zip(qh[i], kj, strict=True)) >> shift, 32767) for kj in kh]
            e = [int(ops.EXP2_Q14[(min(max(a) - aj, 32767) * mult) >> 15]) for aj in a]
            r = min(4079, ((4128 - (tokens + 1) // 2) << 19) // sum(e))
            p = [((ej + (1 << 18) // r) * r) >> 19 for ej in e]
            z = sum(p)
            w = min((out_mult + z // 2) // z, 32767)
            for c in range(head_dim):
                acc = sum(pj * vj[c] for pj, vj in zip(p, vh, strict=True))
                assert got[i, h * head_dim + c] == clamp(((acc >> 4) * w + (1 << 15)) >> 16, 127)


@given(st.lists(st.integers(-32767, 32767), min_size=1, max_size=50))
def test_per_token_quantization_uses_the_whole_int8_range_and_is_exact_at_the_maximum(row):
    x, m = ops.quantize_rows(np.array([row]))
    largest = max(map(abs, row))
    assert m[0] == max(1, largest)
    assert np.abs(x.astype(int)).max() == (127 if largest else 0)
    assert (
        np.abs(x[0] - np.array(row) * 127 / max(largest, 1)).max() <= 0.5 + 127 / 2**20 * max(largest, 1) / 127 + 0.04
    )


@given(st.lists(st.integers(-32767, 32767), min_size=1, max_size=50))
def test_mean_pooling_rounds_half_up(column):
    got = ops.mean_pool(np.array(column, np.int16)[:, None])[0, 0]
    assert got == math.floor((sum(column) + len(column) // 2) / len(column))


def test_a_batch_gives_the_logits_of_its_images_one_by_one():
    model = read_model(small_file(1, image_size=(12, 8), channels=3, prefix_tokens=2))
    images = np.random.default_rng(0).integers(0, 256, (5, *model.info.input_shape)).astype(np.uint8)
    predictor = Predictor(model)
    logits = predictor.run(images, batch=2)
    assert logits.dtype == np.int16
    for image, expected in zip(images, logits, strict=True):
        assert (predictor.run(image[None])[0] == expected).all()
        assert (predictor.trace(image)[-1].values[0] == expected).all()


def test_a_trace_has_every_operator_and_can_stop_early():
    model = read_model(small_file(1))
    image = np.zeros(model.info.input_shape, np.uint8)
    trace = Predictor(model).trace(image)
    assert [o.operator for o in trace] == list(range(len(model.operators)))
    early = Predictor(model).trace(image, last=4)
    assert [o.crc for o in early] == [o.crc for o in trace[:5]]


def test_an_image_of_another_size_is_refused_by_name():
    model = read_model(small_file(1))
    with pytest.raises(InputError, match="takes uint8 images of 8x8x1, not uint8 of 9x8x1"):
        Predictor(model).run(np.zeros((1, 9, 8, 1), np.uint8))
