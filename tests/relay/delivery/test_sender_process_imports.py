"""The sender process imports the relay's modules, and none from the directory in which the relay was started."""

import asyncio
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from services.relay.delivery.sender_process import open_sender_process
from tests.relay.delivery.sender_tasks import SETTINGS, process_of

async def main():
    async with asyncio.timeout(20), open_sender_process(SETTINGS) as send:
        print(await process_of(send))

asyncio.run(main())
"""


async def test_a_folder_of_the_same_name_is_not_mistaken_for_the_relay(tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise SystemExit('of somebody else')")
    command = [sys.executable, "-P", "-c", PROGRAM, str(ROOT)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout)
