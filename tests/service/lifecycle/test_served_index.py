"""The index is opened with the engine, whose vectors must be of its space."""

import logging
from pathlib import Path
from typing import Any

import pytest

from model.engines.base import ServedModel
from service.index.description import Approximation
from service.index.errors import ForeignSpace, ImageIndexError, MissingIndex
from service.index.store import ImageIndex
from service.inference.vector_space import space_of
from service.lifecycle.served_index import ServedIndex, check_index
from service.parameters import EmbedParameters
from service.service import LocalService
from service.settings import Settings
from tests.support.engines import fake_info
from tests.support.indexes import Compass, direction, write_index
from tests.support.queueing import run
from tests.support.waiting import until


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "cls.lance"
    write_index(path, {"a.png": direction(3)}, fake_info(), EmbedParameters(pool="cls"))
    return path


def test_an_index_knows_how_its_images_were_embedded(index: Path) -> None:
    served = ServedIndex(index, fake_info())
    assert served.embedding.pool == "cls" and served.rows == 1
    assert served.describe().space == space_of(fake_info(), EmbedParameters(pool="cls"))


def test_an_approximate_index_tells_its_recall(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Approximation(kind="IVF_FLAT", partitions=9, probes=2, recall=0.97, queries=100, rows=1000)
    monkeypatch.setattr(ImageIndex, "approximation", cells)
    described = ServedIndex(index, fake_info()).describe()
    assert (described.exact, described.recall) == (False, 0.97)


def test_an_index_of_other_weights_is_refused_by_both_names(index: Path) -> None:
    other = fake_info().model_copy(update={"weights": "1" * 64})
    with pytest.raises(ForeignSpace) as refused:
        ServedIndex(index, other)
    for info in (fake_info(), other):
        assert space_of(info, EmbedParameters(pool="cls")) in str(refused.value)
    assert str(index) in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingIndex, match="INDEX: there is no index"):
        check_index(tmp_path / "none.lance")
    (tmp_path / "empty.lance").mkdir()
    check_index(tmp_path / "empty.lance")
    with pytest.raises(ImageIndexError, match=r"empty\.lance is no index"):
        ServedIndex(tmp_path / "empty.lance", fake_info())


def test_a_service_with_a_foreign_index_ends_with_one_sentence(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Compass()
    engine.info = engine.info.model_copy(update={"weights": "1" * 64})

    def build(settings: Any, progress: Any) -> ServedModel:
        return ServedModel(engine)

    async def main() -> None:
        service = LocalService(Settings(index=index), build)
        service.start()
        await until(lambda: service.exit_code is not None, 30)
        assert service.exit_code == 1 and service.state == "lost"
        assert service.progress.startswith(
            f"the index cannot be opened: {index} holds vectors of the space fake@000000000000:"
        )
        await service.close()

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "Traceback" not in caplog.text and "fake@111111111111:" in caplog.text
