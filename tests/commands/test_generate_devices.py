"""`cxr generate` in several processes gives the files of one."""

from pathlib import Path

import pytest
from processes import on_ranks

from cxr_lightning.errors import UserError
from cxr_lightning.synthesis.folder import SyntheticFolder


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(make_set, tmp_path):
    one = make_set(tmp_path / "1" / "set", batch_size=2)
    two = make_set(tmp_path / "2" / "set", batch_size=2, devices=2)
    assert files(one) == files(two)
    assert list(two.parent.iterdir()) == [two]


def test_commands_of_several_ranks_make_one_set(make_set, tmp_path, monkeypatch, capsys):
    whole = files(make_set(tmp_path / "whole" / "set", batch_size=2))
    out = tmp_path / "ranks" / "set"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        assert not out.exists()
        monkeypatch.setenv("RANK", str(rank))
        make_set(out, batch_size=2)
        said = capsys.readouterr().out
        left = 4 - 2 * rank
        if left:
            assert f"process {rank} of 3 is done; {left} images are left to the others" in said
    assert files(out) == whole
    assert list(out.parent.iterdir()) == [out]
    make_set(out, batch_size=2)  # a rank that comes too late
    assert "already" in capsys.readouterr().out


def test_ranks_at_the_same_time_make_one_set(make_set, tmp_path):
    whole = files(make_set(tmp_path / "whole" / "set", batch_size=2))
    out = tmp_path / "ranks" / "set"
    on_ranks(lambda: make_set(out, batch_size=2))
    assert files(out) == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_set_that_another_process_finishes_meanwhile_is_well(make_set, tmp_path, monkeypatch):
    whole = files(make_set(tmp_path / "whole" / "set"))
    out = tmp_path / "twice" / "set"
    write, written = SyntheticFolder.write, []

    def interrupted(*args: object) -> None:
        written.append(args[1])
        if len(written) == 3:  # the same command, given once more, is faster
            make_set(out)
        write(*args)

    monkeypatch.setattr(SyntheticFolder, "write", interrupted)
    make_set(out)
    assert files(out) == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_something_else_makes_meanwhile_is_not_replaced(
    make_set, tmp_path, monkeypatch
):
    out = tmp_path / "set"
    write = SyntheticFolder.write

    def slow(*args: object) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("x")
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticFolder, "write", slow)
        with pytest.raises(UserError, match=rf"^out: {out} was made by something else meanwhile"):
            make_set(out)
    assert files(out) == {"mine": b"x"}
    (out / "mine").unlink()
    out.rmdir()
    assert files(make_set(out)) == files(make_set(tmp_path / "whole" / "set"))
