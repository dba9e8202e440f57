"""What is written is there whole, or what was there before still is."""

from pathlib import Path

import pytest

from pipelines.whole_files import whole_file, whole_folder, write_json


def write_half(path: Path) -> None:
    """Begin, and die."""
    path.write_text("a long text, half of which")
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with whole_file(path) as scratch:
        scratch.write_bytes(b"half")
        assert names(path.parent) == []
        scratch.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_who_dies_while_writing_leaves_the_old_file_and_the_next_writes_over_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as scratch:
        write_half(scratch)
    assert path.read_text() == "old"
    with whole_file(path) as scratch:
        scratch.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_the_old_one_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with whole_folder(folder) as scratch:
            (scratch / "inner").mkdir()
            (scratch / "inner" / content).write_text(content)
    assert [path.name for path in (folder / "inner").iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as scratch:
        write_half(scratch / "rubbish")
    with whole_folder(folder) as scratch:
        assert list(scratch.iterdir()) == []
        (scratch / "last").write_text("x")
    assert names(folder) == ["last"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_number_is_refused_and_nothing_lost(tmp_path: Path, value: float) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"ndcg": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"ndcg": value})
    assert path.read_text() == '{\n "ndcg": 0.5\n}'
