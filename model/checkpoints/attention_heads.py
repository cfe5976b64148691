"""The numbers of attention heads, which tensors do not tell: stated by someone, or else guessed from the widths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.checkpoints.errors import WeightsError
from model.config import MAEConfig

ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width: ViT-Tiny to ViT-Huge
DECODER_HEADS = {128: 4, 256: 8, 512: 16}
TIMM_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}
TIMM_NAME = re.compile(r"vit_(tiny|small|base|large|huge)_patch\d+_\d+(\..*)?")
UPSTREAM_NAME = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+(_dec512d8b)?")


class HeadCounts(NamedTuple):
    """Numbers of attention heads; None is unknown."""

    encoder: int | None = None
    decoder: int | None = None

    @classmethod
    def of(cls, heads: Sequence[int] | None) -> HeadCounts:
        """The counts that HEADS gives: of the encoder, or of encoder and decoder."""
        return cls(*heads) if heads else cls()

    def or_else(self, other: HeadCounts) -> HeadCounts:
        """These counts, and those of `other` where these are unknown."""
        return HeadCounts(self.encoder or other.encoder, self.decoder or other.decoder)


def replace_head_counts(path: Path, config: MAEConfig, counts: HeadCounts) -> tuple[MAEConfig, list[str]]:
    """The config with the counts that HEADS states, and a sentence if the checkpoint at `path` tells others.

    Raises:
        WeightsError: the model is convolutional.
        ValidationError: a width is no multiple of its count.
    """
    if counts.encoder is None:
        return config, []
    if config.family != "vit":
        raise WeightsError(f"{path} is convolutional and has no attention heads: HEADS means nothing to it")
    changes = {"num_heads": counts.encoder}
    if counts.decoder is not None and config.has_decoder:
        changes["decoder_num_heads"] = counts.decoder
    told = [f"{getattr(config, field)} ({field})" for field in changes if getattr(config, field) != changes[field]]
    if not told:
        return config, []
    note = f"HEADS replaces the numbers of attention heads that it tells: {' and '.join(told)}"
    return MAEConfig(**{**config.model_dump(), **changes}), [note]


def heads_of_arguments(arguments: Mapping[str, Any], width: int, decoder_width: int | None) -> HeadCounts:
    """The counts that the arguments of a training script tell, by themselves or by the name of an architecture.

    A name counts only if the widths are those of the architecture. Forks changed the heads of vit_tiny and vit_small
    under these names, so of those only timm's full names count.
    """
    stated = HeadCounts(_count(arguments.get("num_heads")), _count(arguments.get("decoder_num_heads")))
    name = next((arguments[key] for key in ("model", "arch") if isinstance(arguments.get(key), str)), "")
    if upstream := UPSTREAM_NAME.fullmatch(name):
        if TIMM_WIDTHS[upstream[2]] == width:
            stated = stated.or_else(HeadCounts(ENCODER_HEADS[width], 16 if decoder_width == 512 else None))
        return stated
    return stated.or_else(heads_of_architecture(name, width))


def heads_of_architecture(name: str, width: int) -> HeadCounts:
    """The count that one of timm's full names tells, such as vit_base_patch16_224."""
    match = TIMM_NAME.fullmatch(name)
    return HeadCounts(ENCODER_HEADS[width]) if match and TIMM_WIDTHS[match[1]] == width else HeadCounts()


def complete_heads(
    path: Path, stated: HeadCounts, width: int, decoder_width: int | None
) -> tuple[dict[str, int], list[str]]:
    """The fields of the config, and a sentence for those counts that had to be guessed from the width.

    Args:
        path: the file or folder of the weights, for messages.
        stated: what is known.
        width: D.
        decoder_width: the decoder's width; None without a decoder.

    Raises:
        WeightsError: a width is unusual, and nobody has stated the number of heads.
    """
    fields: dict[str, int] = {}
    guesses: list[str] = []
    parts = [("encoder", "num_heads", stated.encoder, width, ENCODER_HEADS)]
    if decoder_width is not None:
        parts.append(("decoder", "decoder_num_heads", stated.decoder, decoder_width, DECODER_HEADS))
    for part, field, count, part_width, usual in parts:
        if count is None and part_width not in usual:
            raise WeightsError(
                f"{path} does not tell the number of attention heads, and its {part} is of an unusual width, "
                f"{part_width}: say HEADS={_example(part)} (--heads {_example(part)}), with the numbers that it was "
                "trained with"
            )
        fields[field] = count or usual[part_width]
        if count is None:
            guesses.append(f"{fields[field]} in the {part} ({part_width} wide)")
    if not guesses:
        return fields, []
    return fields, [
        f"the number of attention heads is guessed from the width: {', '.join(guesses)}; "
        "if it was trained with another number, vectors are wrong without HEADS (--heads)"
    ]


def _example(part: str) -> str:
    return "12" if part == "encoder" else "12,16"


def _count(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
