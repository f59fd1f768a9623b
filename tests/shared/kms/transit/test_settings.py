import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.kms.registry import may_be_same_key
from shared.kms.transit.profile import TRANSIT_PROFILE
from shared.kms.transit.settings import TransitKeySettings

VALID: dict[str, Any] = {"address": "https://bao:8200", "key": "ledger", "auth": {"token_file": "/run/token"}}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "transit:transit/ledger"),
        ({"mount": "team/keys", "namespace": "eu/pay"}, "transit:eu/pay/team/keys/ledger"),
        ({"server": "eu"}, "transit:eu:transit/ledger"),
        ({"address": "http://localhost:8200"}, "transit:transit/ledger"),
    ],
)
def test_a_key_has_a_full_name_that_its_profile_reads(changes: dict[str, Any], name: str) -> None:
    settings = TransitKeySettings(**{**VALID, **changes})
    assert settings.key_name == name
    assert TRANSIT_PROFILE.parse_key_name(name) == (name, "")
    assert TRANSIT_PROFILE.fixes.check(name, {})["key"] == "ledger"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"address": "http://bao:8200"}, "expected https://, because http:// would send the token in plaintext"),
        ({"address": "https://bao:8200/v1"}, "expected https://HOST:PORT, without a path or a login"),
        ({"address": "https://user:secret@bao:8200"}, "without a path or a login"),
        ({"auth": {}}, "expected exactly one of `token_file`, `approle` and `kubernetes`"),
        ({"auth": {"token_file": "/t", "kubernetes": {"role": "r"}}}, "expected exactly one of"),
        ({"cert_file": "/c"}, "expected both cert_file and key_file"),
        ({"key": "a/b"}, "key"),
        ({"key": "../sys/seal"}, "key"),
        ({"mount": "/transit"}, "mount"),
        ({"namespace": "a//b"}, "namespace"),
        ({"key": "local"}, "a service's own local key"),
    ],
)
def test_settings_that_cannot_work_or_are_not_safe_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TransitKeySettings.model_validate({**VALID, **changes})


GOOGLE = {"key": "projects/p/locations/l/keyRings/r/cryptoKeys/k", "endpoint": "127.0.0.1:1", "insecure": True}


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        (GOOGLE, ("shared.kms.transit.client", "aiohttp")),
        ({"provider": "transit", **VALID}, ("grpc", "google.cloud.kms_v1", "google.auth", "google_crc32c")),
    ],
)
def test_what_is_not_configured_is_not_imported(settings: dict[str, Any], unused: tuple[str, ...]) -> None:
    program = f"""
import sys
from shared.kms.registry import connect_key, validate_key_settings
connect_key(validate_key_settings({settings!r}))
print([each for each in {unused!r} if each in sys.modules])
"""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("one", "other", "may_be"),
    [
        ("transit:t/k", "transit:x:t/k", True),
        ("transit:y:n/t/k", "transit:x:n/t/k", True),
        ("transit:x:t/k", "transit:x:t/l", False),
        ("transit:x:n/t/k", "transit:x:t/k", False),
        (str(GOOGLE["key"]), "transit:t/k", False),
        (str(GOOGLE["key"]), str(GOOGLE["key"]), True),
    ],
)
def test_two_names_that_differ_only_in_the_server_may_be_of_one_key(one: str, other: str, may_be: bool) -> None:
    assert may_be_same_key(one, other) is may_be
