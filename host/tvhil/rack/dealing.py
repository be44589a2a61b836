# SPDX-License-Identifier: Apache-2.0
"""Deal the images of one evaluation to several boards, each in a thread of its own.

Whichever board is free gets the next image. A board that fails (it restarts again and again, does not answer, its port
is gone) is quarantined and its image goes to another one. Before the first image every board runs the same few check
images: a board that computes something else than the others is quarantined too. All rows go into one journal, which
does not care how many boards there were: an evaluation that four boards began can be finished by one.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from tvhil.errors import BoardError
from tvhil.evaluation.device import Device, DeviceFacts
from tvhil.evaluation.report import Summary
from tvhil.evaluation.run import Evaluation, Finished, Input, Predicted
from tvhil.rack.pool import Slot

CHECK_IMAGES = 2  # that every board runs first
_END_PATIENCE = 2.0  # seconds for a thread to end when all is to end

Open = Callable[[Slot], AbstractContextManager[Device]]


@dataclass
class _Member:
    slot: Slot
    device: Device
    facts: DeviceFacts
    failed: str | None = None  # quarantined, and why
    memory: dict[str, Any] | None = None  # after its last image


@dataclass
class _Job:
    entry: Predicted
    doubted: bool = False  # a board that is quarantined since computed something else than predicted


class Rack:
    """Several boards that run one evaluation.

    Args:
        evaluation: with its journal.
        slots: the boards.
        open_slot: starts or opens the board of a slot.
        notice: told, in one line, of boards that are quarantined.
        distrust: quarantine a board whose logits differ from the prediction, as long as others are left to repeat the
            image; else a mismatch is a row like any other.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        slots: Sequence[Slot],
        open_slot: Open,
        notice: Callable[[str], None],
        *,
        distrust: bool = False,
    ) -> None:
        self.evaluation, self.slots, self.distrust = evaluation, slots, distrust
        self._open, self._notice = open_slot, notice
        self._members: list[_Member] = []
        self._changed = threading.Condition()  # guards everything below, and the evaluation
        self._source_lock = threading.Lock()
        self._returned: deque[_Job] = deque()
        self._out = 0  # images that are dealt and have no row
        self._exhausted = self._stop = False
        self._error: BaseException | None = None

    def run(self, inputs: Sequence[Input], finished: Finished | None = None) -> Summary:
        """Run all images that the journal does not hold yet.

        Raises:
            BoardError: no board is left; the journal keeps what is done.
            UsageError, JournalError, StoppedError: as `Evaluation.run`.
        """
        evaluation = self.evaluation
        with ExitStack() as boards:
            self._open_all(boards)
            try:
                evaluation.begin(self._facts())
                boards_of_rack = [{"name": s.name, "board": s.board.name, "port": s.port} for s in self.slots]
                evaluation.record({"rack": boards_of_rack})
                for name, reason in self._failures():
                    evaluation.record({"quarantine": name, "reason": reason})
                self._check(inputs[:CHECK_IMAGES])
                self._deal(evaluation.predicted(inputs), finished)
                evaluation.record({"memory": self._memory()})
            except BaseException:
                self._end_all()
                raise
        return evaluation.summary

    def _working(self) -> list[_Member]:
        return [member for member in self._members if member.failed is None]

    def _failures(self) -> list[tuple[str, str]]:
        opened = {member.slot.name: member.failed for member in self._members}
        return [(slot.name, opened.get(slot.name) or self._unopened[slot.name]) for slot in self.slots
                if slot.name not in opened or opened[slot.name] is not None]  # fmt: skip

    def _open_all(self, boards: ExitStack) -> None:
        self._unopened: dict[str, str] = {}
        for slot in self.slots:
            try:
                device = boards.enter_context(self._open(slot))
                self._members.append(_Member(slot, device, device.facts()))
            except BoardError as error:
                self._unopened[slot.name] = str(error)
                self._notice(f"{slot.name} is left out: {error}")
        if not self._members:
            raise self._nobody_left()

    def _facts(self) -> DeviceFacts:
        """Of the rack as one board. Boards that count in different units have no common latency."""
        facts = [member.facts for member in self._members]
        for member in self._members:
            if member.facts.signature != facts[0].signature:
                raise BoardError(
                    f"{member.slot.name} runs another model than {self._members[0].slot.name}: flash the same one first"
                )
        builds = sorted({one.build or "" for one in facts})
        units = {one.unit for one in facts}
        unit = facts[0].unit if len(units) == 1 else None
        if len(units) > 1:
            self._notice(f"the boards count {' and '.join(sorted(str(u) for u in units))}: no latency is reported")
        return replace(facts[0], build="+".join(builds) or None, unit=unit)

    def _check(self, inputs: Sequence[Input]) -> None:
        """Run the check images on every board and compare the boards with each other."""
        images = [item.load() for item in inputs]
        members = self._working()

        def outputs(member: _Member) -> list[int] | BoardError:
            try:
                return [zlib.crc32(member.device.run(image).output.tobytes()) for image in images]
            except BoardError as error:
                return error

        pool = ThreadPoolExecutor(len(members), "check")
        try:
            found = list(pool.map(outputs, members))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        expected = [zlib.crc32(self.evaluation.predictor.run(image[None])[0].tobytes()) for image in images]
        answers = [one for one in found if isinstance(one, list)]
        # The prediction decides; where no board agrees with it, the opinion of most boards.
        right = expected if expected in answers else max(answers, key=answers.count, default=expected)
        self.evaluation.record(
            {
                "agree": all(one == right for one in answers),
                "check": {m.slot.name: one for m, one in zip(members, found, strict=True) if isinstance(one, list)},
            }
        )
        for member, one in zip(members, found, strict=True):
            if isinstance(one, BoardError):
                self._quarantine(member, str(one))
            elif one != right:
                self._quarantine(member, "it computes something else than the other boards from the same images")
        if not self._working():
            raise self._nobody_left()

    def _deal(self, source: Iterator[Predicted], finished: Finished | None) -> None:
        threads = [
            threading.Thread(target=self._work, args=(member, source, finished), name=member.slot.name, daemon=True)
            for member in self._working()
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._end_all()
            for thread in threads:
                thread.join(_END_PATIENCE)
            raise
        if self._error is not None:
            raise self._error
        if self._out or not self._exhausted:
            raise self._nobody_left()

    def _work(self, member: _Member, source: Iterator[Predicted], finished: Finished | None) -> None:
        job = None
        try:
            while (job := self._next(source)) is not None:
                row = self.evaluation.measure(member.device, job.entry)
                if self._unit_is_common():
                    row["on"] = member.slot.name
                else:
                    row |= {"on": member.slot.name, "latency": None, "layers": None}
                if not self._settle(member, job, row, finished):
                    return
            if not self._stop:
                member.memory = member.device.memory()
        except BoardError as error:
            with self._changed:
                if not self._stop:
                    self._quarantine(member, str(error))
                    self._give_back(job)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stop = True
                self._changed.notify_all()

    def _unit_is_common(self) -> bool:
        return len({member.facts.unit for member in self._members}) == 1

    def _next(self, source: Iterator[Predicted]) -> _Job | None:
        """An image for a free board; None when all have rows. Waits while another board may still give one back."""
        while True:
            with self._changed:
                while True:
                    if self._stop:
                        return None
                    if self._returned:
                        return self._returned.popleft()
                    if not self._exhausted:
                        break
                    if not self._out:
                        return None
                    self._changed.wait()
            with self._source_lock:
                entry = next(source, None)
                with self._changed:
                    if entry is not None:
                        self._out += 1
                        return _Job(entry)
                    self._exhausted = True
                    self._changed.notify_all()

    def _settle(self, member: _Member, job: _Job, row: dict[str, Any], finished: Finished | None) -> bool:
        """Write the row; False where the board is distrusted instead, and ends."""
        with self._changed:
            if self._stop:
                return False
            if self.distrust and not row["exact"] and not job.doubted and len(self._working()) > 1:
                job.doubted = True
                self._quarantine(member, f"image {row['id']} is not bit-exact on it, by up to {row['error']}")
                self._give_back(job)
                return False
            self.evaluation.record(row)
            self._out -= 1
            if finished:
                finished(self.evaluation.summary, row)
            if self.evaluation.fail_fast and not row["exact"]:
                self._error = self.evaluation.stopped(row)
                self._stop = True
            self._changed.notify_all()
            return True

    def _give_back(self, job: _Job | None) -> None:
        if job is not None:
            self._returned.append(job)
        if not self._working():
            self._stop = True
        self._changed.notify_all()

    def _quarantine(self, member: _Member, reason: str) -> None:
        member.failed = reason
        self.evaluation.record({"quarantine": member.slot.name, "reason": reason})
        left = len(self._working())
        self._notice(f"{member.slot.name} is quarantined: {reason} ({left} of {len(self.slots)} boards are left)")

    def _nobody_left(self) -> BoardError:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self._failures())
        return BoardError(f"no board of the rack is left: {reasons}")

    def _memory(self) -> dict[str, Any]:
        """The largest figure of any board."""
        total: dict[str, Any] = {}
        for member in self._members:
            _merge_largest(total, member.memory or {})
        return total

    def _end_all(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        for member in self._members:
            give_up = getattr(member.device, "give_up", None)
            if give_up is not None:
                give_up()


def _merge_largest(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _merge_largest(into.setdefault(key, {}), value)
        elif into.get(key) is None or (value is not None and value > into[key]):
            into[key] = value
