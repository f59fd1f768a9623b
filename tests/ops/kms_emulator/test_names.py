import grpc
import pytest

from ops.kms_emulator import names
from ops.kms_emulator.status import StatusError

RING = "projects/demo/locations/europe-west3/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"


def test_each_level_of_the_hierarchy_is_recognised() -> None:
    assert names.location("projects/demo/locations/global") == "projects/demo/locations/global"
    assert names.key_ring(RING) == RING
    assert names.key(KEY) == KEY
    assert names.version(f"{KEY}/cryptoKeyVersions/12") == (KEY, 12)
    assert names.ring_of(KEY) == RING


@pytest.mark.parametrize(
    ("parse", "name"),
    [
        (names.location, "projects/demo"),
        (names.location, RING),
        (names.location, "projects/a b/locations/global"),
        (names.key_ring, KEY),
        (names.key_ring, "projects/demo/locations/global/keyRings/"),
        (names.key_ring, "projects/demo/locations/global/keyRings/ä"),
        (names.key, RING),
        (names.key, f"{KEY}/cryptoKeyVersions/1"),
        (names.key, f"{KEY}\n"),
        (names.version, KEY),
        (names.version, f"{KEY}/cryptoKeyVersions/0"),
        (names.version, f"{KEY}/cryptoKeyVersions/-1"),
        (names.version, f"{KEY}/cryptoKeyVersions/one"),
        (names.version, f"{RING}/cryptoKeyVersions/1"),
        (names.version, ""),
    ],
)
def test_a_malformed_name_is_an_invalid_argument_that_quotes_it(parse: object, name: str) -> None:
    assert callable(parse)
    with pytest.raises(StatusError) as refused:
        parse(name)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"[{name}]" in refused.value.message


@pytest.mark.parametrize("text", ["", "a/b", "a b", "x" * 64])
def test_an_id_that_the_real_service_refuses_is_refused(text: str) -> None:
    with pytest.raises(StatusError, match="crypto_key_id"):
        names.new_id(text, "crypto_key_id")
    assert names.new_id("x" * 63, "crypto_key_id") == "x" * 63
