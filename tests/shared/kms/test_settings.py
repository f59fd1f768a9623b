from typing import Any

import pytest
from pydantic import PrivateAttr, ValidationError

from shared.keyring.model import LOCAL_KEK
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.registry import connect_keys
from tests.memory_kms import MemoryKey, MemoryKeySettings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"provider": "gcp"},
        {"endpoint": "kms.private.example.org:443"},
        {"endpoint": "127.0.0.1:9010", "insecure": True},
        {"endpoint": "localhost:9010", "insecure": True},
        {"endpoint": "[::1]:9010", "insecure": True},
        {"endpoint": "emulator:9010", "insecure": True, "allow_remote_insecure": True},
    ],
)
def test_a_key_that_can_be_reached_safely_is_accepted(settings: dict[str, Any]) -> None:
    assert GcpKeySettings(key=KEY, **settings).key == KEY


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"key": "ledger"}, "expected projects/PROJECT"),
        ({"provider": "aws"}, "'gcp'"),
        ({"insecure": True}, "`insecure` needs an `endpoint`"),
        ({"endpoint": "emulator:9010", "insecure": True}, "not this machine"),
        ({"endpoint": "10.0.0.1:9010", "insecure": True}, "not this machine"),
        ({"endpoint": "9010", "insecure": True}, "expected HOST:PORT"),
        ({"endpont": "127.0.0.1:9010"}, "endpont"),
    ],
)
def test_a_key_that_cannot_is_refused_with_what_was_expected(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        GcpKeySettings.model_validate({"key": KEY, **settings})


@pytest.mark.parametrize("name", ["", LOCAL_KEK])
def test_no_key_of_any_provider_has_the_name_of_the_local_key(name: str) -> None:
    with pytest.raises(ValidationError, match="'local', which stands for a service's own local key"):
        MemoryKeySettings(key=name)
    assert MemoryKeySettings(key="locally").key == "locally"


class _FragileKey(MemoryKey):
    def __init__(self, settings: "_FragileSettings") -> None:
        super().__init__(settings.key)
        self._settings = settings

    async def close(self) -> None:
        self._settings._closed.append(self._settings.key)
        if self._settings.fails_at == "close":
            raise OSError("close")


class _FragileSettings(MemoryKeySettings):
    fails_at: str = ""
    _closed: list[str] = PrivateAttr(default_factory=list)

    def connect(self) -> MemoryKey:
        if self.fails_at == "connect":
            raise OSError("connect")
        return _FragileKey(self)


@pytest.mark.parametrize(("fails_at", "failing"), [("close", 0), ("close", 1), ("connect", 1)])
async def test_a_key_that_fails_to_connect_or_close_leaves_no_other_one_open(fails_at: str, failing: int) -> None:
    settings = [_FragileSettings(key=f"vault/{n}", fails_at=fails_at if n == failing else "") for n in range(2)]
    with pytest.raises(OSError, match=fails_at):
        async with connect_keys(settings):
            pass
    connected = [each for each in settings if each.fails_at != "connect"]
    assert [each._closed for each in connected] == [[each.key] for each in connected]
