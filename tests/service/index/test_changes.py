"""What has changed since an index was written."""

from service.index.changes import FoundFile, compare_files, is_inside
from service.index.table import StoredFile


def test_new_replaced_gone_and_unchanged_images_are_told_apart() -> None:
    stored = {
        "/a/same": StoredFile(1, 10, None),
        "/a/longer": StoredFile(1, 10, None),
        "/a/later": StoredFile(1, 10, None),
        "/a/gone": StoredFile(1, 10, None),
        "/b/elsewhere": StoredFile(1, 10, None),
    }
    found = [
        FoundFile("/a/same", "same", 1, 10),
        FoundFile("/a/longer", "longer", 2, 10),
        FoundFile("/a/later", "later", 1, 11),
        FoundFile("/a/new", "new", 1, 10),
        FoundFile("/a/new", "link to new", 1, 10),
    ]
    changes = compare_files(stored, found, lambda file, known: file.startswith("/a/"))
    assert [image.path for image in changes.new] == ["new"]
    assert [image.path for image in changes.replaced] == ["longer", "later"]
    assert (changes.gone, changes.unchanged) == (["/a/gone"], 1)


def test_which_paths_lie_inside_others() -> None:
    assert is_inside("/a/b/c.jpg", {"/a"}) and is_inside("/a/b/c.jpg", {"/a/b/c.jpg"}) and is_inside("/a", {"/"})
    assert not is_inside("/ab/c.jpg", {"/a"}) and not is_inside("/a", {"/a/b"}) and not is_inside("s3://a/b", {"/"})
