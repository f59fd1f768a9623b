"""The demo's OpenBao, broken and healed by the buttons of the stand-ins' page."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from ops.demo import openbao
from ops.demo.configuration import write_shell_environment
from ops.demo.processes import Ports, run_processes
from ops.demo.stack import Stack, _set_up_openbao
from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.transit_faults import TransitFaults
from shared.kms.port import KmsError, KmsKeyAdmin
from shared.kms.reason import Cause, Reason
from shared.kms.registry import validate_key_settings

FAULTS = {
    "permission_denied": (Reason.PERMISSION_DENIED, Cause.ROLE_MISSING),
    "sealed": (Reason.UNAVAILABLE, Cause.SEALED),
    "disabled": (Reason.KEY_DISABLED, Cause.SOFT_DELETED),
    "quota_exhausted": (Reason.QUOTA_EXHAUSTED, Cause.RATE_LIMIT),
}
"""What each button does to an encryption."""


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def encrypt(key: KmsKeyAdmin) -> tuple[Reason, Cause] | None:
    """How an encryption fails; None if it does not."""
    try:
        await key.encrypt(b"a data key", b"what it belongs to", timeout=5)
    except KmsError as error:
        return error.reason, error.cause
    return None


async def press(http: aiohttp.ClientSession, stand_ins: StandIns, action: str, fault: str = "") -> int:
    async with http.post(f"http://{stand_ins.http}/api/kms/{action}", json={"fault": fault}) as answer:
        return answer.status


@pytest.mark.played
async def test_each_button_breaks_a_real_transit_and_the_page_says_so_until_it_is_healed(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    ports = Ports.pick_free()
    openbao.write_configuration(tmp_path, ports.emulator, ports.faults)
    async with run_processes(tmp_path) as children:
        await children.start("openbao", openbao.build_command(tmp_path))
        await _set_up_openbao(Stack(ports, http, children, tmp_path))
        bao = openbao.OpenBao(ports.build_url("emulator"), tmp_path)
        auth = {"token_file": str(tmp_path / openbao.TOKEN_FILE)}
        address = {"address": ports.build_url("emulator")}
        key = validate_key_settings({"provider": "transit", "key": openbao.KEY, "auth": auth, **address}).connect()
        async with run_stand_ins(openbao=bao) as stand_ins:
            assert FAULTS.keys() == TransitFaults.labels.keys()
            for fault, (reason, cause) in FAULTS.items():
                assert await encrypt(key) is None
                assert await press(http, stand_ins, "break", fault) == 201
                await encrypt(key)  # the one that a rate of 1 allows
                assert await encrypt(key) == (reason, cause)
                async with http.get(f"http://{stand_ins.http}/") as page:
                    assert f"KMS is broken: {TransitFaults.labels[fault]}" in await page.text()
                assert await press(http, stand_ins, "heal") == 204
            assert await press(http, stand_ins, "break", "latency") == 400
        await key.close()
        write_shell_environment(tmp_path, ports, "transit")
        shell = (tmp_path / "env").read_text(encoding="utf-8")
        secrets = [tmp_path / name for name in (openbao.ROOT_TOKEN_FILE, openbao.TOKEN_FILE, "bao_unseal_key")]
        assert [file.stat().st_mode & 0o077 for file in secrets] == [0, 0, 0]
        assert not [file for file in secrets if file.read_text().strip() in shell]
    with pytest.raises(openbao.OpenBaoError, match=r"does not answer; start it, or see openbao\.log"):
        await bao.unseal()
