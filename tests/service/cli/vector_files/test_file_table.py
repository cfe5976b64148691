"""The table of files that have rows, compared with a dictionary."""

import random

import pytest

from service.cli.vector_files import file_table
from service.cli.vector_files.file_table import FileEntry, FileTable


def test_it_knows_what_a_dictionary_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_table, "MAX_UNSORTED", 20)
    draw, table, expected = random.Random(0), FileTable(), dict[str, FileEntry]()
    for number in range(500):
        file = f"/photographs/{draw.randrange(200)}.png"
        size, modified = draw.choice([None, 0, 12]), draw.choice([None, -5, 1 << 60])
        entry = FileEntry(size, modified, number, -1, number % 3 == 0, number % 2 == 0)
        table.put(file, entry)
        expected[file] = entry
    for number in range(250):
        file = f"/photographs/{number}.png"
        assert table.find(file) == expected.get(file)
