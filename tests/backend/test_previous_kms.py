"""A backend between two KMS, Cloud KMS and a real Transit: `kms` wraps and decides the mode, the other only unwraps."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.backend.keyring import KeyUnavailableError
from shared.backend_contract import CryptoMode
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey
from shared.kms.registry import connect_keys, validate_key_settings
from tests.backend.conftest import Backend, Open
from tests.bao import Bao
from tests.key_versions import KEY

OUTAGE = EmulatorFault(kind="status", status="UNAVAILABLE")


@dataclass
class TwoKeys:
    google: KmsKey
    transit: KmsKey
    transit_name: str


@pytest.fixture
async def keys(emulator: Emulator, shared_bao: Bao, tmp_path: Path) -> AsyncIterator[TwoKeys]:
    transit = validate_key_settings(shared_bao.mount().build_settings(tmp_path))
    google = GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True)
    async with connect_keys((google, transit)) as connected:
        yield TwoKeys(connected[KEY], connected[transit.key_name], transit.key_name)


async def wraps(backend: Backend) -> dict[str, str]:
    """By which KMS key, and in which status, data keys are."""
    return {key.status: key.wrapped.kek for key in await backend.store.list_all()}


@pytest.mark.parametrize("spelling", [KEY, f"gcp-kms://{KEY}"])
async def test_an_outage_of_the_previous_kms_changes_no_mode_and_what_it_wraps_is_back_once_it_is_over(
    emulator: Emulator, open_backend: Open, keys: TwoKeys, tmp_path: Path, spelling: str
) -> None:
    async with open_backend(tmp_path, keys.google) as backend:
        await backend.check()
        await backend.put("one", b"by Cloud KMS")
        (key,) = await backend.store.list_all()
        assert await backend.store.replace_wrap(key, replace(key.wrapped, kek=spelling))
    moved = {"key": keys.transit_name, "previous": {KEY: keys.google}}
    async with open_backend(tmp_path, keys.transit, **moved) as backend:
        await backend.check()
        assert (await backend.get("one"), await wraps(backend)) == (b"by Cloud KMS", {"active": spelling})
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, keys.transit, **moved) as backend:
        await backend.check()
        await backend.put("two", b"by Transit")
        assert (backend.keyring.mode, await backend.get("two")) == (CryptoMode.KMS, b"by Transit")
        assert await wraps(backend) == {"retired": spelling, "active": keys.transit_name}
        with pytest.raises(KeyUnavailableError, match=f" {spelling}: unavailable"):
            await backend.get("one")
        emulator.faults.clear()
        await backend.check()
        assert (await backend.get("one"), backend.keyring.list_problems()) == (b"by Cloud KMS", [])


async def test_what_the_previous_kms_wraps_is_used_while_the_kms_itself_is_out(
    emulator: Emulator, open_backend: Open, keys: TwoKeys, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, keys.transit, key=keys.transit_name) as backend:
        await backend.check()
        await backend.put("one", b"by Transit")
    emulator.faults.add(OUTAGE)
    async with open_backend(tmp_path, keys.google, previous={keys.transit_name: keys.transit}) as backend:
        await backend.check()
        assert (backend.keyring.mode, await backend.get("one")) == (CryptoMode.ENV, b"by Transit")
        await backend.put("two", b"by Transit, too")
        assert await wraps(backend) == {"active": keys.transit_name}


async def test_a_start_with_a_data_key_whose_kms_key_no_setting_names_says_so_once(
    open_backend: Open, keys: TwoKeys, tmp_path: Path
) -> None:
    async with open_backend(tmp_path, keys.google) as backend:
        await backend.check()
        await backend.put("one", b"by Cloud KMS")
    async with open_backend(tmp_path, keys.transit, key=keys.transit_name) as backend:
        with capture_logs() as logs:
            for _ in range(3):
                await backend.check()
        told = [line for line in logs if line["event"].startswith("data keys are wrapped by a KMS key that neither")]
        assert [(line["kek"], line["data_keys"], line["hint"]) for line in told] == [(KEY, 1, "add it to previous_kms")]
        assert backend.keyring.list_problems()[0] == (
            "data keys of a KMS key that neither kms nor previous_kms names: 1; the log names it"
        )
        with pytest.raises(KeyUnavailableError, match=f"it is wrapped by {KEY}, which neither `kms` nor"):
            await backend.get("one")
