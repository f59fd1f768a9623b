"""The two commands of the README's first screen, as they are written, against the stand-in for Slack."""

import asyncio
import os
import re
import sys
from pathlib import Path

from ops.demo.stand_ins.app import run_stand_ins
from tests import processes
from tests.relay.channels.slack.slack_posts import posts

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


async def test_two_commands_bring_a_message_into_slack(tmp_path: Path) -> None:
    found = re.search(r"```sh\n(keypulse-relay init --slack webhook .*?)```", README, re.DOTALL)
    assert found
    assert len(found[1].splitlines()) == 2
    async with run_stand_ins() as stand_ins:
        shell = await asyncio.create_subprocess_exec(
            "bash", "-ec", found[1],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        printed, _ = await processes.finish(shell, given=stand_ins.build_slack_webhook_url().encode() + b"\n")
        assert shell.returncode == 0, printed.decode()
        first, *receipts = printed.decode().splitlines()
        assert first == "slack: sent to the channel of the incoming webhook"
        assert receipts == ['{"answer": "ok"}'] * 2
        fired, ended = posts(stand_ins)
    assert "A test of this channel" in fired.text
    assert "🟢" in ended.text
    assert (tmp_path / "slack_webhook").stat().st_mode & 0o777 == 0o600
