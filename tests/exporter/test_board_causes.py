"""From the answer of Cloud KMS to the board: each cause has its own advice and commands, and no role is granted."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from html import unescape

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from tests.exporter.conftest import KEY
from tests.exporter.running_exporter import configured, scraped, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
CAUSES = {
    "perimeter": (
        "perimeter (permission_denied) at encrypt",
        "Let the owner of the VPC Service Controls perimeter admit",
        "perimeter/troubleshoot;uniqueId=",
    ),
    "ekm_denied": (
        "ekm_d",  # denied, then disabled by Cloud KMS
        "Ask the key manager's operator to allow",
        "externalProtectionLevelOptions",
    ),
    "token_expired": (
        "token_expired (unauthenticated) at encrypt",
        "Check the clock, and what renews the token",
        "metadata.google.internal",
    ),
}


async def test_each_cause_is_on_the_board_with_its_advice_and_commands(emulator: Emulator, until: Until) -> None:
    keys = {cause: f"{KEY}-{cause}" for cause in CAUSES}
    await emulator.store.create_missing_keys(keys.values())
    await emulator.store.update_key(keys["ekm_denied"], lambda key: replace(key, protection_level="EXTERNAL"))
    for cause, key in keys.items():
        emulator.faults.add(EmulatorFault(kind="cause", cause=cause, key=key))
    targets = tuple(target(emulator, name=cause, key=key) for cause, key in keys.items())
    async with scraped(configured(targets=targets)) as exporter:

        async def shows_all() -> bool:
            board = unescape(await exporter.page())
            return all(text in board for texts in CAUSES.values() for text in texts)

        await until(shows_all)
        board = unescape(await exporter.page())
    assert "add-iam-policy-binding" not in board
    assert "Grant" not in board
