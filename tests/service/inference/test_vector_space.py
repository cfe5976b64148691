"""The name of a vector space: what it tells apart, and what it does not."""

from model.engines.base import Parity, Quantisation
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters
from tests.support.engines import fake_info


def test_the_space_names_all_that_vectors_must_share() -> None:
    info = fake_info().model_copy(update={"model": "我的/m:1", "weights": "0123456789abcdef" * 4})
    colours = "0.485,0.456,0.406-0.229,0.224,0.225"
    pixels = f"{info.config.image_size}-short-1.0-bicubic-srgb-{colours}"
    heads = f"{info.config.num_heads}-heads"
    name = "%E6%88%91%E7%9A%84/m%3A1@0123456789ab"
    assert space_of(info, EmbedParameters()) == f"{name}:fp32:{pixels}:{heads}:mean"
    assert space_of(info, EmbedParameters(seed=4)) == space_of(info, EmbedParameters())
    every = EmbedParameters(pool="cls", whiten=True, normalize=True, keep=0.25)
    assert space_of(info, every) == f"{name}:fp32:{pixels}:{heads}:cls:whitened:unit:keep=0.25"
    short = EmbedParameters(dimensions=64, dtype="binary")
    assert space_of(info, short) == f"{name}:fp32:{pixels}:{heads}:mean:whitened:dimensions=64:binary"
    for dtype in ("float16", "int8"):  # roundings of the same vectors
        assert space_of(info, EmbedParameters(dtype=dtype)) == space_of(info, EmbedParameters())
    others = [
        {"model": "other"},
        {"weights": "f" * 64},
        {"computes": "emulated bf16"},
        {"config": info.config.model_copy(update={"image_size": 64})},
        {"config": info.config.model_copy(update={"num_heads": info.config.num_heads * 2})},
        {"preprocessing": info.preprocessing.model_copy(update={"crop_fraction": 0.875})},
        {"preprocessing": info.preprocessing.model_copy(update={"resize": "squash"})},
        {"preprocessing": info.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})},
    ]
    spaces = {space_of(info.model_copy(update=changes), EmbedParameters()) for changes in [{}, *others]}
    assert len(spaces) == 1 + len(others)
    assert all(space.isascii() and " " not in space for space in spaces)


def test_int8_that_was_calibrated_on_other_photographs_is_another_space() -> None:
    info = fake_info().model_copy(update={"precision": "int8", "computes": "int8"})

    def space(digest: str) -> str:
        figures = Quantisation(photographs=85, held_out=43, digest=digest, nncf="3.4", parity=Parity(cosine=1))
        return space_of(info.model_copy(update={"quantisation": figures}), EmbedParameters())

    first, second = space("0123456789abcdef" * 4), space("f" * 64)
    assert ":int8-0123456789ab:" in first and ":int8-ffffffffffff:" in second
    assert space_of(info, EmbedParameters()) not in (first, second)
