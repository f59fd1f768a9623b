import grpc
import pytest

from ops.kms_emulator import resource_names
from ops.kms_emulator.grpc_errors import StatusError

RING = "projects/demo/locations/europe-west3/keyRings/app"
KEY = f"{RING}/cryptoKeys/ledger"


def test_each_level_of_the_hierarchy_is_recognised() -> None:
    assert resource_names.parse_location("projects/demo/locations/global") == "projects/demo/locations/global"
    assert resource_names.parse_key_ring(RING) == RING
    assert resource_names.parse_key_name(KEY) == KEY
    assert resource_names.parse_version_name(f"{KEY}/cryptoKeyVersions/12") == (KEY, 12)
    assert resource_names.get_key_ring(KEY) == RING


@pytest.mark.parametrize(
    ("parse", "name"),
    [
        (resource_names.parse_location, "projects/demo"),
        (resource_names.parse_location, RING),
        (resource_names.parse_location, "projects/a b/locations/global"),
        (resource_names.parse_key_ring, KEY),
        (resource_names.parse_key_ring, "projects/demo/locations/global/keyRings/"),
        (resource_names.parse_key_ring, "projects/demo/locations/global/keyRings/ä"),
        (resource_names.parse_key_name, RING),
        (resource_names.parse_key_name, f"{KEY}/cryptoKeyVersions/1"),
        (resource_names.parse_key_name, f"{KEY}\n"),
        (resource_names.parse_version_name, KEY),
        (resource_names.parse_version_name, f"{KEY}/cryptoKeyVersions/0"),
        (resource_names.parse_version_name, f"{KEY}/cryptoKeyVersions/-1"),
        (resource_names.parse_version_name, f"{KEY}/cryptoKeyVersions/one"),
        (resource_names.parse_version_name, f"{RING}/cryptoKeyVersions/1"),
        (resource_names.parse_version_name, ""),
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
        resource_names.check_new_id(text, "crypto_key_id")
    assert resource_names.check_new_id("x" * 63, "crypto_key_id") == "x" * 63
