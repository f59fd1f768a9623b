import pytest

from shared.kms.gcp.profile import check_key_name, parse_key_name

KEY = "projects/acme.example:demo/locations/europe-west3/keyRings/app_1/cryptoKeys/ledger-kek"


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
        check_key_name(name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (KEY, (KEY, "")),
        (f"gcp-kms://{KEY}", (KEY, "")),
        (f"//cloudkms.googleapis.com/{KEY}/cryptoKeyVersions/12", (KEY, "12")),
        (f"https://cloudkms.googleapis.com/v1/{KEY}/cryptoKeyVersions/12/", (KEY, "12")),
        (f"/{KEY}/", (KEY, "")),
        (f"xprojects/{KEY}", (KEY, "")),
        (f"x{KEY}", None),
        (f"{KEY}:encrypt", None),
        (f"{KEY}/cryptoKeyVersions/", None),
        (f"{KEY}/importJobs/1", None),
        ("ledger", None),
        ("", None),
    ],
)
def test_each_spelling_of_a_name_names_the_same_key_and_what_is_none_names_no_key(
    text: str, named: tuple[str, str] | None
) -> None:
    assert parse_key_name(text) == named
