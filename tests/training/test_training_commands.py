"""The commands of `training/` name a wrong option in one line, before they compute."""

import importlib
import sys

import pytest

from training.evaluate import DATA_SETS, data_sets


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("evaluate", ["--checkpoint", "/absent.safetensors"], "argument --checkpoint: there is no file /absent.safet"),
        ("evaluate", ["--only", "cancer"], "argument --only: invalid choice: 'cancer' (choose from 'breast_cancer', "),
        ("evaluate", ["--splits", "0"], "argument --splits: 0 is too small: give 1 or more"),
        ("demo", ["--checkpoint", "/absent"], "argument --checkpoint: there is no file /absent"),
        ("pretrain", ["--resume", "/absent"], "argument --resume: there is no file /absent"),
        ("pretrain", ["--start-from", "/absent"], "argument --start-from: there is no file /absent"),
    ],
)
def test_a_wrong_option_is_one_line(
    command: str, arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"training.{command}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m training.{command}: {reason}")


def test_the_option_names_every_data_set() -> None:
    assert tuple(data_sets(1)) == DATA_SETS
