"""A kind of channel that a test adds: one file and one member of the registry's union, and alerts are delivered."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import yaml

from tests import processes
from tests.relay.served_relay import TOKEN, post, until, webhook_of
from tests.relay.test_process import listens_at

PROGRAM = """
from tests.relay.channels import file_channel
file_channel.register()
from services.relay.__main__ import main
main()
"""


def start_relay(folder: Path, channels: dict[str, object]) -> subprocess.Popen[str]:
    """A process whose registry has the kind, with these channels in its configuration."""
    (folder / "token").write_text(TOKEN)
    document = {
        "listen": "127.0.0.1:0",
        "database": f"sqlite:///{folder}/relay.db",
        "auth": {"bearer_token_file": "token"},
        "channels": channels,
        "default_channels": [*channels],
    }
    (folder / "relay.yml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-c", PROGRAM, "--config", str(folder / "relay.yml")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])


async def test_an_alert_is_delivered_by_a_channel_that_the_configuration_names_by_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "alerts"
    file.touch()
    process = await asyncio.to_thread(start_relay, tmp_path, {"ours": {"kind": "file", "path": str(file)}})
    try:
        address = await asyncio.to_thread(listens_at, process)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(f"http://{address}", headers=headers) as client:

            async def is_delivered() -> bool:
                async with client.get("/api/deliveries") as response:
                    found = (await response.json())["deliveries"]
                return [(each["channel"], each["state"]) for each in found] == [("ours", "delivered")] * 2

            for status in ("firing", "resolved"):
                assert (await post(client, webhook_of(status)))[0] == 202
            await until(is_delivered)
            async with client.get("/api/channels") as response:
                by_name = {each["channel"]: each for each in (await response.json())["channels"]}
    finally:
        await asyncio.to_thread(processes.end_and_read, process)
    assert process.returncode == 0
    assert [json.loads(line)["status"] for line in file.read_text().splitlines()] == ["firing", "resolved"]
    assert (by_name["ours"]["kind"], by_name["ours"]["delivered"]) == ("file", 2)
