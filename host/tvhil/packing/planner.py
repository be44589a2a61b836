# SPDX-License-Identifier: Apache-2.0
"""Choose a schedule that fits a board's memory: the fastest of those whose arena does.

A schedule (`packing.schedule`) trades memory against work. Keeping only one head's keys and values, or the hidden layer
of some tokens only, makes the arena smaller; reading weights from flash again and computing LayerNorm again costs time.
Both halves of a block are judged on their own, because the arena is that of the larger one and the times add up: for
each arena the fastest attention and the fastest MLP that stay within it make one alternative.

Arenas are the C runtime's own plans, of a skeleton: a model of one block with the shapes of the real one and no
weights. The file that is packed in the end is planned as a whole, and another alternative is taken if it does not fit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvhil.errors import InputError
from tvhil.packing.format import BLOCK_TOKENS, MAX_OPERATORS, OP_ADD, OP_TABLE, DType, OpKind, Plan, ScaleMode, align
from tvhil.packing.integer_vit import IntegerBlock, IntegerLinear, IntegerViT
from tvhil.packing.reader import read_model
from tvhil.packing.schedule import Schedule, channel_chunks
from tvhil.packing.trits import TILE_CHANNELS, Codec, encode_matrix, matrix_bytes
from tvhil.packing.writer import DraftOperator, ModelWriter, Planner, pack_vit
from tvhil.prediction import pie_work
from tvhil.prediction.flash_reads import CacheShape
from tvhil.prediction.latency import CostModel
from tvhil.prediction.pie_work import Patches, Rows
from tvhil.prediction.work import OperatorWork

# The ESP32-S3's data cache has 64 KB. Chunks of weights that are to stay there for the next group of tokens have room
# to spare: other code reads flash, too. An estimate takes all as there that is read again within the cache less a bit.
CACHE_BYTES = 48 * 1024
CACHE_SPARE_BYTES = 1024

CORES = 2  # of the ESP32-S3


@dataclass(frozen=True)
class Work:
    """One operator of a schedule, as its time depends on it.

    Attributes:
        kind: of the operator.
        rows: tokens.
        inputs, channels: of a linear operator; heads times head dimension, or columns, of the others.
        nonzeros: non-zero trits an output channel, on average.
        codec: of a linear operator's trits.
        output: of a linear operator: 'i8', 'i8_127' (clamped at 127), 'table', 'i16_add' or 'i16_set'.
        flash_bytes: read from flash: 0 where the weights are still in the cache.
        times: how often the model has this operator: once a block.
        heads: of attention.
        strided: in attention, keys are columns of a wider tensor.
        patches: of the patch embedding.
        as_row: one row of logits.
    """

    kind: OpKind
    rows: int
    inputs: int
    channels: int
    nonzeros: float
    codec: Codec
    output: str
    flash_bytes: int
    times: int
    heads: int = 1
    strided: bool = False
    patches: Patches | None = None
    as_row: bool = False


@functools.lru_cache(maxsize=1)
def esp32s3_cost() -> CostModel:
    """The cost model of the ESP32-S3, whose kernels schedules are made for."""
    from tvhil.boards.board import checkout, load_board

    cost = load_board(checkout() / "boards" / "esp32s3.toml").cost
    if cost is None or cost.kernels != "pie":
        raise InputError("boards/esp32s3.toml has no [cost] of PIE kernels: fit it with tools/calibrate_cost_model.py")
    return cost


def estimate_cycles(
    work: Iterable[Work], cores: int = CORES, cost: CostModel | None = None, known: dict[Work, float] | None = None
) -> float:
    """Cycles of one inference with the PIE kernels, weights in flash: what `tvhil predict` says of the model, but that
    all rows of a matrix are taken to have as many non-zero trits.

    Args:
        work: of the model.
        cores: that share each operator.
        cost: of the board; None: of the ESP32-S3.
        known: what was found before with the same cores and cost; takes what is found.
    """
    cost = cost or esp32s3_cost()
    known = {} if known is None else known
    total = 0.0
    for op in work:
        if op not in known:
            known[op] = op.times * cost.operator_cost(_operator_work(op, cores, cost.cache))
        total += known[op]
    return total


def _operator_work(op: Work, cores: int, cache: CacheShape | None) -> OperatorWork:
    line_bytes = cache.line_bytes if cache is not None else op.flash_bytes + 1
    shared = (op.flash_bytes / line_bytes / cores,) * cores
    nothing = (0.0,) * cores
    instructions = np.full(op.channels, round(max(op.nonzeros, 3)))
    if op.patches is not None:
        weights = Rows(op.inputs, op.codec, instructions, op.patches.blocks, "i16_add")
        phases = pie_work.patch_embed(op.patches, weights, cores)
        groups = len(phases) // 3
        positions = (op.patches.patches * op.channels / groups / line_bytes / cores,) * cores
        again = shared if op.flash_bytes > CACHE_BYTES else nothing
        lines = [lines for group in range(groups) for lines in (nothing, positions, again if group else shared)]
    elif op.kind is OpKind.LINEAR:
        blocks = pie_work.blocks_of(op.rows)
        phases = pie_work.linear(Rows(op.inputs, op.codec, instructions, blocks, op.output, op.as_row), cores)
        lines = [shared]
    else:
        if op.kind is OpKind.ATTENTION:
            phases = pie_work.attention(op.rows, op.heads, op.channels // op.heads, cores, op.strided)
        elif op.kind is OpKind.LAYERNORM:
            phases = pie_work.layernorm(op.channels, op.rows, cores)
        else:
            phases = pie_work.mean_pool(op.channels, 0, op.rows, cores)
        lines = [nothing] * len(phases)
    return OperatorWork("", op.kind.name.lower(), tuple(phases), tuple(lines))


@dataclass(frozen=True)
class Alternative:
    """A schedule with what it costs.

    Attributes:
        arena_bytes: of the memory plan.
        flash_bytes: of weights, read from flash in one inference.
        reads: how often the weights that are read most often are read.
        cycles: predicted; None for models with per-token scales, whose kernels the estimate does not know.
        operators: of the model.
    """

    schedule: Schedule
    arena_bytes: int
    flash_bytes: int
    reads: int
    cycles: float | None
    operators: int


@dataclass(frozen=True)
class Planned:
    """What the planner decided.

    Attributes:
        chosen: one of the alternatives, with the arena of the real file.
        alternatives: from the largest arena to the smallest; each is faster than all that follow.
        arena_bytes: what was asked for; None for as much as the model wants.
        memory: 'sram', or 'psram' where nothing fits the former and the board has the latter.
    """

    chosen: Alternative
    alternatives: tuple[Alternative, ...]
    arena_bytes: int | None
    memory: str = "sram"


class NothingFitsError(InputError):
    """No schedule is small enough."""


# --- candidates ----------------------------------------------------------------------------------------------


def _cuts(blocks: int) -> list[int]:
    """Numbers of groups that make the largest group smaller than one group less does."""
    return sorted({-(-blocks // size) for size in range(1, blocks + 1)})


def attention_candidates(vit: IntegerViT) -> Iterator[Schedule]:
    """How the attention may be cut."""
    blocks = align(vit.tokens, BLOCK_TOKENS) // BLOCK_TOKENS
    for split in (False, True) if vit.embed_dim // vit.heads % BLOCK_TOKENS == 0 else (False,):
        for groups in _cuts(blocks):
            yield Schedule(heads_split=split, attention_groups=groups)


def mlp_candidates(vit: IntegerViT, codec: Codec) -> Iterator[Schedule]:
    """How the MLP may be cut: fc1 in chunks only where that keeps a chunk in the cache for the next group of tokens."""
    blocks = align(vit.tokens, BLOCK_TOKENS) // BLOCK_TOKENS
    f, d = vit.mlp_dim, vit.embed_dim
    nonzeros = max(map(nonzeros_of, _layer(vit, "mlp.fc1")))
    sizes = (
        (count, max(stored_bytes(codec, n, d, nonzeros) + 4 * n for _, n in channel_chunks(f, count)))
        for count in range(1, -(-f // TILE_CHANNELS) + 1)
    )
    chunks = next((count for count, size in sizes if size <= CACHE_BYTES), 1)
    for passes in _cuts(blocks):
        yield Schedule(mlp_passes=passes)
        for groups in _cuts(-(-blocks // passes))[1:]:
            for count in sorted({1, chunks}):
                yield Schedule(mlp_passes=passes, fc1_chunks=count, fc1_groups=groups)


def stored_bytes(codec: Codec, n: int, k: int, nonzeros: float) -> int:
    """Bytes of an `[n][k]` matrix with so many non-zero trits an output channel; of `gaps` about."""
    if codec is Codec.GAPS:
        return int(n * (4 + nonzeros / 2))
    return matrix_bytes(codec, n, k)


def nonzeros_of(m: IntegerLinear) -> float:
    """Non-zero trits an output channel, on average."""
    return float(np.count_nonzero(m.trits) / m.trits.shape[0])


_LAYERS: dict[str, Callable[[IntegerBlock], IntegerLinear]] = {
    "attn.q": lambda block: block.q,
    "attn.k": lambda block: block.k,
    "attn.v": lambda block: block.v,
    "attn.proj": lambda block: block.proj,
    "mlp.fc1": lambda block: block.fc1,
    "mlp.fc2": lambda block: block.fc2,
}


def _layer(vit: IntegerViT, name: str) -> list[IntegerLinear]:
    return [_LAYERS[name](block) for block in vit.blocks]


# --- the skeleton --------------------------------------------------------------------------------------------


def _empty(m: IntegerLinear) -> IntegerLinear:
    n = m.trits.shape[0]
    zeros = np.zeros(n, np.int64)
    return IntegerLinear(np.broadcast_to(np.int8(0), m.trits.shape), zeros + 1, zeros, zeros)


@functools.lru_cache(maxsize=256)
def _zeros(n: int, k: int) -> bytes:
    return encode_matrix(np.zeros((n, k), np.int8), Codec.BASE3)


def skeleton(vit: IntegerViT) -> IntegerViT:
    """A model of the same shapes, of one block and without weights: its arena is that of the model."""
    blocks = tuple(
        replace(
            block, q=_empty(block.q), k=_empty(block.k), v=_empty(block.v), proj=_empty(block.proj),
            fc1=_empty(block.fc1), fc2=_empty(block.fc2),
        )
        for block in vit.blocks[:1]
    )  # fmt: skip
    heads = tuple(_empty(head) for head in vit.heads_out)
    return replace(vit, blocks=blocks, patch_embed=_empty(vit.patch_embed), heads_out=heads, meta={})


def _draft(vit: IntegerViT, schedule: Schedule) -> tuple[ModelWriter, bytes]:
    """Lay a skeleton out: what was written, and the file without its plan."""
    writer = ModelWriter(vit, Codec.BASE3, schedule, lambda trits, _: _zeros(*trits.shape))
    return writer, writer.draft()


class _Judge:
    """Costs of the schedules of one model."""

    def __init__(
        self, vit: IntegerViT, codec: Codec, planner: Planner, cost: CostModel | None = None, cores: int = CORES
    ) -> None:
        self.vit, self.codec, self.planner, self.cost, self.cores = vit, codec, planner, cost, cores
        self.skeleton = skeleton(vit)
        layers = {f"blocks.0.{name}": _layer(vit, name) for name in _LAYERS if vit.blocks}
        layers["patch_embed.proj"] = [vit.patch_embed]
        layers |= {name: [m] for name, m in zip(("head", "head_dist"), vit.heads_out, strict=False)}
        self.nonzeros = {name: sum(map(nonzeros_of, found)) / len(found) for name, found in layers.items()}
        self._judged: dict[Schedule, Alternative] = {}
        self._known: dict[Work, float] = {}
        cache = (cost or esp32s3_cost()).cache
        self._cached_bytes = cache.bytes - CACHE_SPARE_BYTES if cache is not None else CACHE_BYTES

    def judge(self, schedule: Schedule) -> Alternative:
        """What a schedule costs."""
        if schedule not in self._judged:
            self._judged[schedule] = self._judge(schedule)
        return self._judged[schedule]

    def possible(self, schedule: Schedule) -> bool:
        """Whether the model would not have too many operators."""
        return schedule.operators(len(self.vit.blocks), self.vit.heads) <= MAX_OPERATORS

    def _judge(self, schedule: Schedule) -> Alternative:
        writer, file = _draft(self.skeleton, schedule)
        arena_bytes = self.planner(file).arena_bytes
        work, reads = self._work(writer)
        per_token = self.vit.scale_mode is ScaleMode.PER_TOKEN
        return Alternative(
            schedule, arena_bytes, sum(op.flash_bytes * op.times for op in work), reads,
            None if per_token else estimate_cycles(work, self.cores, self.cost, self._known),
            sum(op.times for op in work),
        )  # fmt: skip

    def _work(self, writer: ModelWriter) -> tuple[list[Work], int]:
        """The work of the whole model, and how often the same weights are read from flash at most."""
        vit, found = self.vit, list[Work]()
        cache: dict[tuple[str, int], int] = {}  # bytes of each matrix, the latest one last
        reads: dict[tuple[str, int], int] = {}
        for op in writer.build.operators:
            rows, inputs, channels = op["rows"], op["k"], op["n"]
            nonzeros, flash, output = 0.0, 0, ""
            if op.kind in (OpKind.LINEAR, OpKind.PATCH_EMBED):
                nonzeros = self.nonzeros[op.name]
                size = stored_bytes(self.codec, channels, inputs, nonzeros) + 4 * channels
                key = op.name, op.channels[0] if op.channels else 0
                newer = list(cache)[list(cache).index(key) :] if key in cache else []
                if not newer or sum(cache[k] for k in newer) > self._cached_bytes:
                    flash = size
                    reads[key] = reads.get(key, 0) + 1
                cache.pop(key, None)
                cache[key] = size
                output = _output_of(op, writer.build.dtype(op.output))
            times = len(vit.blocks) if op.name.startswith("blocks.") else 1
            work = Work(op.kind, rows, inputs, channels, nonzeros, self.codec, output, flash, times)
            if op.kind is OpKind.PATCH_EMBED:
                shape = Patches(*vit.image_size, vit.channels, vit.patch_size, len(vit.prefix))
                work = replace(work, rows=vit.patches, patches=shape)
            elif op.kind is OpKind.ATTENTION:
                strided = writer.build.columns(op.inputs[1]) != op["head_dim"]
                columns = op["heads"] * op["head_dim"]
                work = replace(work, rows=vit.tokens, channels=columns, heads=op["heads"], strided=strided)
            elif op.kind in (OpKind.LAYERNORM, OpKind.MEAN_POOL):
                work = replace(work, channels=vit.embed_dim)
            found.append(replace(work, as_row=op.name in ("head", "head_dist")))
        return found, max(reads.values())


def _output_of(op: DraftOperator, dtype: DType) -> str:
    if dtype is DType.I16:
        return "i16_add" if op.flags & OP_ADD else "i16_set"
    return "table" if op.flags & OP_TABLE else "i8_127" if op["limit"] == 127 else "i8"


# --- choosing ------------------------------------------------------------------------------------------------


_MOST_OF_HALF = MAX_OPERATORS // 2  # operators of half a block, so that the skeleton of two halves is not refused


def _time(alternative: Alternative) -> tuple[float, int, int]:
    return alternative.cycles or 0.0, alternative.arena_bytes, alternative.operators


def _front(found: Iterable[Alternative]) -> list[Alternative]:
    """Those that no other one beats in both arena and time, from the largest arena to the smallest."""
    front: list[Alternative] = []
    for alternative in sorted(found, key=_time):
        if not front or alternative.arena_bytes < front[-1].arena_bytes:
            front.append(alternative)
    return front


def _alternatives(judge: _Judge) -> list[Alternative]:
    vit = judge.vit
    if vit.scale_mode is ScaleMode.PER_TOKEN or not vit.blocks:
        return [judge.judge(Schedule())]
    # Each half of a block is judged with the other one as small as it can be.
    attentions = [
        s for s in attention_candidates(vit) if judge.possible(s) and s.operators(1, vit.heads) < _MOST_OF_HALF
    ]
    mlps = [
        s for s in mlp_candidates(vit, judge.codec) if judge.possible(s) and s.operators(1, vit.heads) < _MOST_OF_HALF
    ]
    least = _join(attentions[-1], Schedule(mlp_passes=max(s.mlp_passes for s in mlps)))
    judged_attentions = [judge.judge(_join(s, least)) for s in attentions]
    judged_mlps = [judge.judge(_join(least, s)) for s in mlps]
    found = []
    for limit in sorted({a.arena_bytes for a in judged_attentions + judged_mlps}):
        pairs = sorted(
            ((a, m) for a in judged_attentions for m in judged_mlps if max(a.arena_bytes, m.arena_bytes) <= limit),
            key=lambda pair: (_time(pair[0])[0] + _time(pair[1])[0], pair[0].operators + pair[1].operators),
        )
        both = (_join(attention.schedule, mlp.schedule) for attention, mlp in pairs)
        if best := next(filter(judge.possible, both), None):
            found.append(judge.judge(best))
    return _front(found)


def _join(attention: Schedule, mlp: Schedule) -> Schedule:
    """The attention of one schedule, the MLP of another."""
    return replace(mlp, heads_split=attention.heads_split, attention_groups=attention.attention_groups)


def _runtime_planner() -> Planner:
    from tvhil.runtime import plan_memory

    return plan_memory


def _split_planner(fast_bytes: int) -> Planner:
    from tvhil.runtime import plan_memory

    return functools.partial(plan_memory, fast_bytes=fast_bytes)


def _in_psram(judge: _Judge, weighed: Iterable[Alternative], fast_bytes: int, planner: Planner) -> list[Alternative]:
    """Those with the fewest bytes read again and again from PSRAM first, then the fastest; arenas by this planner.

    A linear operator reads all of its input for every output channel. Where that is in PSRAM and larger than the data
    cache it takes several times as long, which no cost model here knows; an input that stays in the cache is read once.
    """
    found = []
    for alternative in weighed:
        writer, file = _draft(judge.skeleton, alternative.schedule)
        made, tensors = planner(file), read_model(file, check_plan=False).tensors
        again = 0
        for op in writer.build.operators:
            t = op.inputs[0]
            if op.kind is OpKind.LINEAR and made.offsets[t] + tensors[t].bytes > fast_bytes:
                size = align(op["rows"], BLOCK_TOKENS) * op["k"]
                times = len(judge.vit.blocks) if op.name.startswith("blocks.") else 1
                again += times * size * (op["n"] if size > CACHE_BYTES else 1)
        found.append((again, _time(alternative), replace(alternative, arena_bytes=made.arena_bytes)))
    return [alternative for _, _, alternative in sorted(found, key=lambda entry: entry[:2])]


def plan(
    vit: IntegerViT,
    codec: Codec = Codec.BASE3,
    arena_bytes: int | None = None,
    psram_bytes: int | None = None,
    planner: Planner | None = None,
    cost: CostModel | None = None,
    cores: int = CORES,
) -> tuple[bytes, Planned]:
    """Pack a model with the fastest schedule that fits.

    Args:
        vit: the model.
        codec: how its trits are stored.
        arena_bytes: what the board has for activations in its internal memory; None for any.
        psram_bytes: the size of an arena in PSRAM, whose first `arena_bytes` are the internal memory; used only where
            nothing fits that alone. None for none. The time of PSRAM is not in the cost model.
        planner: plans the memory; the C runtime's by default.
        cost: of the board, with PIE kernels; the ESP32-S3's by default.
        cores: of the board.

    Returns:
        The file, and what was weighed.

    Raises:
        NothingFitsError: with the smallest arena there is and what would have to change.
    """
    planner = planner or _runtime_planner()
    judge = _Judge(vit, codec, planner, cost, cores)
    weighed = _alternatives(judge)
    for alternative in sorted(weighed, key=_time):
        if arena_bytes is None or alternative.arena_bytes <= arena_bytes:
            file, chosen = _pack(vit, codec, planner, alternative)
            if arena_bytes is None or chosen.arena_bytes <= arena_bytes:
                return file, Planned(chosen, tuple(weighed), arena_bytes)
    if psram_bytes is not None and arena_bytes is not None:
        split = _split_planner(arena_bytes)
        tried = [(alternative, split) for alternative in _in_psram(judge, weighed, arena_bytes, split)]
        tried += [(alternative, planner) for alternative in sorted(weighed, key=_time)]  # any plan will do, if it fits
        for alternative, its_planner in tried:
            if alternative.arena_bytes <= psram_bytes:
                file, chosen = _pack(vit, codec, its_planner, alternative)
                if chosen.arena_bytes <= psram_bytes:
                    return file, Planned(chosen, tuple(weighed), arena_bytes, "psram")
    raise NothingFitsError(_refusal(judge, weighed[-1], arena_bytes or 0, psram_bytes))


def _pack(vit: IntegerViT, codec: Codec, planner: Planner, alternative: Alternative) -> tuple[bytes, Alternative]:
    plans: list[Plan] = []

    def record(file: bytes) -> Plan:
        plans.append(planner(file))
        return plans[0]

    file = pack_vit(vit, codec, record, alternative.schedule)
    return file, replace(alternative, arena_bytes=plans[0].arena_bytes)


# --- refusing ------------------------------------------------------------------------------------------------


def _refusal(judge: _Judge, smallest: Alternative, arena_bytes: int, psram_bytes: int | None) -> str:
    vit = judge.vit
    advice = []
    image = _largest_image(judge, smallest.schedule, arena_bytes)
    if image is not None:
        tokens = (image[0] // vit.patch_size) * (image[1] // vit.patch_size) + len(vit.prefix)
        advice.append(f"images of {image[0]}x{image[1]} ({tokens} tokens instead of {vit.tokens})")
    if vit.scale_mode is ScaleMode.PER_TOKEN:
        advice.append("static activation scales (layers with per-token scales are never split)")
    elif vit.embed_dim // vit.heads % BLOCK_TOKENS:
        advice.append("heads whose dimension is a multiple of 16 (others are never split)")
    advice.append("a narrower model")
    if psram_bytes is None:
        advice.append("a board with PSRAM")
    external = "" if psram_bytes is None else f", nor one of {psram_bytes:,} in PSRAM"
    return (
        f"model {vit.name} does not fit an arena of {arena_bytes:,} bytes{external}: the smallest plan needs "
        f"{smallest.arena_bytes:,} ({smallest.schedule.describe()}), with {_fullest(judge, smallest.schedule)}. "
        f"It takes {_either(advice)}"
    )


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])}, or {choices[-1]}"


def _fullest(judge: _Judge, schedule: Schedule) -> str:
    """What is alive where most is: 'stream 79,872, blocks.0.attn 39,936 alive at blocks.0.attn.v'."""
    _, file = _draft(judge.skeleton, schedule)
    plan = judge.planner(file)
    model = read_model(file, check_plan=False)
    lifetimes = list(model.lifetimes())

    partner, lead = model.image_partner(), model.image_lead() or 0

    def alive(index: int) -> list[tuple[str, int]]:
        found = {
            t: (tensor.name, tensor.bytes)
            for t, (tensor, (first, last)) in enumerate(zip(model.tensors, lifetimes, strict=True))
            if first <= index <= last
        }
        if partner is not None and {0, partner} <= found.keys():  # the stream lies over the image that it is made from
            if found[partner][1] >= found[0][1] + lead:
                del found[0]
            else:
                found[partner] = "stream ahead of it", lead
        scratch = ("scratch", plan.scratches[index][1])
        return sorted((part for part in (*found.values(), scratch) if part[1]), key=lambda part: -part[1])

    index = max(range(len(model.operators)), key=lambda i: sum(size for _, size in alive(i)))
    return f"{', '.join(f'{name} {size:,}' for name, size in alive(index))} alive at {model.operators[index].name}"


def _largest_image(judge: _Judge, schedule: Schedule, arena_bytes: int) -> tuple[int, int] | None:
    """The largest image of the same shape, in whole patches, whose smallest plan fits."""
    vit = judge.vit
    lines, columns = (side // vit.patch_size for side in vit.image_size)
    for smaller in range(lines - 1, 0, -1):
        size = smaller * vit.patch_size, max(1, columns * smaller // lines) * vit.patch_size
        _, file = _draft(_resized(judge.skeleton, size), schedule)
        if judge.planner(file).arena_bytes <= arena_bytes:
            return size
    return None


def _resized(vit: IntegerViT, image_size: tuple[int, int]) -> IntegerViT:
    patches = (image_size[0] // vit.patch_size) * (image_size[1] // vit.patch_size)
    return replace(vit, image_size=image_size, position=np.zeros((patches, vit.embed_dim), np.int8))


__all__ = [
    "Alternative",
    "NothingFitsError",
    "Planned",
    "Work",
    "estimate_cycles",
    "plan",
]
