"""`keypulse-exporter init`: what it prints is a configuration that a person fills in."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from services.exporter.__main__ import main
from services.exporter.config import ExporterSettings
from shared.config.settings import load_settings
from tests import memory_kms

KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/ledger"


@pytest.mark.parametrize(
    ("options", "targets", "urls"),
    [
        (("--target", KEY), ["ledger"], []),
        (("--backend", "http://10.0.0.1:8000"), [], ["http://10.0.0.1:8000/healthz"]),
        (("--backend", "http://10.0.0.1/actuator/health"), [], ["http://10.0.0.1/actuator/health"]),
        (
            ("--target", KEY, "--target", f"{KEY}2", "--backend", "http://a:1/", "--backend", "http://b:1"),
            ["key-1", "key-2"],
            ["http://a:1/healthz", "http://b:1/healthz"],
        ),
    ],
)
def test_it_is_valid_has_what_was_asked_for_and_explains_it(
    options: tuple[str, ...], targets: list[str], urls: list[str], tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["init", *options])
    assert result.exit_code == 0, result.output
    (tmp_path / "exporter.yml").write_text(result.stdout)
    settings = load_settings(ExporterSettings, tmp_path / "exporter.yml")
    assert [target.name for target in settings.targets] == targets
    assert [backend.health_url for backend in settings.backends] == urls
    assert result.stdout.count("#") > 4


def test_the_accounts_grants_and_the_form_of_a_key_are_those_of_the_provider() -> None:
    cloud_kms = CliRunner().invoke(main, ["init", "--target", KEY])
    roles = "roles/cloudkms.cryptoKeyEncrypterDecrypter and roles/cloudkms.viewer"
    assert f"\n# KMS keys. The account needs {roles} on each.\n" in cloud_kms.stdout
    assert "provider:" not in cloud_kms.stdout
    with memory_kms.registered():
        memory = CliRunner().invoke(main, ["init", "--provider", "memory", "--target", "ledger"])
    assert memory.exit_code == 0, memory.output
    assert "\n# KMS keys. The account needs use and read on each.\n" in memory.stdout
    assert '\n    provider: "memory"\n    key: "ledger"\n' in memory.stdout
    assert "cloudkms" not in memory.stdout


def test_nothing_to_watch_and_a_key_that_is_none_are_one_line_and_2() -> None:
    for options, error in (
        ((), "nothing to watch; expected --target KEY or --backend URL"),
        (("--target", KEY, "--provider", "memory"), "options: targets.0"),
        (("--target", "ledger"), "options: targets.0.key: expected projects/PROJECT/locations/LOCATION"),
    ):
        result = CliRunner().invoke(main, ["init", *options])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(error)
