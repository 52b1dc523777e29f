"""What the commands share: help, errors of one line, and progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.command_line import add_outputs, check_outputs, command_parser, positive, read_run
from benchmarks.progress import Progress, duration


def test_help_shows_defaults_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("benchmarks.x", "First line.\n\n  kept as it stands")
    parser.add_argument("--rows", nargs="+", type=positive, default=(1, 8), help="query rows")
    parser.add_argument("--names", nargs="+", default=("a", "two words"), help="names")
    parser.add_argument("--folder", help="no default")
    parser.add_argument("--quick", action="store_true", help="a switch")
    add_outputs(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    said = capsys.readouterr().out
    assert "python -m benchmarks.x" in said
    assert "\n  kept as it stands" in said
    assert "query rows (default: 1 8)" in said
    assert "names (default: a 'two words')" in said
    assert said.count("default:") == 2


def test_a_number_below_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("benchmarks.x", None)
    parser.add_argument("--pairs", type=positive)
    for wrong in ("0", "-3", "three"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--pairs", wrong])
    assert "0 is too small: give 1 or more" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_known_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = command_parser("benchmarks.x", None)
    check_outputs(parser, tmp_path / "new" / "run.json", None)
    with pytest.raises(SystemExit):
        check_outputs(parser, tmp_path, None)
    assert "is a folder: name a file in it" in capsys.readouterr().err
    check_outputs(parser, None, tmp_path / "run.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        check_outputs(parser, None, tmp_path / "run.png")
    assert "install the extra `dev`" in capsys.readouterr().err


def test_an_absent_or_wrong_json_is_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"there is no file .*run\.json; JSON files in that folder: other\.json"):
        read_run(tmp_path / "run.json")
    with pytest.raises(ValueError, match="no `kind`"):
        read_run(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("kind: no")
    with pytest.raises(ValueError, match="is not a run's JSON"):
        read_run(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"kind": "online-load"}')
    assert read_run(tmp_path / "other.json")["kind"] == "online-load"


def test_progress_estimates_the_time_left_from_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(4, "cells", total_weight=100.0, clock=lambda: now[0])
    assert progress.state() == "0 of 4 cells"
    now[0] = 60.0
    progress.step("fraud, 1 row", weight=20.0)
    assert progress.state() == "1 of 4 cells, about 4 min left"
    assert "1 of 4 cells, about 4 min left: fraud, 1 row" in capsys.readouterr().err
    for _ in range(3):
        progress.step("fraud", weight=80.0 / 3)
    assert progress.state() == "4 of 4 cells"


def test_the_number_of_steps_can_be_corrected_during_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(5, "probes", clock=lambda: now[0])
    for num_left in (8, 3):
        now[0] += 10.0
        progress.expect(num_left)
        progress.step("50 requests/s")
    said = capsys.readouterr().err
    assert "1 of 9 probes, about 80 s left" in said
    assert "2 of 5 probes, about 30 s left" in said


def test_wrong_options_are_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command_parser("benchmarks.x", None).parse_args(["--bogus"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said == "python -m benchmarks.x: unrecognized arguments: --bogus (--help describes the options)\n"


def test_progress_is_printed_no_more_often_than_asked_and_always_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    progress = Progress(10, "runs", every_s=5.0, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 1.0
        progress.step("load")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "6", "10"]


def test_durations_are_rounded_for_a_reader() -> None:
    assert [duration(seconds) for seconds in (3.4, 89, 90, 600, 7200)] == ["3 s", "89 s", "2 min", "10 min", "2.0 h"]
