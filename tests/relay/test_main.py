"""The command line, as a person types it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ops.demo.stand_ins.app import run_stand_ins
from shared.config.settings import Address
from tests.fork_server import forked

KEY = "0" * 32
ROOT = Path(__file__).parents[2]


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*forked("services.relay"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def configuration(folder: Path, provider: Address) -> str:
    for name, secret in (("token", "a-token-of-alertmanager"), ("key", KEY)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(secret)
    url = f"http://{provider}/pagerduty/v2/enqueue"
    document = {
        "database": "sqlite:///relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": {"pager": {"kind": "pagerduty", "routing_key_file": "key", "url": url}},
        "default_channels": ["pager"],
        "pacing": {"enabled": True},
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    return str(folder / "relay.yml")


async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(relay, *arguments)


async def test_a_test_message_arrives_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with run_stand_ins(pagerduty_keys=(KEY,)) as providers:
        result = await run("--config", configuration(tmp_path, providers.http), "send-test", "--channel", "pager")
        (incident,) = providers.pagerduty.get_state()["incidents"]
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pager: sent to PagerDuty")
    assert len(result.stdout.splitlines()) == 3
    assert incident["dedup_key"] in result.stdout
    assert incident["status"] == "resolved"
    assert not (tmp_path / "relay.db").exists()


async def test_a_test_message_that_is_refused_exits_with_1_and_the_reason(tmp_path: Path) -> None:
    async with run_stand_ins(pagerduty_keys=("1" * 32,)) as providers:
        result = await run("--config", configuration(tmp_path, providers.http), "send-test", "--channel", "pager")
    assert result.returncode == 1
    assert result.stderr.startswith("pager: not sent (")
    assert KEY not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["deliveries"], ["deliveries", "--channel"], ["retry"]])
def test_an_argument_that_is_not_utf_8_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str]) -> None:
    file = configuration(tmp_path, Address("127.0.0.1", 9))
    result = relay("--config", file, *arguments, os.fsdecode(b"\xff"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "expected UTF-8 without a NUL character" in result.stderr


def test_check_says_that_the_file_is_valid(tmp_path: Path) -> None:
    result = relay("--config", configuration(tmp_path, Address("127.0.0.1", 9)), "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "the configuration is valid\n", "")


@pytest.mark.parametrize(
    "command", [[], ["deliveries"], ["retry"], ["mark-restored"], ["render"], ["send-test"], ["doctor"], ["init"]]
)
def test_help_shows_examples_a_line_each(command: list[str]) -> None:
    result = relay(*command, "--help")
    assert result.returncode == 0
    _, _, examples = result.stdout.partition("Example")
    lines = examples.splitlines()[1:]
    assert lines
    assert all("keypulse-relay " in line for line in lines)
    assert "\\b" not in result.stdout


def test_a_relay_imports_nothing_that_is_not_configured() -> None:
    unused = ("apprise", "requests", "joserfc", "authlib", "matplotlib", "psycopg", "rich.table", "services.relay.init")
    program = f"import sys, services.relay.__main__; print([each for each in {unused} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
