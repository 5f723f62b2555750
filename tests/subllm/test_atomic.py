"""What is written whole is there whole, or not at all."""

import pytest

from subllm.atomic import written_whole


def test_a_file_or_folder_appears_when_it_is_complete(tmp_path):
    for name in ("file", "folder"):
        with written_whole(tmp_path / name) as partial:
            if name == "file":
                partial.write_text("new")
            else:
                partial.mkdir()
                (partial / "inside").write_text("new")
            assert not (tmp_path / name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "folder" / "inside").read_text() == (tmp_path / "file").read_text() == "new"


def test_what_was_there_stays_when_writing_fails(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(tmp_path / "file") as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    with written_whole(tmp_path / "file") as partial:
        pass_on = partial
        partial.write_text("x")
    pass_on.mkdir()
    (pass_on / "left").write_text("y")
    with written_whole(tmp_path / "file") as partial:
        partial.write_text("z")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["z"]
