# SPDX-License-Identifier: Apache-2.0
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import drawn_options, reseal, sections, small_file, trivial_planner

import tvhil.packing.format as fmt
from tvhil.errors import InputError
from tvhil.packing import ModelError, Status, pack_vit, read_model
from tvhil.packing.format import HEADER, OPERATOR, ScaleMode
from tvhil.packing.random_vit import random_vit
from tvhil.packing.trits import Codec, decode_matrix, encode_matrix, matrix_bytes

FORMAT_H = Path(__file__).parents[2] / "device/include/tvit/format.h"
RUNTIME_H = FORMAT_H.with_name("runtime.h")


@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from(list(Codec)), st.integers(0, 2**32 - 1))
def test_a_matrix_of_trits_survives_every_codec(n, k, codec, seed):
    trits = np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.int8)
    data = encode_matrix(trits, codec)
    read = decode_matrix(data + b"more", n, k, codec)
    assert read.bytes == len(data)
    assert (read.trits == trits).all()
    if codec is not Codec.GAPS:
        assert len(data) == matrix_bytes(codec, n, k)
        assert (read.terms == np.count_nonzero(trits, axis=1)).all()


def test_base_3_stores_five_trits_in_a_byte_and_2bit_four():
    row = np.array([[1, -1, 0, 1, 1]], np.int8)
    assert encode_matrix(row, Codec.BASE3)[0] == 2 + 0 * 3 + 1 * 9 + 2 * 27 + 2 * 81
    assert encode_matrix(row, Codec.TWO_BIT)[:2] == bytes([0b01_00_11_01, 0b01])


def run_gaps(data, n, k):
    """What a kernel makes of a matrix in codec gaps: its trits, and the most products each accumulator held at once."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4")
    trits, most = np.zeros((n, k), int), np.zeros(n, int)
    for tile in range(-(-n // 16)):
        channels = min(16, n - 16 * tile)
        at = int(words[tile]) + 4 * channels
        for channel in range(channels):
            header = int(words[int(words[tile]) // 4 + channel])
            count, row = header & 4095, trits[16 * tile + channel]
            codes = [data[at + i // 2] >> 4 * (i % 2) & 15 for i in range(count)]
            at += (count + 1) // 2
            gaps = [header >> 12 & 31, header >> 17 & 31, header >> 22 & 31, *(code & 7 for code in codes)]
            position = 0
            for gap, code in zip(gaps, codes, strict=False):
                position += gap
                row[position] += -1 if code & 8 else 1
                most[16 * tile + channel] = max(most[16 * tile + channel], np.abs(row).sum())
    return trits, most


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([0, 0.003, 0.02, 0.1, 0.5, 1]),
    st.integers(0, 2**32 - 1),
)
def test_gaps_are_instructions_that_never_hold_more_products_than_they_say(n, k, density, seed):
    rng = np.random.default_rng(seed)
    trits = (rng.choice([-1, 1], (n, k)) * (rng.random((n, k)) < density)).astype(np.int8)
    data = encode_matrix(trits, Codec.GAPS)
    run, most = run_gaps(data, n, k)
    read = decode_matrix(data, n, k, Codec.GAPS)
    assert (run == trits).all() and (read.trits == trits).all()
    assert (most == read.terms).all()
    assert (most == np.maximum(np.count_nonzero(trits, axis=1), 1)).all()


def test_gaps_take_half_a_byte_a_trit_that_is_not_zero():
    rng = np.random.default_rng(0)
    trits = (rng.choice([-1, 1], (384, 1536)) * (rng.random((384, 1536)) < 0.576)).astype(np.int8)
    nonzero = np.count_nonzero(trits)
    assert nonzero / 2 < len(encode_matrix(trits, Codec.GAPS)) < 1.02 * nonzero / 2


def test_gaps_refuse_more_inputs_than_a_header_can_count():
    with pytest.raises(ValueError, match="at most 4095"):
        encode_matrix(np.zeros((1, 4096), np.int8), Codec.GAPS)
    vit = random_vit(0, patch_size=64, image_size=(64, 64))
    with pytest.raises(InputError, match=r"patch_embed\.proj: 4096 inputs.*another codec"):
        pack_vit(vit, Codec.GAPS, trivial_planner)


GAPS_MATRIX = encode_matrix(np.tile(np.array([1, 0, -1, 1], np.int8), (2, 5)), Codec.GAPS)  # [2][20], 15 instructions


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, 8, "header|tile"),  # where the tile is
        (4, 2, "header"),  # instructions
        (7, 0x80, "header"),  # reserved bits
        (5, 31 << 4 & 0xFF, "behind the last"),  # the first position
        (12, 0x0F, "outside -1|behind the last"),  # an instruction
        (19, 0x10, "padding"),  # the nibble behind an odd row
        (18, 0x10, "behind the last"),  # a gap that nothing follows
        (28, 1, "padding"),  # of the tile, or what is read ahead
        (59, 1, "padding"),
    ],
)
def test_malformed_gaps_are_refused(at, value, reason):
    data = bytearray(GAPS_MATRIX)
    data[at] = value if at in (0, 4) else data[at] | value
    with pytest.raises(ValueError, match=reason):
        decode_matrix(bytes(data), 2, 20, Codec.GAPS)


@given(st.integers(0, len(GAPS_MATRIX) - 1))
def test_truncated_gaps_are_refused(size):
    with pytest.raises(ValueError, match=r"bytes of|outside the matrix"):
        decode_matrix(GAPS_MATRIX[:size], 2, 20, Codec.GAPS)


@pytest.mark.parametrize("trit", [0, 1])
def test_a_row_that_bridges_with_a_vector_that_is_not_its_own_must_have_room_for_it(trit):
    """A row of one trit takes it away and adds it again; a row of none adds a vector first."""
    vit = random_vit(0)
    linear = vit.blocks[0].proj
    linear.trits[0] = 0
    linear.trits[0, 3] = trit
    linear.gain[0], linear.bias[0] = 127, 2**19 - 1 - 127 * 127 * trit
    pack_vit(vit, Codec.BASE3, trivial_planner)
    if trit:
        pack_vit(vit, Codec.GAPS, trivial_planner)
    else:
        with pytest.raises(InputError, match=r"blocks\.0\.attn\.proj, channels without weights"):
            pack_vit(vit, Codec.GAPS, trivial_planner)


@pytest.mark.parametrize(("codec", "byte"), [(Codec.BASE3, 243), (Codec.TWO_BIT, 0b10)])
def test_a_malformed_code_is_refused(codec, byte):
    data = bytearray(encode_matrix(np.zeros((16, 20), np.int8), codec))
    data[0] = byte
    with pytest.raises(ValueError, match=r"base-3|2-bit"):
        decode_matrix(bytes(data), 16, 20, codec)


@settings(max_examples=25, deadline=None)
@given(drawn_options(), st.sampled_from(list(Codec)), st.integers(0, 1000))
def test_what_is_packed_is_what_is_read(options, codec, seed):
    vit = random_vit(seed, **options)
    model = read_model(pack_vit(vit, codec, trivial_planner))
    assert model.info.tokens == vit.tokens
    assert model.info.scale_mode == vit.scale_mode
    by_name = {op.name: op for op in model.operators}
    pairs = [("patch_embed.proj", vit.patch_embed), ("head", vit.heads_out[0])]
    pairs += [(f"blocks.{i}.mlp.fc2", block.fc2) for i, block in enumerate(vit.blocks)]
    for name, linear in pairs:
        read = model.weights(by_name[name])
        assert (read.trits == linear.trits).all()
        assert (read.gain == linear.gain).all() and (read.shift == linear.shift).all()
        assert (read.bias == linear.bias).all()
    gamma, beta = model.gamma_beta(by_name["fc_norm" if vit.mean_pool else "norm"])
    assert (gamma == vit.norm.gamma).all() and (beta == vit.norm.beta).all()


def test_the_codecs_hold_the_same_model_in_files_of_different_sizes():
    vit = random_vit(3, embed_dim=64, mlp_dim=256)
    base3, two_bit, gaps = (pack_vit(vit, codec, trivial_planner) for codec in (Codec.BASE3, Codec.TWO_BIT, Codec.GAPS))
    assert len(base3) < len(two_bit) < len(gaps)
    models = [read_model(file) for file in (base3, two_bit, gaps)]
    for operators in zip(*(model.operators for model in models), strict=True):
        if "trits_at" in operators[0].params:
            first, *others = (model.weights(op).trits for model, op in zip(models, operators, strict=True))
            assert all((first == other).all() for other in others)


DEIT = {"image_size": (224, 224), "patch_size": 16, "channels": 3, "depth": 12}
TINY = DEIT | {"embed_dim": 192, "heads": 3, "mlp_dim": 768, "classes": 10}
SMALL = DEIT | {"embed_dim": 384, "heads": 6, "mlp_dim": 1536, "classes": 1000}


@pytest.mark.parametrize(
    ("options", "codec", "most"),
    [(TINY, Codec.BASE3, 1_250_000), (SMALL, Codec.BASE3, 4_750_000), (SMALL, Codec.TWO_BIT, 5_750_000)],
)
def test_a_deit_packs_smaller_than_its_target(options, codec, most):
    assert len(small_file(0, codec, **options)) <= most


def test_the_same_model_packs_to_the_same_bytes():
    assert small_file(5) == small_file(5)
    assert small_file(5) != small_file(6)


def test_a_channel_that_could_leave_its_accumulator_is_refused_by_name():
    vit = random_vit(0)
    vit.blocks[1].fc1.gain[:] = 127
    vit.blocks[1].fc1.trits[:] = 1
    vit.blocks[1].fc1.bias[:] = 2**19 - 1
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1: channel"):
        pack_vit(vit, planner=trivial_planner)


# -- refusals --------------------------------------------------------------------------------------------


def refused(file: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_model(file)
    assert "\n" not in str(caught.value)
    return caught.value


@given(st.integers(0, len(small_file()) - 1))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(size):
    assert refused(small_file()[:size]).status in (Status.BAD_SIZE, Status.BAD_MAGIC, Status.BAD_CRC)


@given(st.integers(0, 8 * len(small_file()) - 1))
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_is_refused(bit):
    file = bytearray(small_file())
    file[bit // 8] ^= 1 << bit % 8
    refused(bytes(file))


def test_a_bit_flip_in_the_weights_names_the_section():
    file = bytearray(small_file())
    file[sections(bytes(file))["DATA"][0] + 5] ^= 4
    assert refused(bytes(file)).section == "DATA"


def test_another_version_is_named():
    file = bytearray(small_file())
    struct.pack_into("<H", file, 4, 1)
    assert "version 1" in refused(reseal(file)).reason


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_hostile_file_with_valid_checksums_is_refused_or_well_formed(data):
    """Overwrite a random field of the tables by an extreme value; the reader may object or accept, never fail."""
    file = bytearray(small_file())
    places = sections(bytes(file))
    tag = data.draw(st.sampled_from(["MODL", "TENS", "OPER", "PLAN", "table"]))
    at, size = (HEADER.itemsize, 7 * 32) if tag == "table" else places[tag]
    offset = at + data.draw(st.integers(0, size // 4 - 1)) * 4
    value = data.draw(st.sampled_from([0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0xFFFF, 0x10000, 16, 0x00010001]))
    struct.pack_into("<I", file, offset, value)
    try:
        resealed = reseal(file)
    except (IndexError, ValueError):
        return
    try:
        read_model(resealed)
    except ModelError as error:
        assert error.status is not Status.OK and "\n" not in str(error)


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("kind", 77, Status.BAD_OPERATOR),
        ("flags", 0x80, Status.BAD_OPERATOR),
        ("output", 999, Status.BAD_OPERATOR),
        ("name", 1 << 20, Status.BAD_NAME),
    ],
)
def test_an_operator_with_a_bad_field_is_refused_with_its_index(field, value, status):
    file = bytearray(small_file())
    at, size = sections(bytes(file))["OPER"]
    np.frombuffer(file, OPERATOR, size // OPERATOR.itemsize, at)[3][field] = value
    error = refused(reseal(file))
    assert (error.status, error.section, error.index) == (status, "OPER", 3)


def test_an_overlapping_plan_is_refused():
    file = bytearray(small_file())
    at, _ = sections(bytes(file))["PLAN"]
    struct.pack_into("<I", file, at + 16 + 4 * 2, struct.unpack_from("<I", file, at + 16 + 4)[0])
    assert refused(reseal(file)).status is Status.BAD_PLAN


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="cannot read the model"):
        read_model(tmp_path / "absent.tvit")


# -- the C header says the same ----------------------------------------------------------------------------


def c_enum(path: Path, prefix: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(rf"\b{prefix}(\w+) = (\d+)", path.read_text())}


def test_the_enumerations_of_the_header_and_of_python_are_equal():
    status = c_enum(RUNTIME_H, "TVIT_")
    assert status == {s.name: s.value for s in Status}
    assert c_enum(FORMAT_H, "TVIT_OP_") == {k.name: k.value for k in fmt.OpKind}
    assert c_enum(FORMAT_H, "TVIT_CODEC_") == {"2BIT": Codec.TWO_BIT, "BASE3": Codec.BASE3, "GAPS": Codec.GAPS}
    assert c_enum(FORMAT_H, "TVIT_SCALE_") == {s.name: s.value for s in ScaleMode}


def test_the_records_of_the_header_and_of_python_have_the_same_fields_in_the_same_places():
    text = re.sub(r"//.*", "", FORMAT_H.read_text())
    sizes = {"uint8_t": 1, "char": 1, "uint16_t": 2, "uint32_t": 4, "int32_t": 4, "uint64_t": 8, "float": 4}
    for struct_name, dtype in {
        "tvit_header": fmt.HEADER,
        "tvit_section": fmt.SECTION,
        "tvit_model_record": fmt.MODEL,
        "tvit_tensor": fmt.TENSOR,
        "tvit_plan_record": fmt.PLAN,
        "tvit_plan_scratch": fmt.PLAN_SCRATCH,
    }.items():
        body = re.search(r"typedef struct \{([^{}]*)\} " + struct_name + ";", text).group(1)
        at, fields = 0, {}
        for kind, names in re.findall(r"(\w+) ([^;]+);", body):
            for name in names.split(","):
                name, count = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", name).groups()
                fields[name] = at
                at += sizes[kind] * int(count or 1)
        assert at == dtype.itemsize
        assert fields == {name: dtype.fields[name][1] for name in dtype.names}
    for kind, names in fmt.PARAMS.items():
        body = re.search(r"typedef struct \{([^{}]*)\} tvit_" + kind.name.lower() + "_params;", text).group(1)
        in_c = [n.strip() for _, group in re.findall(r"(\w+) ([^;]+);", body) for n in group.split(",")]
        assert tuple(in_c) == names


def test_the_constants_of_the_header_and_of_python_are_equal():
    defines = dict(re.findall(r"#define TVIT_(\w+) (0x[0-9a-f]+|\d+)u\b", FORMAT_H.read_text()))
    for c_name, value in {
        "MAGIC": fmt.MAGIC,
        "VERSION": fmt.VERSION,
        "ALIGN": fmt.ALIGN,
        "MAX_SECTIONS": fmt.MAX_SECTIONS,
        "MAX_TENSORS": fmt.MAX_TENSORS,
        "MAX_OPERATORS": fmt.MAX_OPERATORS,
        "NO_TENSOR": fmt.NO_TENSOR,
        "OP_ADD": fmt.OP_ADD,
        "OP_TABLE": fmt.OP_TABLE,
        "TENSOR_PER_TOKEN": fmt.TENSOR_PER_TOKEN,
    }.items():
        assert int(defines[c_name], 0) == value
