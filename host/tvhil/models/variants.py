# SPDX-License-Identifier: Apache-2.0
"""The registered variants. Sources: ViT (Dosovitskiy et al., arXiv 2010.11929), DeiT (Touvron et al., arXiv
2012.12877), DeiT-III (Touvron et al., arXiv 2204.07118); preprocessing as timm's weights of the same name.
"""

from __future__ import annotations

from tvhil.models.config import Preprocessing, ViTConfig
from tvhil.models.registry import register_model

_HALF = (0.5, 0.5, 0.5)
_INCEPTION = Preprocessing(224, mean=_HALF, std=_HALF)
_CIFAR = Preprocessing(32, crop_pct=1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_DIGITS = Preprocessing(8, crop_pct=1.0, mode="L", mean=(0.3053,), std=(0.3760,))


@register_model
def vit_digits() -> ViTConfig:
    """ViT for scikit-learn's 8x8 handwritten digits: 4 blocks of 64 channels, under 64 KB when ternary."""
    return ViTConfig(
        image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=64, depth=4, num_heads=4,
        mlp_ratio=3.0, preprocessing=_DIGITS,
    )  # fmt: skip


@register_model
def vit_cifar_nano() -> ViTConfig:
    """ViT for 32x32 images in 4x4 patches: 6 blocks of 128 channels, 1.2 M parameters."""
    return ViTConfig(
        image_size=32, patch_size=4, num_classes=10, embed_dim=128, depth=6, num_heads=4,
        preprocessing=_CIFAR,
    )  # fmt: skip


@register_model
def vit_cifar_tiny() -> ViTConfig:
    """ViT for 32x32 images in 4x4 patches: 12 blocks of 192 channels (DeiT-Tiny's body), 5.4 M parameters."""
    return ViTConfig(
        image_size=32, patch_size=4, num_classes=10, embed_dim=192, depth=12, num_heads=3,
        preprocessing=_CIFAR,
    )  # fmt: skip


@register_model
def vit_cifar_small() -> ViTConfig:
    """ViT for 32x32 images in 4x4 patches: 12 blocks of 384 channels (DeiT-Small's body), 21 M parameters."""
    return ViTConfig(
        image_size=32, patch_size=4, num_classes=10, embed_dim=384, depth=12, num_heads=6,
        preprocessing=_CIFAR,
    )  # fmt: skip


@register_model
def vit_tiny() -> ViTConfig:
    """ViT-Tiny/16 with the preprocessing of Google's AugReg weights, 5.7 M parameters."""
    return ViTConfig(embed_dim=192, depth=12, num_heads=3, preprocessing=_INCEPTION)


@register_model
def vit_small() -> ViTConfig:
    """ViT-Small/16 with the preprocessing of Google's AugReg weights, 22 M parameters."""
    return ViTConfig(embed_dim=384, depth=12, num_heads=6, preprocessing=_INCEPTION)


@register_model
def vit_base() -> ViTConfig:
    """ViT-Base/16 with the preprocessing of Google's weights, 87 M parameters."""
    return ViTConfig(embed_dim=768, depth=12, num_heads=12, preprocessing=_INCEPTION)


@register_model
def deit_tiny() -> ViTConfig:
    """DeiT-Tiny, 5.7 M parameters, 1.25 G MAC at 224."""
    return ViTConfig(embed_dim=192, depth=12, num_heads=3)


@register_model
def deit_small() -> ViTConfig:
    """DeiT-Small, 22 M parameters, 4.6 G MAC at 224."""
    return ViTConfig(embed_dim=384, depth=12, num_heads=6)


@register_model
def deit_base() -> ViTConfig:
    """DeiT-Base, 87 M parameters, 17.6 G MAC at 224."""
    return ViTConfig(embed_dim=768, depth=12, num_heads=12)


@register_model
def deit_tiny_distilled() -> ViTConfig:
    """DeiT-Tiny with the distillation token and its head, 5.9 M parameters."""
    return ViTConfig(embed_dim=192, depth=12, num_heads=3, distilled=True)


@register_model
def deit_small_distilled() -> ViTConfig:
    """DeiT-Small with the distillation token and its head, 22 M parameters."""
    return ViTConfig(embed_dim=384, depth=12, num_heads=6, distilled=True)


@register_model
def deit_base_distilled() -> ViTConfig:
    """DeiT-Base with the distillation token and its head, 87 M parameters."""
    return ViTConfig(embed_dim=768, depth=12, num_heads=12, distilled=True)


@register_model
def deit3_small() -> ViTConfig:
    """DeiT-III-Small: LayerScale, no position embedding on the class token, 22 M parameters."""
    return ViTConfig(embed_dim=384, depth=12, num_heads=6, no_embed_class=True, layer_scale=1e-6)


@register_model
def deit3_base() -> ViTConfig:
    """DeiT-III-Base: LayerScale, no position embedding on the class token, 87 M parameters."""
    return ViTConfig(embed_dim=768, depth=12, num_heads=12, no_embed_class=True, layer_scale=1e-6)
