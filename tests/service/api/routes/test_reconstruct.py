"""POST /reconstruct on the whole app."""

import io
import zipfile

from tests.service.api.routes.conftest import Start
from tests.support.clients import grey
from tests.support.engines import FakeEngine


def test_the_archive_of_several_pictures_is_readable_and_does_not_tell_the_time(start: Start) -> None:
    client = start(FakeEngine())
    files = [("image", ("x", grey(5)))] * 2
    answer = client.post("/reconstruct?seed=1", files=files, headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        members = {member.filename: member for member in archive.infolist()}
    assert list(members) == ["0000.png", "0001.png", "reconstructions.json"]
    for member in members.values():
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert member.external_attr >> 16 & 0o444 == 0o444
