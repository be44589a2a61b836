# SPDX-License-Identifier: Apache-2.0
"""The client against the C server, in this process, over simulated lines: no wall time, no processes, fixed seeds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from link_boards import ServerBoard, SimulatedLine, tiny_model

from tvhil.errors import ExitCode
from tvhil.link import (
    BoardResetError,
    LinkClient,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    LinkTimeouts,
    LinkVersionError,
    RemoteError,
    framing,
    messages,
    open_transport,
)
from tvhil.link.faults import BYTE_KINDS, Corrupter, FaultKind, FaultyTransport
from tvhil.link.framing import Frame
from tvhil.link.messages import ErrorCode, Event, Layout, ModelSource, Region, Request
from tvhil.link.session import Ask
from tvhil.link.transports import LoopbackTransport
from tvhil.packing.format import Status
from tvhil.packing.reader import read_model
from tvhil.prediction.predictor import Predictor


def connected(line, **options) -> LinkClient:
    client = LinkClient(line, seed=5, **options)
    client.connect()
    return client


def on_good_line(model: bytes = b"", **options) -> LinkClient:
    return connected(SimulatedLine(ServerBoard(model, **options)))


def image_of(model: bytes, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, read_model(model).info.input_shape, np.uint8)


# --- what the messages say ------------------------------------------------------------------------------------


def test_hello_agrees_on_what_both_sides_can_do() -> None:
    hello = on_good_line(window=4096).hello
    assert (hello.protocol_version, hello.max_payload, hello.window) == (messages.LINK_VERSION, 1032, 4096)


def test_info_tells_board_firmware_counter_and_memories() -> None:
    info = on_good_line(arena=4096, model_ram=512).info()
    assert (info.board, info.port, info.arena_bytes, info.model_ram_bytes) == ("test", "test", 4096, 512)
    assert info.details == {"key": "value"}
    assert info.model_status is None
    assert (info.cores, info.layouts) == (1, (Layout.ROWS,))
    assert (info.latency_unit, info.latency(12)) == ("cycles", 12)


def test_model_info_tells_what_the_file_says() -> None:
    file = tiny_model()
    model, told = read_model(file), on_good_line(file).model_info()
    assert told.signature.hex() == model.signature
    assert (told.name, told.file_bytes, told.scratch_bytes) == (model.name, len(file), model.plan.scratch_bytes)
    assert told.arena_bytes >= model.plan.arena_bytes, "or more: portable kernels need other scratch than planned"
    assert (told.layout, told.cores, told.kernels) == (Layout.ROWS, 1, "portable")
    assert (told.tensors, told.operators) == (len(model.tensors), len(model.operators))
    assert (told.image_height, told.image_width, told.image_channels) == model.info.input_shape
    assert (told.classes, told.image_bytes) == (10, 64)


def test_a_damaged_model_is_refused_with_section_and_reason_and_the_board_stays_up() -> None:
    file = bytearray(tiny_model())
    file[-20] ^= 1
    client = on_good_line(bytes(file))
    with pytest.raises(RemoteError, match=r"META") as refusal:
        client.model_info()
    assert refusal.value.runtime_status == Status.BAD_CRC
    assert client.info().model_status == Status.BAD_CRC
    with pytest.raises(RemoteError):
        client.load_image(bytes(64))


def test_a_model_that_needs_more_arena_than_the_board_has_is_refused() -> None:
    with pytest.raises(RemoteError) as refusal:
        on_good_line(tiny_model(), arena=1024).model_info()
    assert refusal.value.runtime_status == Status.ARENA_TOO_SMALL


def test_a_run_gives_the_predicted_logits_and_the_predicted_checksum_of_every_operator() -> None:
    file, client = tiny_model(), on_good_line(tiny_model())
    image, model = image_of(tiny_model()), read_model(tiny_model())
    result = client.infer(image.tobytes(), counters=True, crcs=True)
    trace, expected = client.trace(result), Predictor(model).trace(image)
    assert [record.crc for record in trace] == [output.crc for output in expected]
    assert [record.operator for record in trace] == list(range(len(model.operators)))
    assert sum(record.counter for record in trace) <= result.counter
    logits = np.frombuffer(client.read_output(result, 20), "<i2")
    assert (logits == Predictor(model).run(image[None])[0]).all()
    assert client.checksum(Region.MODEL) == (zlib.crc32(file), len(file))
    memory = client.memory()
    assert memory.arena_used == memory.arena_planned == client.model_info().arena_bytes >= model.plan.arena_bytes


def test_a_run_can_stop_after_any_operator_and_its_tensor_can_be_read() -> None:
    client = on_good_line(tiny_model())
    image, model = image_of(tiny_model()), read_model(tiny_model())
    for output in Predictor(model).trace(image):
        result = client.infer(image.tobytes(), last=output.operator)
        assert (result.operators, result.output) == (output.operator + 1, output.tensor)
        size = model.tensors[output.tensor].value_bytes
        assert client.read_output(result, size) == output.values.tobytes()


def test_a_trace_longer_than_the_board_remembers_is_taken_in_parts() -> None:
    client = on_good_line(tiny_model())
    image = image_of(tiny_model()).tobytes()
    whole = client.trace(client.infer(image, crcs=True))
    part = client.trace(client.infer(image, crcs=True, trace_first=5))
    assert part == whole[5:]


def test_memory_is_repainted_on_request() -> None:
    client = on_good_line(tiny_model())
    client.infer(image_of(tiny_model()).tobytes())
    assert client.memory(repaint=True).arena_used > 0
    assert client.memory().arena_used == 0


def test_an_uploaded_model_replaces_the_one_in_flash_until_it_is_overwritten() -> None:
    client = on_good_line(tiny_model())
    other = tiny_model(4)
    steps: list[int] = []
    assert (
        client.upload_model(other, lambda done, total: steps.append(done)).signature.hex()
        == read_model(other).signature
    )
    assert steps[-1] == len(other)
    image = image_of(other)
    result = client.infer(image.tobytes())
    assert (
        np.frombuffer(client.read_output(result, 20), "<i2") == Predictor(read_model(other)).run(image[None])[0]
    ).all()
    with pytest.raises(RemoteError) as refusal:
        client.upload_model(other[:-16])
    assert refusal.value.runtime_status == Status.BAD_SIZE
    client.load_model(ModelSource.FLASH)
    assert client.model_info().signature.hex() == read_model(tiny_model()).signature


def test_a_model_larger_than_the_boards_ram_is_refused_before_it_is_sent() -> None:
    client = on_good_line(model_ram=1024)
    with pytest.raises(LinkError, match="2,000 bytes, the board room for 1,024"):
        client.upload_model(bytes(2000))
    with pytest.raises(LinkError, match="no RAM for a model"):
        on_good_line(model_ram=0).upload_model(bytes(2000))


def test_a_run_refuses_an_image_other_than_the_one_meant() -> None:
    client = on_good_line(tiny_model())
    crc = client.load_image(image_of(tiny_model()).tobytes())
    with pytest.raises(RemoteError) as refusal:
        client.run(crc ^ 1)
    assert refusal.value.code == ErrorCode.IMAGE_CRC
    assert client.run(crc).operators == len(read_model(tiny_model()).operators)


@pytest.mark.parametrize(
    ("region", "identifier", "offset", "size", "code"),
    [
        (Region.TENSOR, 999, 0, 1, ErrorCode.RANGE),
        (Region.TENSOR, 0, 60, 5, ErrorCode.RANGE),
        (Region.TENSOR, 0, 0xFFFFFFFF, 2, ErrorCode.RANGE),
        (Region.MULTIPLIERS, 0, 0, 2, ErrorCode.RANGE),
        (Region.MODEL, 1, 0, 1, ErrorCode.RANGE),
        (Region.TRACE, 0, 0, 16, ErrorCode.RANGE),
        (9, 0, 0, 1, ErrorCode.ARGUMENT),
    ],
)
def test_a_read_outside_a_region_is_refused(region: int, identifier: int, offset: int, size: int, code: int) -> None:
    client = on_good_line(tiny_model())
    with pytest.raises(RemoteError) as refusal:
        client.session.ask(Ask(Request.READ, messages.READ.pack(region, 0, identifier, offset, size)))
    assert refusal.value.code == code


@pytest.mark.parametrize("region", [Region.MODEL, Region.TRACE])
def test_a_write_to_a_region_that_is_not_for_writing_is_refused(region: Region) -> None:
    client = on_good_line(tiny_model())
    with pytest.raises(RemoteError) as refusal:
        client.session.ask(Ask(Request.WRITE, messages.WRITE.pack(region, 0, 0, 0)))
    assert refusal.value.code == ErrorCode.ARGUMENT


# --- sessions and late duplicates -----------------------------------------------------------------------------


def raw(board: ServerBoard, *frames: Frame) -> list[Frame]:
    answers = framing.Decoder().feed(board.feed(b"".join(map(framing.encode, frames))))
    assert None not in answers
    return [answer for answer in answers if answer is not None]


def hello_frame(session: int, nonce: int) -> Frame:
    return Frame(Request.HELLO, session, 0, messages.HELLO.pack(messages.MAGIC, messages.LINK_VERSION, 0, nonce))


def codes(answers: list[Frame]) -> list[int | None]:
    return [messages.ERROR.unpack_from(a.payload)[0] if a.type == Event.ERROR else None for a in answers]


def test_a_board_that_has_just_started_announces_itself_and_knows_no_session() -> None:
    board = ServerBoard()
    assert [frame.type for frame in framing.Decoder().feed(board.boot) if frame] == [Event.BOOT]
    assert codes(raw(board, Frame(Request.INFO, 7, 0))) == [ErrorCode.SESSION]


def test_another_host_takes_over_and_the_first_is_told_so() -> None:
    board = ServerBoard()
    first = connected(SimulatedLine(board))
    raw(board, hello_frame(first.session._session % 255 + 1, 1))
    with pytest.raises(BoardResetError, match="taken it over"):
        first.info()
    first.connect()
    assert first.info().board == "test"


def test_a_repeated_hello_of_the_same_session_changes_nothing() -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    image = image_of(tiny_model()).tobytes()
    write = Frame(Request.WRITE, 9, 0x10, messages.WRITE.pack(Region.TENSOR, 0, 0, 0) + image)
    run = Frame(Request.RUN, 9, 0x20, messages.RUN.pack(0, 0, messages.ALL, 0, zlib.crc32(image)))
    first = raw(board, write, run)[-1]
    executed = board.operators
    raw(board, hello_frame(9, 1))
    assert raw(board, run)[-1] == first
    assert board.operators == executed


def run_requests(numbers: tuple[int, int]) -> tuple[Frame, Frame]:
    image = image_of(tiny_model()).tobytes()
    write = Frame(Request.WRITE, 9, numbers[0] << 4, messages.WRITE.pack(Region.TENSOR, 0, 0, 0) + image)
    return write, Frame(Request.RUN, 9, numbers[1] << 4, messages.RUN.pack(0, 0, messages.ALL, 0, zlib.crc32(image)))


def test_a_repeated_run_is_answered_from_memory_whatever_its_attempt() -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    write, run = run_requests((1, 2))
    first = raw(board, write, run)[-1]
    executed = board.operators
    for attempt in range(1, 16):
        again = raw(board, Frame(run.type, 9, run.sequence | attempt, run.payload))
        assert [(a.type, a.sequence, a.payload) for a in again] == [(first.type, run.sequence | attempt, first.payload)]
    assert board.operators == executed > 0


def test_a_run_that_was_refused_is_refused_again_and_not_tried() -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    write, run = run_requests((1, 2))
    assert codes(raw(board, run)) == [ErrorCode.IMAGE_CRC]
    assert codes(raw(board, Frame(write.type, 9, 3 << 4, write.payload), run))[-1] == ErrorCode.IMAGE_CRC
    assert board.operators == 0


@pytest.mark.parametrize("first", [1, 2047, 4094, 4095])
def test_a_late_duplicate_of_a_write_or_run_does_nothing_also_where_numbers_wrap(first: int) -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    write, run = run_requests((first, (first + 1) % 4096))
    raw(board, write, run)
    before = board.operators
    read = Frame(Request.CHECKSUM, 9, (first + 2) % 4096 << 4, messages.READ.pack(Region.TENSOR, 0, 0, 0, messages.ALL))
    left = raw(board, read)[0].payload
    assert codes(raw(board, write)) == [ErrorCode.STALE]
    older = Frame(run.type, 9, write.sequence, run.payload)
    assert codes(raw(board, older)) == [ErrorCode.STALE]
    assert raw(board, read)[0].payload == left
    assert board.operators == before


def test_a_barrier_is_not_in_the_way_of_later_requests_when_numbers_wrap_around() -> None:
    client = on_good_line(tiny_model())
    image = image_of(tiny_model()).tobytes()
    first = client.infer(image)
    for _ in range(9000):
        client.echo(b"")
    assert client.infer(image).output_crc == first.output_crc


def test_during_a_run_a_repeat_brings_progress_and_other_requests_are_told_to_wait() -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    write, run = run_requests((1, 2))
    again = Frame(run.type, 9, run.sequence | 1, run.payload)
    answers = raw(board, write, run, again, Frame(Request.INFO, 9, 3 << 4))[1:]
    assert [(a.type, a.sequence) for a in answers] == [
        (Event.PROGRESS, run.sequence),
        (Event.PROGRESS, again.sequence),
        (Event.ERROR, 3 << 4),
        (run.type | messages.ANSWER, run.sequence),
    ]
    assert codes(answers)[2] == ErrorCode.BUSY
    assert board.operators == 21


def test_a_host_that_comes_back_during_a_run_ends_it_and_is_served() -> None:
    board = ServerBoard(tiny_model())
    raw(board, hello_frame(9, 1))
    write, run = run_requests((1, 2))
    answers = raw(board, write, run, hello_frame(10, 2), Frame(Request.ECHO, 10, 0x10, b"x"))[2:]
    assert codes(answers)[0] == ErrorCode.RUNTIME + Status.STOPPED
    assert [(a.type, a.session) for a in answers] == [
        (Event.ERROR, 9),
        (Request.HELLO | messages.ANSWER, 10),
        (Request.ECHO | messages.ANSWER, 10),
    ]
    assert 0 < board.operators < 21


def test_an_echoing_line_does_no_harm() -> None:
    board = ServerBoard()

    def echoing(data: bytes) -> bytes:
        answer = board.feed(data)
        return data + answer + board.feed(answer)

    client = connected(LoopbackTransport(echoing))
    assert client.echo(b"hello") == b"hello"


def test_text_of_a_boot_rom_between_frames_damages_none() -> None:
    board = ServerBoard()
    client = connected(LoopbackTransport(lambda data: b"ESP-ROM:esp32s3-20210327\r\n" + board.feed(data) + b"ets\n"))
    for _ in range(50):
        assert client.echo(b"x" * 300) == b"x" * 300
    assert client.statistics.retries <= 52  # such text may cost a repeat, and never a chain of them


# --- losses -----------------------------------------------------------------------------------------------------


def test_a_good_line_needs_no_repeat_and_carries_less_than_three_percent_besides_the_data() -> None:
    line = SimulatedLine(ServerBoard(model_ram=1 << 20))
    client = connected(line)
    data = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8).tobytes()
    sent = line.outward_bytes
    client.write(Region.MODEL_RAM, 0, data)
    written = line.outward_bytes - sent
    received = line.inward_bytes
    assert client.read(Region.MODEL_RAM, 0, len(data)) == data
    assert written / len(data) < 1.03
    assert (line.inward_bytes - received) / len(data) < 1.03
    assert client.statistics.retries == client.statistics.crc_errors == client.statistics.timeouts == 0


def test_a_good_line_is_kept_busy() -> None:
    line = SimulatedLine(ServerBoard(model_ram=1 << 20))
    client = connected(line)
    begin = line.clock()
    client.write(Region.MODEL_RAM, 0, bytes(range(256)) * 4096)
    assert (1 << 20) * line._byte / (line.clock() - begin) > 0.96


@pytest.mark.parametrize(("known", "most_retries"), [(True, 0), (False, 16)])
@pytest.mark.parametrize("baud", [9600, 115200, 2_000_000])
def test_a_line_of_any_speed_is_learned_and_kept_busy(baud: int, known: bool, most_retries: int) -> None:
    line = SimulatedLine(ServerBoard(model_ram=1 << 20), baud)
    line.seconds_per_byte = 10 / baud if known else 0.0
    client = connected(line, timeouts=LinkTimeouts(request=20))
    begin = line.clock()
    client.write(Region.MODEL_RAM, 0, bytes(range(1, 251)) * 800)
    client.read(Region.MODEL_RAM, 0, 200_000)
    assert client.statistics.retries <= most_retries
    assert 400_000 * 10 / baud / (line.clock() - begin) > (0.96 if known else 0.92)
    assert client.session.chunking.bytes == 1024


@pytest.mark.parametrize("direction", ["write", "read"])
@pytest.mark.parametrize("seed", [1, 2])
def test_goodput_at_a_bit_error_rate_of_one_in_100000_is_90_percent_of_a_clean_line(direction: str, seed: int) -> None:
    seconds = []
    data = np.random.default_rng(2).integers(0, 256, 3 << 20, np.uint8).tobytes()
    for rate in (0.0, 1e-5):
        flips = [Corrupter(seed + way, 8 * rate, [FaultKind.FLIP]) for way in range(2)]
        line = SimulatedLine(ServerBoard(model_ram=len(data)), 1_000_000, *flips)
        client = connected(line)
        client.write(Region.MODEL_RAM, 0, data if direction == "write" else data[:1000])
        begin = line.clock()
        if direction == "write":
            client.write(Region.MODEL_RAM, 0, data)
            assert client.checksum(Region.MODEL_RAM) == (zlib.crc32(data), len(data))
        else:
            assert client.read(Region.MODEL_RAM, 0, len(data))[:1000] == data[:1000]
        seconds.append(line.clock() - begin)
        assert (flips[0].total + flips[1].total > 150) == (rate > 0)
    assert seconds[0] / seconds[1] >= 0.9


@pytest.mark.parametrize("window", [0, 8192])
@pytest.mark.parametrize("kind", [*BYTE_KINDS, None])
def test_every_kind_of_fault_is_recovered_and_every_image_is_exact(kind: FaultKind | None, window: int) -> None:
    file = tiny_model(5, classes=100)
    board = ServerBoard(file, window=window)
    kinds = BYTE_KINDS if kind is None else [kind]
    outward, inward = (Corrupter(seed, 1 / 400, kinds) for seed in (11, 12))
    client = connected(SimulatedLine(board, 1_000_000, outward, inward))
    model, predictor = read_model(file), Predictor(read_model(file))
    images = np.stack([image_of(file, seed) for seed in range(40)])
    expected = predictor.run(images)
    per_image = len(model.operators)
    for image, logits in zip(images, expected, strict=True):
        result = client.infer(image.tobytes(), counters=True)
        assert (np.frombuffer(client.read_output(result, 200), "<i2") == logits).all()
        assert len(client.trace(result)) == per_image
    assert board.operators == per_image * len(images)  # none was run twice
    assert outward.total + inward.total > 50
    assert client.statistics.retries > 0 or kind is FaultKind.REPEAT


def test_thousands_of_faults_of_all_kinds_leave_a_long_transfer_exact() -> None:
    outward, inward = (Corrupter(seed, 1 / 500) for seed in (3, 4))
    client = connected(SimulatedLine(ServerBoard(model_ram=400_000), 1_000_000, outward, inward))
    data = np.random.default_rng(3).integers(0, 256, 400_000, np.uint8).tobytes()
    client.write(Region.MODEL_RAM, 0, data)
    assert client.read(Region.MODEL_RAM, 0, len(data)) == data
    assert outward.total + inward.total > 2000
    assert set(outward.counts) == set(inward.counts) == set(BYTE_KINDS)


def test_half_of_the_faults_cost_less_than_the_time_of_two_frames() -> None:
    """The time lost to one fault, each alone in an otherwise good transfer."""

    def seconds(at: int | None) -> float:
        outward = Corrupter(0, 0)
        line = SimulatedLine(ServerBoard(model_ram=20_000), 1_000_000, outward)
        client = connected(line)
        begin = line.clock()
        if at is not None:
            outward._rate, outward._gap, outward._most, outward._kinds = 0.5, at, 1, BYTE_KINDS
            outward._random.seed(at)
        client.write(Region.MODEL_RAM, 0, bytes(range(1, 251)) * 80)
        return line.clock() - begin

    clean = seconds(None)
    lost = sorted(seconds(at) - clean for at in range(0, 20_000, 97))
    assert lost[len(lost) // 2] < 2 * 1047 * 10 / 1_000_000
    assert lost[-1] < 1.0


def test_pieces_get_shorter_on_a_bad_line_and_long_again_on_a_good_one() -> None:
    outward = Corrupter(1, 8e-4, [FaultKind.FLIP])
    line = SimulatedLine(ServerBoard(model_ram=1 << 18), 1_000_000, outward)
    client = connected(line)
    client.write(Region.MODEL_RAM, 0, bytes(1 << 18))
    assert client.session.chunking.bytes <= 256
    line.outward = Corrupter(0, 0)
    for _ in range(3):
        client.write(Region.MODEL_RAM, 0, bytes(1 << 18))
    assert client.session.chunking.bytes == 1024


# --- what cannot be recovered is named --------------------------------------------------------------------------


def test_a_silent_port_is_reported_after_the_time_allowed() -> None:
    line = LoopbackTransport(lambda _: b"")
    with pytest.raises(LinkTimeoutError, match="after 10 s: the port is silent") as failure:
        LinkClient(line, seed=1).connect()
    assert failure.value.exit_code is ExitCode.BOARD
    assert 10 <= line.clock() < 13


def test_a_port_that_talks_something_else_is_told_apart_from_a_silent_one() -> None:
    with pytest.raises(LinkTimeoutError, match="none of this protocol"):
        LinkClient(LoopbackTransport(lambda _: b"login: \r\n"), seed=1).connect()


def test_a_board_that_stops_answering_is_reported_with_the_request() -> None:
    board, dead = ServerBoard(), []
    line = LoopbackTransport(lambda data: b"" if dead else board.feed(data))
    client = connected(line, timeouts=LinkTimeouts(request=3))
    dead.append(True)
    begin = line.clock()
    with pytest.raises(LinkTimeoutError, match="INFO was not answered for 3 s"):
        client.info()
    assert 3 <= line.clock() - begin < 5


def test_a_run_without_a_sign_of_life_is_reported_and_a_slow_one_is_not() -> None:
    model = tiny_model()
    board, alive = ServerBoard(model), [True]
    clock: Iterator[bool] = iter([True] * 40)

    def slow(data: bytes) -> bytes:
        """A board that says PROGRESS for each RUN it sees, 40 times, and answers then."""
        (frame,) = [f for f in framing.Decoder().feed(data) if f is not None]
        if frame.type != Request.RUN:
            return board.feed(data)
        if not alive[0]:
            return b""
        if next(clock, False):
            return framing.encode(Frame(Event.PROGRESS, frame.session, frame.sequence, messages.PROGRESS.pack(1, 21)))
        return board.feed(data)

    line = LoopbackTransport(slow)
    client = connected(line, timeouts=LinkTimeouts(run=2))
    image = image_of(model).tobytes()
    result = client.infer(image)
    assert result.operators == 21
    assert line.clock() > 4  # longer than any silence that is allowed
    assert client.statistics.probes > 0 == client.statistics.retries

    crc = client.load_image(image)
    clock = iter([True])
    begin = line.clock()

    def then_dead(data: bytes) -> bytes:
        answer = slow(data)
        alive[0] = False
        return answer

    line._device = then_dead
    with pytest.raises(LinkTimeoutError, match="no sign of life for 2 s"):
        client.run(crc)
    assert 2 <= line.clock() - begin < 4


def test_a_board_of_another_version_is_named() -> None:
    def newer(data: bytes) -> bytes:
        (frame,) = [f for f in framing.Decoder().feed(data) if f is not None]
        payload = messages.ERROR.pack(ErrorCode.VERSION, 0, b"", 77) + b"another version"
        return framing.encode(Frame(Event.ERROR, frame.session, frame.sequence, payload))

    told = f"version 77 of the link, this host version {messages.LINK_VERSION}: build and flash the firmware"
    with pytest.raises(LinkVersionError, match=told) as caught:
        LinkClient(LoopbackTransport(newer)).connect()
    assert caught.value.exit_code == ExitCode.OLD_FIRMWARE


def test_the_board_refuses_a_host_of_another_version() -> None:
    hello = Frame(Request.HELLO, 3, 0x40, messages.HELLO.pack(messages.MAGIC, 77, 0, 1))
    (answer,) = raw(ServerBoard(), hello)
    assert messages.ERROR.unpack_from(answer.payload) == (ErrorCode.VERSION, 0, bytes(4), messages.LINK_VERSION)


def test_a_board_that_restarts_in_the_middle_is_noticed_and_the_image_can_be_repeated() -> None:
    board = ServerBoard(tiny_model())
    client = connected(SimulatedLine(board))
    image = image_of(tiny_model()).tobytes()
    crc = client.load_image(image)
    raw(board, Frame(Request.RESET, client.session._session, 0, messages.RESET_KEY.to_bytes(4, "little")))
    with pytest.raises(BoardResetError, match="restarted"):
        client.run(crc)
    client.connect()
    assert client.infer(image).operators == 21
    assert board.resets == 1


def test_reset_restarts_the_board_and_connects_again_also_on_a_bad_line() -> None:
    board = ServerBoard()
    outward, inward = (Corrupter(seed, 1 / 60, [FaultKind.FLIP, FaultKind.DROP]) for seed in (5, 6))
    client = connected(SimulatedLine(board, 1_000_000, outward, inward))
    for _ in range(20):
        client.reset()
    assert board.resets >= 20
    assert client.echo(b"1") == b"1"


def test_a_line_that_is_closed_is_named() -> None:
    line = LoopbackTransport(ServerBoard().feed)
    client = connected(line)
    client.close()
    with pytest.raises(LinkClosedError):
        client.info()


@pytest.mark.parametrize("url", ["tcp://nowhere", "tcp://:1", "tcp://localhost:x", "socket://localhost:99999"])
def test_a_malformed_address_is_refused(url: str) -> None:
    with pytest.raises(LinkError, match="expected"):
        open_transport(url)


@pytest.mark.parametrize("url", ["/dev/does-not-exist", "tcp://127.0.0.1:1", "rfc2217://127.0.0.1:1", "nonsense://x"])
def test_a_port_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(LinkClosedError, match=url[-8:]):
        open_transport(url)


def test_the_same_seed_damages_the_same_bytes() -> None:
    data = [bytes([i % 251]) * 300 for i in range(40)]
    results = []
    for _ in range(2):
        corrupter = Corrupter(9, 1 / 100, most=30)
        results.append([corrupter.apply(part) for part in data])
        assert corrupter.total == 30
    assert results[0] == results[1] != data


def test_a_faulty_transport_passes_everything_where_the_rate_is_zero() -> None:
    client = connected(FaultyTransport(LoopbackTransport(ServerBoard().feed), Corrupter(1, 0), Corrupter(2, 0)))
    assert client.echo(bytes(1032)) == bytes(1032)
    assert client.transport.faults == 0  # type: ignore[attr-defined]
