# SPDX-License-Identifier: Apache-2.0
"""Each portable C kernel against the numpy operator, bit for bit, over drawn shapes and values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.packing.format import LANE_LIMIT
from tvhil.packing.trits import Codec, encode_matrix, matrix_bytes, tile_bytes
from tvhil.prediction import operators as ops
from tvhil.runtime import (
    CAttentionArgs,
    CLayernormArgs,
    CLinearArgs,
    CMeanPoolArgs,
    CPatchEmbedArgs,
    CTernaryMatrix,
    default_runtime,
)

SEEDS = st.integers(0, 2**32 - 1)
CODECS = st.sampled_from(list(Codec))
KINDS = {"i8": 0, "table": 1, "table_per_token": 2, "i16_set": 3, "i16_add": 4}
drawn = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def runtime():
    return default_runtime()


class Matrix:
    """A drawn ternary matrix; some rows fill their lanes to the last unit."""

    def __init__(self, rng, n, k, codec, xmax):
        self.trits = rng.integers(-1, 2, (n, k)).astype(np.int8)
        self.trits[rng.random(n) < 0.2] = 1
        nnz = np.count_nonzero(self.trits, axis=1)
        self.gain = rng.integers(1, np.minimum(127, (LANE_LIMIT - 1) // np.maximum(nnz * xmax, 1)) + 1)
        room = LANE_LIMIT - 1 - self.gain * nnz * xmax
        self.bias = rng.integers(-room, room + 1)
        self.shift = rng.integers(0, 16, n)
        self.data = np.frombuffer(encode_matrix(self.trits, codec), np.uint8).copy()
        self.channels = ((self.bias << 12 | self.gain << 5 | self.shift) & 0xFFFFFFFF).astype(np.uint32)
        self.c = CTernaryMatrix(self.data.ctypes.data, self.channels.ctypes.data, k, n, codec)
        self.numpy = ops.LinearKernel(self.trits, self.gain, self.shift, self.bias)


@drawn
@given(st.integers(1, 100), st.integers(1, 200), st.sampled_from([Codec.BASE3, Codec.TWO_BIT]))
def test_sizes_of_packed_matrices_agree(n, k, codec):
    lib = default_runtime().lib
    assert lib.tvit_matrix_bytes(codec, n, k) == matrix_bytes(codec, n, k)
    assert lib.tvit_tile_bytes(codec, min(n, 16), k) == tile_bytes(codec, min(n, 16), k)


@drawn
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(1, 40),
    CODECS,
    st.sampled_from(list(KINDS)),
    st.booleans(),
    st.integers(1, 127),
    st.sampled_from([0, 0, 5]),
    SEEDS,
)
def test_linear_equals_numpy(rows, k, n, codec, kind, per_token, limit, wider, seed):
    rng = np.random.default_rng(seed)
    matrix = Matrix(rng, n, k, codec, 127)
    x = rng.choice(np.array([-127, 127], np.int8), (rows, k)) if seed % 4 == 0 else rng.integers(-127, 128, (rows, k))
    x = x.astype(np.int8)
    multipliers = rng.integers(1, 32768, rows).astype(np.uint16)
    table = rng.integers(-32767, 32768, 256).astype(np.int16)
    if kind == "table":
        table = rng.integers(-127, 128, 256).astype(np.int8)
    wide = kind.startswith("i16")
    if kind == "table_per_token":
        wider = 0  # rows are quantized as a whole
    columns = slice(wider, wider + n)
    old = rng.integers(-127, 128, (rows, n + 2 * wider)).astype(np.int16 if wide else np.int8)
    output = old.copy()
    out_multipliers = np.zeros(rows, np.uint16)
    default_runtime().call_kernel(
        "linear",
        CLinearArgs(
            matrix.c,
            x.ctypes.data,
            multipliers.ctypes.data if per_token else None,
            rows,
            KINDS[kind],
            limit,
            table.ctypes.data,
            output[:, columns].ctypes.data,
            out_multipliers.ctypes.data,
            output.shape[1],
        ),
    )
    limit = 32767 if wide else limit
    y = matrix.numpy.per_token(x, multipliers, limit) if per_token else matrix.numpy.static(x, limit)
    y = y.astype(np.int32)
    if kind == "i16_add":
        y = ops.clamp(old[:, columns] + y, 32767)
    if kind.startswith("table"):
        y = table[y + 128]
    if kind == "table_per_token":
        y, expected = ops.quantize_rows(y)
        assert (out_multipliers == expected).all()
    assert (output[:, columns] == y).all()
    output[:, columns] = old[:, columns]
    assert (output == old).all()


@drawn
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(0, 2),
    CODECS,
    SEEDS,
)
def test_patch_embedding_equals_numpy(patch, lines, columns, channels, n, prefix_tokens, codec, seed):
    rng = np.random.default_rng(seed)
    k = patch * patch * channels
    matrix = Matrix(rng, n, k, codec, 128)
    image = rng.integers(0, 256, (lines * patch, columns * patch, channels)).astype(np.uint8)
    position = rng.integers(-127, 128, (lines * columns, n)).astype(np.int8)
    prefix = rng.integers(-32767, 32768, (prefix_tokens, n)).astype(np.int16)
    multiplier = int(rng.integers(1, 256))
    output = np.zeros((prefix_tokens + lines * columns, n), np.int16)
    default_runtime().call_kernel(
        "patch_embed",
        CPatchEmbedArgs(
            matrix.c,
            image.ctypes.data,
            *image.shape,
            patch,
            position.ctypes.data,
            multiplier,
            prefix.ctypes.data,
            prefix_tokens,
            output.ctypes.data,
        ),
    )
    y = matrix.numpy.static(ops.image_to_patches(image[None], patch)[0], 32767).astype(np.int32)
    assert (output[:prefix_tokens] == prefix).all()
    assert (output[prefix_tokens:] == ops.clamp(y + position.astype(np.int32) * multiplier, 32767)).all()


@drawn
@given(
    st.integers(1, 4),
    st.integers(1, 400),
    st.integers(0, 32767),
    st.integers(1, 24),
    st.booleans(),
    st.integers(0, 45),
    SEEDS,
)
def test_layernorm_equals_numpy(rows, n, spread, shift, per_token, smaller, seed):
    rng = np.random.default_rng(seed)
    x = (rng.integers(-spread, spread + 1, (rows, n)) // 2 + int(rng.integers(-16000, 16000))).astype(np.int16)
    gamma, beta = rng.integers(-1, 2, (2, n))
    # Up to the largest constants that a reader accepts.
    room = (1 << 30) - (1 << shift)
    c = max(1, ((room // 2) * n // int(np.ceil(np.sqrt(n))) << 15) >> smaller)
    beta_unit = int(rng.integers(-room // 2 + 2, room // 2 - 2)) >> int(rng.integers(0, 30))
    epsilon = int(rng.integers(1, 1 << int(rng.integers(1, 54))))
    codes = np.pad((gamma + 1) * 3 + beta + 1, (0, n % 2)).astype(np.uint8).reshape(-1, 2)
    packed = np.ascontiguousarray(codes[:, 0] | codes[:, 1] << 4)
    output, multipliers = np.zeros((rows, n), np.int8), np.zeros(rows, np.uint16)
    default_runtime().call_kernel(
        "layernorm",
        CLayernormArgs(
            x.ctypes.data,
            packed.ctypes.data,
            rows,
            n,
            c,
            epsilon,
            beta_unit,
            shift,
            output.ctypes.data,
            per_token,
            multipliers.ctypes.data,
        ),
    )
    y = ops.layernorm(x, gamma, beta, c, beta_unit, epsilon, shift, 32767 if per_token else 127)
    if per_token:
        y, expected = ops.quantize_rows(y)
        assert (multipliers == expected).all()
    assert (output == y).all()


@drawn
@given(
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(1, 34),
    st.integers(0, 15),
    st.integers(1, 32767),
    st.integers(1, (1 << 28) - 1),
    st.integers(1, 24),
    st.booleans(),
    st.sampled_from([1, 20, 127]),
    st.booleans(),
    SEEDS,
)
def test_attention_equals_numpy(
    tokens, heads, head_dim, score_shift, exp_multiplier, out_multiplier, out_shift, per_token, limit, in_place, seed
):
    """In place, all four are columns of one tensor, and the output replaces the queries."""
    rng = np.random.default_rng(seed)
    width = heads * head_dim
    in_place = in_place and not per_token
    tensor = rng.integers(-limit, limit + 1, (tokens, 4 * width)).astype(np.int8)
    q, k, v, output = (tensor[:, i * width : (i + 1) * width] for i in range(4))
    old, multipliers = tensor.copy(), np.zeros(tokens, np.uint16)
    if not in_place:
        q, k, v, output = (np.ascontiguousarray(part) for part in (q, k, v, output))
    result, stride = (q, 4 * width) if in_place else (output, width)
    expected = ops.attention(
        q[None].copy(), k[None].copy(), v[None].copy(), heads, score_shift, exp_multiplier, out_multiplier, out_shift,
        32767 if per_token else 127,
    )[0]  # fmt: skip
    constants = (score_shift, exp_multiplier, out_multiplier, out_shift)
    default_runtime().call_kernel(
        "attention",
        CAttentionArgs(
            q.ctypes.data,
            k.ctypes.data,
            v.ctypes.data,
            *[stride] * 4,
            tokens,
            heads,
            head_dim,
            *constants,
            result.ctypes.data,
            per_token,
            multipliers.ctypes.data,
        ),
    )
    if per_token:
        expected, scales = ops.quantize_rows(expected)
        assert (multipliers == scales).all()
    assert (result == expected).all()
    if in_place:  # nothing but the output and the keys, which a kernel may use up
        assert (tensor[:, 2 * width :] == old[:, 2 * width :]).all()


def test_attention_over_the_most_tokens_equals_numpy():
    rng = np.random.default_rng(0)
    tokens, heads, head_dim = 2048, 1, 4
    q, k, v = rng.integers(-127, 128, (3, tokens, heads * head_dim)).astype(np.int8)
    output = np.zeros((tokens, head_dim), np.int8)
    constants = (2, 3000, 9 << 16, 16)
    args = CAttentionArgs(
        q.ctypes.data, k.ctypes.data, v.ctypes.data, *[head_dim] * 4, tokens, heads, head_dim, *constants,
        output.ctypes.data, 0, None,
    )  # fmt: skip
    default_runtime().call_kernel("attention", args)
    assert (output == ops.attention(q[None], k[None], v[None], heads, *constants, 127)[0]).all()


def test_exp2_equals_numpy_for_every_argument():
    lib = default_runtime().lib
    assert [lib.tvit_exp2_q14_portable(t) for t in range(32768)] == ops.EXP2_Q14.tolist()


@drawn
@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([0, 3, 32767]), SEEDS)
def test_mean_pooling_equals_numpy(rows, n, spread, seed):
    x = np.random.default_rng(seed).integers(-spread, spread + 1, (rows, n)).astype(np.int16)
    output = np.zeros(n, np.int16)
    default_runtime().call_kernel("mean_pool", CMeanPoolArgs(x.ctypes.data, rows, n, output.ctypes.data))
    assert (output == ops.mean_pool(x)[0]).all()


@drawn
@given(st.integers(1, 300), st.integers(0, 32767), SEEDS)
def test_token_quantization_equals_numpy(n, spread, seed):
    g = np.random.default_rng(seed).integers(-spread, spread + 1, n).astype(np.int16)
    output = np.zeros(n, np.int8)
    multiplier = default_runtime().lib.tvit_token_quantize_portable(output.ctypes.data, g.ctypes.data, n)
    x, m = ops.quantize_rows(g[None])
    assert multiplier == m[0]
    assert (output == x[0]).all()


def test_the_runner_of_kernels_notices_a_write_behind_the_scratch(runtime, monkeypatch):
    matrix = Matrix(np.random.default_rng(0), 8, 16, Codec.BASE3, 127)
    x, output = np.zeros((1, 16), np.int8), np.zeros((1, 8), np.int8)
    args = CLinearArgs(matrix.c, x.ctypes.data, None, 1, 0, 127, None, output.ctypes.data, None)
    size = runtime.lib.tvit_linear_buffer_size_portable(args)
    monkeypatch.setattr(runtime.lib, "tvit_linear_buffer_size_portable", lambda _: size - 16)
    with pytest.raises(AssertionError, match="behind"):
        runtime.call_kernel("linear", args)
