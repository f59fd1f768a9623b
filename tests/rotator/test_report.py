"""What is shown to people: Markdown that nothing can break, lines for a pipe, a bar on a terminal."""

import os
import pty
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from markdown_it import MarkdownIt

from services.rotator.app import LineReporter, open_progress, print_report
from services.rotator.report import CommandOutcome, CommandReport, Plan, StepProgress, format_markdown
from shared.keyring.administration import (
    JournalEntry,
    JournalStep,
    KeyUsage,
    Problem,
    RetiredVersion,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
    VersionUsage,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = "a|b\n# <img src=x onerror=alert(1)> `code` [link](javascript:alert(1)) \x1b[31m\u202e"


def hostile() -> CommandReport:
    problem = Problem(id=HOSTILE, error=HOSTILE)
    return CommandReport(
        command="run",
        outcome=CommandOutcome.FAILED,
        summary=HOSTILE,
        next_commands=("resume", "rollback"),
        plans=(Plan(type=RotationType.NEW_DEK, target_version="1", data_keys=1, summary=HOSTILE, excluded=(HOSTILE,)),),
        rotation=RotationProgress(
            rotation_id=HOSTILE,
            type=RotationType.NEW_DEK,
            state=RotationState.FAILED,
            target_version="1",
            caller=HOSTILE,
            started_at=NOW,
            updated_at=NOW,
            total=2,
            done=1,
            problems=(problem,),
            journal=(JournalEntry(step=JournalStep.SMOKE, outcome=StepOutcome.FAILED, detail=HOSTILE),),
        ),
        census=KeyUsage(
            versions=(VersionUsage(kek=HOSTILE, kek_version="1", data_keys=1, records=1),),
            active=HOSTILE,
            active_since=NOW,
            retired_versions=(RetiredVersion(kek_version="1", retired_at=NOW),),
        ),
        problems=(problem,),
    )


def test_what_a_server_answers_is_neither_mark_up_nor_a_control_character() -> None:
    text = format_markdown(hostile(), "rotator.yml")
    assert not any(character in text for character in "\x1b\u202e")
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert not any(mark in html for mark in ("<img", "<a ", "<code>code", "<h1>"))
    assert html.count("<h2>") == 1
    assert html.count("<table>") == 3


def test_a_status_has_the_steps_that_the_runner_recorded_the_last_one_with_its_reason() -> None:
    smoke = JournalEntry(step=JournalStep.SMOKE, outcome=StepOutcome.SUCCEEDED, detail="all checks passed")
    backup = JournalEntry(step=JournalStep.BACKUP, outcome=StepOutcome.FAILED, detail="the disk is full")
    journal = {"journal": (smoke, backup)}
    rotation = (rotation := hostile().rotation) and rotation.model_copy(update=journal)
    text = format_markdown(
        CommandReport(command="status", outcome=CommandOutcome.DONE, summary="s", rotation=rotation), "rotator.yml"
    )
    assert text.endswith("| smoke | succeeded | all checks passed |\n| backup | failed | the disk is full |\n")


def test_it_says_what_to_type_next() -> None:
    text = format_markdown(hostile(), "my rotator.yml")
    assert "    keypulse-rotator resume --config 'my rotator.yml'\n    keypulse-rotator rollback --config" in text
    assert text.startswith("## ✗ keypulse-rotator run: failed\n")


def test_lines_of_progress_come_now_and_then_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = LineReporter(lambda: now[0])
    for done in range(1, 13):
        lines.report_progress(StepProgress("rotate", done, 12, done * 3, 48))
        now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [f"rotate: {done} of 12 data keys" for done in (1, 6, 11, 12)]


def read_screen(master: int) -> bytes:
    output = b""
    with os.fdopen(master, "rb", buffering=0) as screen, suppress(OSError):  # EIO, once the other side is closed
        while read := screen.read(1 << 16):
            output += read
    return output


def test_a_terminal_gets_the_report_without_marks_of_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    report = CommandReport(
        command="plan",
        outcome=CommandOutcome.DONE,
        summary="`where` is a|b",
        plans=(Plan(type=RotationType.REWRAP_KEK, target_version="1", data_keys=0, summary="the data key is wrapped"),),
        next_commands=("run",),
    )
    with os.fdopen(slave, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print_report(format_markdown(report, "r" * 200))
    output = read_screen(master).decode()
    assert "`where` is a|b" in output
    assert not {"##", "**", "\\"} & set(re.findall(r"##|\*\*|\\\\", output))
    assert "nothing to do: the data key is wrapped" in output
    assert f"    keypulse-rotator run --config {'r' * 200}\r\n" in output


def test_a_terminal_gets_a_bar_with_counts_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with open_progress() as progress:
            progress.report_step("rotate")
            progress.report_progress(StepProgress("rotate", 1, 4, 3, 16))
            progress.report_progress(StepProgress("rotate", 4, 4, 12, 16))
            progress.report_step("rotate", "4 of 4 [bold]")
            progress.report_progress(StepProgress("verify", 4, 4, 16, 16))
    output = read_screen(master)
    assert b"rotate: 1 of 4 data keys" in output
    assert b"verify: 4 of 4 data keys" in output
    assert b"0:00:00" in output
    assert b"rotate: 4 of 4 [bold]" in output
