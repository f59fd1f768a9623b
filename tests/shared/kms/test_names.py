import pytest

from shared.kms.names import key_of, parse_key, version_number

KEY = "projects/acme.example:demo/locations/europe-west3/keyRings/app_1/cryptoKeys/ledger-kek"


def test_a_keys_full_name_is_itself() -> None:
    assert parse_key(KEY) == KEY


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ledger",
        f"{KEY}/cryptoKeyVersions/1",
        f"/{KEY}",
        f"{KEY}/",
        f"{KEY}\n",
        KEY.replace("ledger-kek", "a b"),
        KEY.replace("ledger-kek", "x" * 64),
        KEY.replace("app_1", ""),
        KEY.replace("projects", "project"),
    ],
)
def test_any_other_name_is_refused_with_what_was_expected(name: str) -> None:
    with pytest.raises(ValueError, match="expected projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"):
        parse_key(name)


def test_a_version_knows_its_key_and_its_number() -> None:
    assert key_of(f"{KEY}/cryptoKeyVersions/12") == KEY
    assert key_of(KEY) == KEY
    assert version_number(f"{KEY}/cryptoKeyVersions/12") == 12
