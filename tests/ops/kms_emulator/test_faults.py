from typing import Any

import pytest
from pydantic import ValidationError

from ops.kms_emulator.faults import PERMISSIONS, EmulatorFault, EmulatorFaults

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
USE_TO_ENCRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt"


def test_a_probability_throws_the_dice_and_counts_only_what_it_met() -> None:
    dice = iter([0.5, 0.49, 0.9, 0.0])
    faults = EmulatorFaults(lambda: next(dice))
    faults.add(EmulatorFault(kind="status", probability=0.5, count=2))
    assert [bool(faults.match("status", "Encrypt", KEY)) for _ in range(4)] == [False, True, False, True]
    assert faults.list_active() == {}


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        ({}, set(PERMISSIONS.values())),
        ({"permission": USE_TO_ENCRYPT}, {USE_TO_ENCRYPT}),
        ({"operation": "Encrypt"}, {USE_TO_ENCRYPT}),
        ({"operation": "UpdateCryptoKey"}, {"cloudkms.cryptoKeys.update"}),
        ({"operation": "Encrypt", "permission": USE_TO_ENCRYPT}, {USE_TO_ENCRYPT}),
    ],
)
def test_denied_takes_away_a_permission_by_its_name_or_by_the_operation_that_needs_it(
    fault: dict[str, str], refused: set[str]
) -> None:
    denied = EmulatorFault(kind="denied", **fault)
    assert {permission for permission in PERMISSIONS.values() if denied.denies(permission)} == refused


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "earthquake"}, "kind"),
        ({"kind": "latency"}, "latency needs `seconds`"),
        ({"kind": "slow_primary"}, "slow_primary needs `seconds`"),
        ({"kind": "latency", "seconds": -1}, "seconds"),
        ({"kind": "latency", "seconds": float("inf")}, "seconds"),
        ({"kind": "status", "status": "OK"}, "other than OK"),
        ({"kind": "status", "status": "TEAPOT"}, "gRPC status"),
        ({"kind": "status", "operation": "Encode"}, "expected one of"),
        ({"kind": "status", "key": "ledger"}, "expected projects/PROJECT"),
        ({"kind": "status", "probability": 0}, "probability"),
        ({"kind": "status", "probability": 1.1}, "probability"),
        ({"kind": "status", "count": 0}, "count"),
        ({"kind": "status", "colour": "red"}, "colour"),
        ({"kind": "wrong_plaintext", "operation": "Encrypt"}, "never happens to Encrypt"),
        ({"kind": "corrupt_crc", "operation": "GetCryptoKey"}, "never happens to GetCryptoKey"),
        ({"kind": "slow_primary", "operation": "Decrypt", "seconds": 1}, "never happens to Decrypt"),
        ({"kind": "cause", "cause": "ekm_error/tls", "operation": "GetCryptoKey"}, "tls never happens to GetCryptoKey"),
        ({"kind": "cause", "cause": "role_missing", "operation": "TestIamPermissions"}, "never happens to TestIam"),
        ({"kind": "denied", "operation": "TestIamPermissions"}, "never happens to TestIamPermissions"),
        ({"kind": "denied", "permission": "cloudkms.nope"}, "expected one of cloudkms.keyRings.create"),
        (
            {"kind": "denied", "operation": "Decrypt", "permission": USE_TO_ENCRYPT},
            "Decrypt needs cloudkms.cryptoKeyVersions.useToDecrypt, not cloudkms.cryptoKeyVersions.useToEncrypt",
        ),
        ({"kind": "status", "operation": "CreateCryptoKey", "key": KEY}, "about no key that exists; leave `key` out"),
        ({"kind": "stall", "operation": "ListKeyRings", "key": KEY}, "about no key that exists; leave `key` out"),
    ],
)
def test_a_fault_that_could_never_happen_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        EmulatorFault(**fields)
