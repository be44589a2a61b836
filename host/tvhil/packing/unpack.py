# SPDX-License-Identifier: Apache-2.0
"""The integers of a model file: the inverse of `writer.pack_vit`, whatever schedule the file was packed with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvhil.errors import InputError
from tvhil.packing.format import OpKind
from tvhil.packing.integer_vit import (
    IntegerAttention,
    IntegerBlock,
    IntegerLayerNorm,
    IntegerLinear,
    IntegerViT,
)
from tvhil.packing.reader import Operator, TvitModel
from tvhil.packing.trits import Codec


def unpack_vit(model: TvitModel) -> IntegerViT:
    """Put the pieces of every layer together again.

    Raises:
        InputError: the operators are not those of a ViT as `pack_vit` writes it.
    """
    return _Unpacker(model).unpack()


def codec_of(model: TvitModel) -> Codec:
    """How the model's trits are stored: the codec of its first matrix."""
    return next(Codec(op["codec"]) for op in model.operators if "codec" in op.params)


class _Unpacker:
    def __init__(self, model: TvitModel) -> None:
        self.model = model
        self.by_name: dict[tuple[OpKind, str], list[Operator]] = {}
        for op in model.operators:
            self.by_name.setdefault((op.kind, op.name), []).append(op)

    def pieces(self, kind: OpKind, name: str) -> list[Operator]:
        if (kind, name) not in self.by_name:
            raise InputError(f"model {self.model.name} has no {kind.name.lower()} {name}: it is no ViT packed by tvhil")
        return self.by_name[kind, name]

    def linear(self, name: str, shape: tuple[int, int], pieces: Sequence[Operator] | None = None) -> IntegerLinear:
        """The rows of the pieces one below the other; without pieces, the first operator of that name."""
        parts = [self.model.weights(op) for op in pieces or self.pieces(OpKind.LINEAR, name)[:1]]
        trits = np.concatenate([part.trits for part in parts])
        if trits.shape != shape:
            raise InputError(
                f"model {self.model.name}: the pieces of {name} make {trits.shape[0]} x {trits.shape[1]} weights, "
                f"not {shape[0]} x {shape[1]}: it is no ViT packed by tvhil"
            )
        gain, shift, bias = (np.concatenate([getattr(p, key) for p in parts]) for key in ("gain", "shift", "bias"))
        return IntegerLinear(trits, gain, shift, bias)

    def heads(self, name: str) -> list[Operator]:
        """One operator for each head, or for all heads: those of the first group of tokens."""
        return [op for op in self.pieces(OpKind.LINEAR, name) if op["output_row"] == 0]

    def chunks(self, name: str) -> list[Operator]:
        """One operator for each chunk of output channels."""
        at = {op["output_column"]: op for op in reversed(self.pieces(OpKind.LINEAR, name))}
        return [at[column] for column in sorted(at)]

    def layernorm(self, name: str) -> IntegerLayerNorm:
        op = self.pieces(OpKind.LAYERNORM, name)[0]
        gamma, beta = self.model.gamma_beta(op)
        return IntegerLayerNorm(
            gamma, beta, c=op["c_high"] << 32 | op["c_low"], beta_unit=op["beta_unit"],
            epsilon=op["epsilon_high"] << 32 | op["epsilon_low"], shift=op["shift"],
        )  # fmt: skip

    def block(self, at: str) -> IntegerBlock:
        info = self.model.info
        d, f = info.embed_dim, info.mlp_dim
        attention = self.pieces(OpKind.ATTENTION, at + "attn")[0]
        fc1 = self.pieces(OpKind.LINEAR, at + "mlp.fc1")[0]
        return IntegerBlock(
            norm1=self.layernorm(at + "norm1"),
            **{part: self.linear(f"{at}attn.{part}", (d, d), self.heads(f"{at}attn.{part}")) for part in "qkv"},
            q_limit=self.pieces(OpKind.LINEAR, at + "attn.q")[0]["limit"],
            attention=IntegerAttention(
                attention["score_shift"], attention["exp_multiplier"], attention["out_multiplier"],
                attention["out_shift"],
            ),
            proj=self.linear(at + "attn.proj", (d, d)),
            norm2=self.layernorm(at + "norm2"),
            fc1=self.linear(at + "mlp.fc1", (f, d), self.chunks(at + "mlp.fc1")),
            table=self.model.table(fc1),
            fc2=self.linear(at + "mlp.fc2", (d, f)),
        )  # fmt: skip

    def unpack(self) -> IntegerViT:
        model, info = self.model, self.model.info
        embed = self.pieces(OpKind.PATCH_EMBED, "patch_embed.proj")[0]
        weights = model.weights(embed)
        mean_pool = any(op.kind is OpKind.MEAN_POOL for op in model.operators)
        heads = [name for name in ("head", "head_dist") if (OpKind.LINEAR, name) in self.by_name]
        if not heads:
            raise InputError(f"model {model.name} has no head: it is no ViT packed by tvhil")
        return IntegerViT(
            name=info.name,
            image_size=(info.image_height, info.image_width),
            channels=info.image_channels,
            patch_size=info.patch_size,
            heads=info.heads,
            scale_mode=info.scale_mode,
            patch_embed=IntegerLinear(weights.trits, weights.gain, weights.shift, weights.bias),
            position=model.position(embed),
            position_multiplier=embed["position_multiplier"],
            prefix=model.prefix(embed),
            blocks=tuple(self.block(f"blocks.{i}.") for i in range(info.depth)),
            mean_pool=mean_pool,
            norm=self.layernorm("fc_norm" if mean_pool else "norm"),
            heads_out=tuple(self.linear(name, (info.classes, info.embed_dim)) for name in heads),
            logit_scale=info.logit_scale,
            parameters=info.parameters,
            meta=dict(model.meta),
        )


__all__ = ["codec_of", "unpack_vit"]
