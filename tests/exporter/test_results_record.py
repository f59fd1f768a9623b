"""What is forgotten, and that it is forgotten everywhere: on the board as at /metrics."""

import pytest

from services.exporter.backends.settings import Backend
from services.exporter.model import BackendState, Call, Health, KeyInspection, Operation, ProbeResult
from services.exporter.results import Results
from shared.backend_contract import CryptoMode
from shared.kms.port import KeyDescription, KeyVersion, VersionState
from tests.exporter.collected_metrics import collect_families
from tests.exporter.recording_keys import named
from tests.exporter.running_exporter import configured


@pytest.fixture
def record() -> Results:
    results = Results()
    results.configure(configured(backends=(Backend(service="backend", health_url="http://backend.test/"),)))
    return results


def read(*replicas: str) -> list[BackendState]:
    health = Health(CryptoMode.KMS, ready=True)
    return [BackendState("backend", health, replica=replica) for replica in replicas]


def read_samples(record: Results) -> set[str]:
    return {
        sample.labels["replica"]
        for family in collect_families(record.metrics)
        for sample in family.samples
        if sample.name == "crypto_backend_up"
    }


def test_a_replica_that_is_gone_is_forgotten_on_the_board_too(record: Results) -> None:
    record.add_backend_states(read("10.0.0.1", "10.0.0.2"))
    assert record.history.backends.keys() == {("backend", "10.0.0.1"), ("backend", "10.0.0.2")}
    record.add_backend_states(read("10.0.0.2", "10.0.0.3"))
    assert record.history.backends.keys() == {("backend", "10.0.0.2"), ("backend", "10.0.0.3")}
    assert read_samples(record) == {"10.0.0.2", "10.0.0.3"}


def test_a_target_that_has_another_key_is_a_new_one_and_one_that_has_the_same_goes_on() -> None:
    record, ledger = Results(), named("ledger")
    record.configure(configured(targets=(ledger,)))
    record.add_probe(ProbeResult("backend", "ledger", 1.0, (Call(Operation.ENCRYPT, 0.1),), None))
    key = KeyDescription("7", None, (KeyVersion("7", VersionState.USABLE, "HSM", None, number=7),), 2)
    record.add_inspection(KeyInspection("backend", "ledger", 1.0, key, None, (), None, {}))

    def summarize() -> tuple[list[float], list[float], bool]:
        samples = [sample for family in collect_families(record.metrics) for sample in family.samples]
        primary = [sample.value for sample in samples if sample.name == "kms_key_primary_version"]
        probes = [sample.value for sample in samples if sample.name == "kms_probes_total"]
        return primary, probes, record.history.targets["ledger"].last_result is not None

    record.configure(configured(targets=(ledger, named("other"))))
    assert summarize() == ([7], [1, 0], True)
    other_key = ledger.kms.model_copy(update={"key": f"{ledger.kms.key}-2"})
    record.configure(configured(targets=(ledger.model_copy(update={"kms": other_key}),)))
    assert summarize() == ([], [0], False)
