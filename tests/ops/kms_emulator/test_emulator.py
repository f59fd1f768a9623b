import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.config.settings import Address
from shared.http.server import StartError
from tests.stopwatch import Stopwatch

RING = "projects/demo/locations/global/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"
ANY = Address("127.0.0.1", 0)
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}
State = kms.CryptoKeyVersion.CryptoKeyVersionState


def connect(emulator: Emulator) -> tuple[grpc.aio.Channel, KeyManagementServiceAsyncClient]:
    channel = grpc.aio.insecure_channel(str(emulator.address))
    return channel, KeyManagementServiceAsyncClient(transport=KeyManagementServiceGrpcAsyncIOTransport(channel=channel))


async def test_keys_versions_and_ciphertexts_survive_a_restart(tmp_path: Path) -> None:
    async with run_emulator(keys=[KEY], data=tmp_path) as emulator:
        channel, client = connect(emulator)
        async with channel:
            old = (await client.encrypt(name=KEY, plaintext=b"old", **ONCE)).ciphertext
            for _ in range(2):
                await client.create_crypto_key_version(parent=KEY, **ONCE)
            await client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2", **ONCE)
            scheduled = await client.destroy_crypto_key_version(name=f"{KEY}/cryptoKeyVersions/3", **ONCE)

    async with run_emulator(keys=[KEY], data=tmp_path) as emulator:
        channel, client = connect(emulator)
        async with channel:
            assert (await client.decrypt(name=KEY, ciphertext=old, **ONCE)).plaintext == b"old"
            assert (await client.get_crypto_key(name=KEY, **ONCE)).primary.name == f"{KEY}/cryptoKeyVersions/2"
            reread = await client.get_crypto_key_version(name=f"{KEY}/cryptoKeyVersions/3", **ONCE)
            assert reread == scheduled
            assert reread.state == State.DESTROY_SCHEDULED


async def test_a_stalled_call_ends_when_the_emulator_stops_and_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with run_emulator(keys=[KEY]) as emulator:
        channel, client = connect(emulator)
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
        emulator.faults.add(EmulatorFault(kind="stall", count=1))
        stalled = asyncio.create_task(client.encrypt(name=KEY, plaintext=b"x", retry=None, timeout=60))
        async with asyncio.timeout(20):
            while emulator.faults.list_active():  # noqa: ASYNC110 - the call has met its fault once that is used up
                await asyncio.sleep(0.01)
        stopping = Stopwatch()
    with pytest.raises((exceptions.GoogleAPICallError, asyncio.CancelledError)):
        await stalled
    assert stopping.seconds < 5
    await channel.close()
    assert asyncio.all_tasks() == before


async def test_a_taken_address_stops_the_start_with_one_sentence_and_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with run_emulator() as first:
        for listen, faults in ((first.address, ANY), (ANY, first.faults_address)):
            with pytest.raises(StartError, match="cannot listen on 127"):
                async with run_emulator(listen=listen, faults=faults):
                    pytest.fail("it started on a taken address")
    assert asyncio.all_tasks() == before


async def test_a_full_disk_at_the_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StartError, match=r"cannot write .* set another --data"):
        async with run_emulator(keys=[KEY], data=tmp_path):
            pytest.fail("it started without its key")


async def test_a_second_emulator_on_the_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    async with run_emulator(keys=[KEY], data=tmp_path / "new" / "folder") as first:
        with pytest.raises(StartError, match="another emulator uses it; set another --data"):
            async with run_emulator(keys=[KEY + "2"], data=tmp_path / "new" / "folder"):
                pytest.fail("it started on another emulator's state")
        assert [key.name for key in await first.store.list_keys(RING)] == [KEY]
    async with run_emulator(data=tmp_path / "new" / "folder") as next_one:
        assert [key.name for key in await next_one.store.list_keys(RING)] == [KEY]
