"""The description of the service as JSON."""

import orjson

from model.engines.base import MeasuredMode
from service.api.info import describe
from service.settings import Settings
from tests.support.engines import fake_info


def test_how_torch_runs_on_a_gpu_is_shown() -> None:
    choice = MeasuredMode(
        mode="cuda graphs",
        images_per_s={"eager": {1: 150, 64: 9000}, "cuda graphs": {1: 800, 64: 9100}},
        left_out={"compile": "there is no C compiler"},
    )
    attention = {"encoder": "flash", "encoder_padded": "memory-efficient"}
    info = fake_info().model_copy(update={"torch": choice, "attention": attention})
    engine = orjson.loads(orjson.dumps(describe(info, Settings())))["engine"]
    assert engine["torch"] == {
        "mode": "cuda graphs",
        "images_per_s": {"eager": {"1": 150, "64": 9000}, "cuda graphs": {"1": 800, "64": 9100}},
        "left_out": {"compile": "there is no C compiler"},
    }
    assert engine["attention"] == attention
    assert describe(fake_info(), Settings())["engine"]["torch"] is None
