"""A provider whose versions are words is configured, probed, measured and shown as Cloud KMS is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.exporter.config import ExporterSettings
from shared.config.errors import ConfigurationError
from shared.config.settings import load_settings
from shared.kms.port import VersionState
from tests import memory_kms
from tests.exporter.running_exporter import scraped

CONFIGURATION = """
listen: 127.0.0.1:0
service: backend
probe: {interval: 5s, timeout: 5s}
targets:
- {name: ledger-kek, provider: memory, key: ledger, canary_dir: FOLDER}
"""


@pytest.fixture
def ledger() -> Iterator[memory_kms.StoredKey]:
    with memory_kms.registered():
        yield memory_kms.create_key("ledger", "spring", "autumn")


def read_settings(folder: Path, text: str = CONFIGURATION) -> ExporterSettings:
    file = folder / "exporter.yml"
    file.write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return load_settings(ExporterSettings, file)


async def test_it_is_probed_measured_and_shown(ledger: memory_kms.StoredKey, tmp_path: Path) -> None:
    ledger.permissions = frozenset({"use"})
    ledger.set_state("spring", VersionState.PENDING_DESTRUCTION, 4_000_000_000.0)
    async with scraped(read_settings(tmp_path)) as scrape:
        values = await scrape.wait_for("kms_key_primary_version_info backend ledger-kek autumn", 1)
        await scrape.wait_for("kms_probe_success backend ledger-kek", 1)
        page = await scrape.page()
    assert values["kms_key_versions backend pending_destruction ledger-kek"] == 1
    assert values["kms_key_versions backend usable ledger-kek"] == 1
    assert values["kms_key_version_destroy_timestamp_seconds backend ledger-kek spring"] == 4_000_000_000
    assert values["kms_key_permission read backend ledger-kek"] == 0
    assert values["kms_key_permission use backend ledger-kek"] == 1
    assert not any(name.startswith("kms_key_primary_version ") for name in values)  # words are no numbers
    assert values["kms_key_inspection_problems backend ledger-kek"] == 0
    assert "Primary version</dt><dd>Autumn<" in page
    assert "The account lacks read." in page
    assert "Ask whoever runs this test." in page
    assert "Version spring will be destroyed" in page
    assert "google" not in page.lower()


async def test_canaries_of_older_versions_are_kept_and_found_lost(ledger: memory_kms.StoredKey, tmp_path: Path) -> None:
    settings = read_settings(tmp_path)
    async with scraped(settings) as scrape:
        await scrape.wait_for("kms_key_versions_without_canary backend ledger-kek", 1)
    ledger.add_version("winter")
    async with scraped(settings) as scrape:
        values = await scrape.wait_for("kms_canary_success  backend ledger-kek autumn", 1)
        assert values["kms_key_versions_without_canary backend ledger-kek"] == 1
    ledger.set_state("autumn", VersionState.DISABLED)
    async with scraped(settings) as scrape:
        await scrape.wait_for("kms_canary_success key_disabled backend ledger-kek autumn", 0)
        assert "canary lost, key_disabled" in await scrape.page()
    (canary_file,) = tmp_path.glob("*.json")  # noqa: ASYNC240
    (canaries,) = json.loads(canary_file.read_text(encoding="utf-8")).values()
    assert [entry["canary"]["version"] for entry in canaries] == ["autumn", "winter"]


def test_its_settings_are_checked_and_stand_in_the_schema(ledger: memory_kms.StoredKey, tmp_path: Path) -> None:
    assert ledger.primary == "autumn"
    with pytest.raises(ConfigurationError) as refused:
        read_settings(tmp_path, CONFIGURATION.replace("key: ledger", "endpoint: 127.0.0.1:1"))
    assert [line.partition(".yml: ")[2] for line in refused.value.lines] == [
        "targets.0.key: missing; it has no default",
        "targets.0.endpoint: unknown key; see --print-schema for those that exist",
    ]
    with pytest.raises(ConfigurationError) as unknown:
        read_settings(tmp_path, CONFIGURATION.replace("memory", "aws"))
    assert [line.partition(".yml: ")[2] for line in unknown.value.lines] == [
        "targets.0.provider: expected one of 'gcp', 'transit', 'memory'"
    ]
    target = ExporterSettings.model_json_schema()["$defs"]["Target"]
    assert [member["properties"]["provider"]["const"] for member in target["oneOf"]] == ["gcp", "transit", "memory"]
    assert all(set(member["properties"]) >= {"name", "key", "canary_dir"} for member in target["oneOf"])
