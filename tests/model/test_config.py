import pytest
from pydantic import ValidationError

from model.config import PRESETS, MAEConfig, Preprocessing


def test_sizes_that_follow_from_others() -> None:
    config = MAEConfig(image_size=96, patch_size=8, embed_dim=64, depth=1, num_heads=2)
    assert (config.grid, config.num_patches, config.patch_dim) == (12, 144, 192)
    assert config.has_decoder
    assert not MAEConfig(embed_dim=64, depth=1, num_heads=2, decoder_depth=0).has_decoder


@pytest.mark.parametrize(
    ("name", "patch", "encoder", "decoder"),
    [
        ("mae_tiny", 16, (192, 12, 3), (128, 2, 4)),
        ("mae_small", 16, (384, 12, 6), (256, 4, 8)),
        ("mae_base", 16, (768, 12, 12), (512, 8, 16)),
        ("mae_large", 16, (1024, 24, 16), (512, 8, 16)),
        ("mae_huge", 14, (1280, 32, 16), (512, 8, 16)),
    ],
)
def test_presets_are_the_published_sizes(name: str, patch: int, encoder: tuple, decoder: tuple) -> None:
    preset = PRESETS[name]
    assert (preset.name, preset.patch_size, preset.image_size) == (name, patch, 224)
    assert (preset.embed_dim, preset.depth, preset.num_heads) == encoder
    assert (preset.decoder_embed_dim, preset.decoder_depth, preset.decoder_num_heads) == decoder


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 225}, "not a multiple of patch_size 16"),
        ({"num_heads": 0}, "the encoder's width 64 is not a multiple of its 0 heads"),
        ({"num_heads": 5}, "the encoder's width 64 is not a multiple of its 5 heads"),
        ({"decoder_num_heads": 7}, "the decoder's width 512 is not a multiple of its 7 heads"),
        ({"embed_dim": 66, "num_heads": 2}, "sine-cosine positions need the encoder's width"),
        ({"depth": 0}, "greater than 0"),
        ({"layers": 3}, "Extra inputs are not permitted"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MAEConfig.model_validate({"embed_dim": 64, "depth": 1, "num_heads": 2} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stages": ()}, "a resnet needs stages"),
        ({"num_heads": 2}, "num_heads means nothing to it"),
        ({"patch_size": 32}, "patch_size 32 is not the stride of 3 stages, 16"),
        ({"embed_dim": 64}, "embed_dim 64 is not the width of the last stage, 32"),
        ({"depth": 3}, "depth 3 is not the number of blocks in all stages, 4"),
        ({"decoder_embed_dim": 6}, "the decoder's width 6 cannot be halved in each of its 2 upsamplings"),
        ({"image_size": 40}, "not a multiple of patch_size 16"),
        ({"stages": ((8, 1), (16, 0), (32, 1))}, "greater than 0"),
        ({"family": "vit", "num_heads": 2}, "a vit has no stages"),
        ({"family": "mixer"}, "'vit' or 'resnet'"),
    ],
)
def test_stages_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    stages = {"family": "resnet", "embed_dim": 32, "depth": 4, "stages": ((8, 1), (16, 2), (32, 1))}
    assert not MAEConfig.model_validate(stages).has_cls
    with pytest.raises(ValidationError, match=message):
        MAEConfig.model_validate(stages | wrong)


def test_learned_positions_may_be_of_any_width() -> None:
    assert MAEConfig(embed_dim=66, depth=1, num_heads=2, decoder_depth=0, positions="learned").embed_dim == 66


def test_the_decoder_is_not_judged_where_there_is_none() -> None:
    assert not MAEConfig(embed_dim=64, depth=1, num_heads=2, decoder_depth=0, decoder_num_heads=7).has_decoder


@pytest.mark.parametrize(
    ("crop_fraction", "image_size", "short_side"),
    [
        (1.0, 224, 224),
        (0.875, 224, 256),
        (0.9, 224, 248),  # timm rounds 248.9 down
        (224 / 400, 224, 400),  # just below 400 in floating point
        (0.875, 448, 512),
    ],
)
def test_short_side_before_the_crop(crop_fraction: float, image_size: int, short_side: int) -> None:
    assert Preprocessing(crop_fraction=crop_fraction).resized_short_side(image_size) == short_side


@pytest.mark.parametrize(
    "wrong", [{"std": (0.2, 0.0, 0.2)}, {"mean": (0.5, float("nan"), 0.5)}, {"crop_fraction": 0}, {"filter": "cubic"}]
)
def test_preparations_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(wrong)
