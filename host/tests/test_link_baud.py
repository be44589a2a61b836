# SPDX-License-Identifier: Apache-2.0
"""Going up with the rate of a serial line after the handshake (device/PROTOCOL.md, section 7)."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
from link_boards import ServerBoard, native_board, server_library, tiny_model

from tvhil.link import LinkClient, LinkTimeouts, framing, messages
from tvhil.link.errors import BoardResetError, LinkError, LinkTimeoutError, RemoteError
from tvhil.link.messages import Capability, Request
from tvhil.link.session import Ask
from tvhil.link.transports import LoopbackTransport, SerialTransport, Transport

START, FASTEST = 115_200, 2_000_000
RATES = (2_000_000, 921_600, 460_800)


class RatedBoard(ServerBoard):
    """The C server on a UART."""

    def __init__(self, most: int = FASTEST) -> None:
        super().__init__(tiny_model())
        library = server_library()
        library.link_board_offer_rates.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
        for name in ("link_board_restart", "link_board_baud"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.link_board_offer_rates(self._board, START, most)
        self.restart()

    @property
    def baud(self) -> int:
        return self._library.link_board_baud(self._board)

    def restart(self) -> None:
        self._library.link_board_offer_rates(self._board, START, FASTEST)
        self._library.link_board_restart(self._board)
        self.feed(b"")


class RatedLine(Transport):
    """A line between ends that may have different rates, on a clock that only waiting moves.

    Attributes:
        highest: rate up to which bytes survive, from the host and to it.
        rates: that the host's end was set to.
    """

    def __init__(self, board: RatedBoard, highest: tuple[int, int] = (FASTEST, FASTEST)) -> None:
        self.name, self.board, self.highest = "rated line", board, highest
        self.baud = START
        self.rates: list[int] = []
        self.deaf_to_baud = False
        self.longest_above = (FASTEST, 0)  # above this rate, frames of the board that are longer than so many are lost
        self._arrived = bytearray()
        self._now = 0.0

    def set_baud(self, baud: int) -> None:
        if self.deaf_to_baud and baud != START:
            raise LinkError("this port does not go up")
        self.baud = baud
        self.rates.append(baud)

    def _carried(self, data: bytes, board_baud: int, highest: int) -> bytes:
        if self.baud == board_baud <= highest:
            return data
        return bytes(byte ^ 0xA5 or 0xA5 for byte in data)

    def write(self, data: bytes) -> None:
        before = self.board.baud
        answer = self.board.feed(self._carried(data, before, self.highest[0]))
        rate, longest = self.longest_above
        if before > rate and len(answer) > longest:
            answer = answer[:longest]
        self._arrived += self._carried(answer, before, self.highest[1])

    def read(self, timeout: float) -> bytes:
        if not self._arrived:
            self._now += max(timeout, 0.0)
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    def close(self) -> None:
        pass

    def clock(self) -> float:
        return self._now


def connected(board: RatedBoard, **line) -> tuple[LinkClient, RatedLine]:
    transport = RatedLine(board, **line)
    client = LinkClient(transport, seed=1, rates=RATES)
    client.connect()
    return client, transport


def test_the_line_goes_up_to_the_best_rate_after_the_handshake():
    board = RatedBoard()
    client, line = connected(board)
    assert Capability.BAUD in client.hello.capabilities
    assert (board.baud, line.baud) == (FASTEST, FASTEST)
    big = bytes(range(256)) * 4
    for _ in range(10):
        assert client.echo(big) == big
    assert board.baud == FASTEST, "what is confirmed stays, however much is received"


@pytest.mark.parametrize("highest", [(1_000_000, FASTEST), (FASTEST, 1_000_000), (1_000_000, 1_000_000)])
def test_a_rate_that_the_cable_does_not_bear_in_one_direction_is_given_up_for_the_next(highest):
    board = RatedBoard()
    client, line = connected(board, highest=highest)
    assert (board.baud, line.baud) == (921_600, 921_600)
    assert client.echo(b"there") == b"there"


def test_a_rate_that_the_board_does_not_make_is_refused_and_the_next_is_taken():
    board = RatedBoard()
    server_library().link_board_offer_rates(board._board, START, 500_000)
    client, line = connected(board)
    assert (board.baud, line.baud) == (460_800, 460_800)
    with pytest.raises(RemoteError) as caught:
        client.session.ask(Ask(Request.SET_BAUD, (300).to_bytes(4, "little"), 0))
    assert caught.value.code == messages.ErrorCode.ARGUMENT


def test_where_no_higher_rate_works_the_line_stays_at_the_first():
    board = RatedBoard()
    client, line = connected(board, highest=(START, START))
    assert (board.baud, line.baud) == (START, START)
    assert client.echo(b"there") == b"there"


@pytest.mark.parametrize(("bears", "reached"), [(1_000_000, 921_600), (START, START)])
def test_a_rate_at_which_long_frames_are_lost_is_left_for_a_lower_one(bears, reached):
    board = RatedBoard()
    line = RatedLine(board)
    line.longest_above = (bears, 200)
    client = LinkClient(line, seed=1, rates=RATES)
    client.connect()
    assert (board.baud, line.baud) == (reached, reached)
    assert client.echo(bytes(1000)) == bytes(1000)


def test_a_port_that_does_not_know_the_rates_stays_at_the_first():
    board = RatedBoard()
    line = RatedLine(board)
    line.deaf_to_baud = True
    client = LinkClient(line, seed=1, rates=RATES)
    client.connect()
    assert (board.baud, line.baud) == (START, START)
    assert client.echo(b"there") == b"there"


def test_a_board_that_an_earlier_host_left_at_a_higher_rate_is_found():
    board = RatedBoard()
    connected(board)
    client, line = connected(board)
    assert line.rates[:2] == [START, FASTEST]
    assert (board.baud, line.baud) == (FASTEST, FASTEST)
    assert client.info().board == "test"


def test_a_second_handshake_stays_at_the_rate():
    board = RatedBoard()
    client, line = connected(board)
    settings = len(line.rates)
    client.connect()
    assert set(line.rates[settings:]) == {FASTEST}
    assert client.echo(b"there") == b"there"


def test_a_board_that_restarts_is_found_at_its_first_rate_and_goes_up_again():
    board = RatedBoard()
    client, line = connected(board)
    board.restart()
    with pytest.raises(BoardResetError, match="no answer at 2,000,000 baud"):
        client.echo(b"there")
    client.connect()
    assert (board.baud, line.baud) == (FASTEST, FASTEST)
    assert client.reset()
    assert (board.baud, line.baud) == (FASTEST, FASTEST)


def test_a_silent_line_is_told_after_the_patience_of_connect():
    line = RatedLine(RatedBoard(), highest=(0, 0))
    client = LinkClient(line, LinkTimeouts(connect=2.0), seed=1, rates=RATES)
    with pytest.raises(LinkTimeoutError, match="no board answers after 2 s"):
        client.connect()
    assert line.baud == START
    assert line.clock() < 10


def test_without_rates_nothing_is_negotiated():
    board = RatedBoard()
    line = RatedLine(board)
    LinkClient(line, seed=1).connect()
    assert (line.rates, board.baud) == ([], START)


def test_a_board_without_rates_is_left_alone():
    board = ServerBoard(tiny_model())
    board.baud = START
    line = RatedLine(board)  # type: ignore[arg-type]
    link = LinkClient(line, seed=1, rates=RATES)
    assert Capability.BAUD not in link.connect().capabilities
    assert line.baud == START


def test_on_a_line_without_a_rate_of_its_own_the_board_is_not_searched_for_at_every_rate():
    sent = bytearray()
    line = LoopbackTransport(lambda data: (sent.extend(data), b"")[1])  # nobody there
    with pytest.raises(LinkTimeoutError):
        LinkClient(line, LinkTimeouts(connect=5.0), seed=1, rates=RATES).connect()
    frames = [frame for frame in framing.Decoder().feed(bytes(sent)) if frame is not None]
    assert {frame.type for frame in frames} == {Request.HELLO}
    assert len({frame.session for frame in frames}) == 1
    assert 5.0 <= line.clock() < 8.0


def test_a_serial_port_changes_its_rate_with_the_native_board_on_a_pty(tmp_path):
    with subprocess.Popen([native_board(), "--pty"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            with SerialTransport(process.stdout.readline().strip(), START) as port:
                client = LinkClient(port, seed=1, rates=RATES)
                client.connect()
                assert port.baud == FASTEST
                assert port._port.baudrate == FASTEST
                assert port.seconds_per_byte == pytest.approx(10 / FASTEST)
                assert client.echo(b"there") == b"there"
        finally:
            process.kill()


def test_a_224_image_takes_less_than_a_second_at_2_mbaud_by_its_frames():
    image, chunk = 224 * 224 * 3, 1024
    frames = -(-image // chunk)
    line_bytes = sum(len(frame_of(min(chunk, image - i * chunk))) for i in range(frames))
    assert line_bytes < 1.03 * image, "under 3 % of overhead"
    assert line_bytes * 10 / FASTEST < 1.0


def frame_of(size: int) -> bytes:
    payload = messages.WRITE.pack(0, 0, 0, 0) + bytes(255 - i % 255 for i in range(size))
    return framing.encode(framing.Frame(Request.WRITE, 1, 16, payload))
