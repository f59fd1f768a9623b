"""What is forgotten everywhere: on the board as at /metrics."""

import pytest

from services.exporter.config import Backend
from services.exporter.model import BackendState, Health
from services.exporter.record import Record
from shared.contract import CryptoMode
from tests.exporter.scraped import configured


@pytest.fixture
def record() -> Record:
    made = Record()
    made.watch(configured(backends=(Backend(service="backend", health_url="http://backend.test/"),)))
    return made


def read(*replicas: str) -> list[BackendState]:
    health = Health(CryptoMode.KMS, ready=True)
    return [BackendState("backend", health, replica=replica) for replica in replicas]


def shown(record: Record) -> set[str]:
    return {
        sample.labels["replica"]
        for family in record.metrics.collect()
        for sample in family.samples
        if sample.name == "crypto_backend_up"
    }


def test_a_replica_that_is_gone_is_forgotten_on_the_board_too(record: Record) -> None:
    record.backend(read("10.0.0.1", "10.0.0.2"))
    assert record.history.backends.keys() == {("backend", "10.0.0.1"), ("backend", "10.0.0.2")}
    record.backend(read("10.0.0.2", "10.0.0.3"))
    assert record.history.backends.keys() == {("backend", "10.0.0.2"), ("backend", "10.0.0.3")}
    assert shown(record) == {"10.0.0.2", "10.0.0.3"}
