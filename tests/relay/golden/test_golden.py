"""What people see is reviewed as text: a message that changes shows here, and its difference is read."""

import pytest

from tests.relay.golden.build import CHANNELS, FOLDER, build_files, list_cases


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_payload_is_what_was_reviewed(channel: str) -> None:
    changed = [
        str(file.relative_to(FOLDER))
        for file, content in build_files(channel)
        if not file.exists() or file.read_text(encoding="utf-8") != content
    ]
    assert not changed, "run `.venv/bin/python -m tests.relay.golden.build`, and read `git diff`"


def test_no_file_is_left_of_what_is_no_case() -> None:
    assert {folder.name for folder in FOLDER.iterdir() if folder.is_dir()} - {"__pycache__"} == list_cases().keys()
