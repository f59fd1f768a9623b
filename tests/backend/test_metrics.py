from prometheus_client import CollectorRegistry

from services.backend.metrics import expose
from shared.contract import CryptoMode


def test_every_scrape_shows_the_state_of_that_moment() -> None:
    registry = CollectorRegistry()
    mode, ready, at = CryptoMode.ENV, False, 5.0
    count = expose(registry, mode=lambda: mode, ready=lambda: ready, initialised_at=lambda: at)
    names = ("crypto_mode", "crypto_ready", "crypto_init_timestamp_seconds", "crypto_decryption_errors_total")
    assert [registry.get_sample_value(name) for name in names] == [0, 0, 5, 0]
    mode, ready, at = CryptoMode.KMS, True, 6.0
    count()
    assert [registry.get_sample_value(name) for name in names] == [1, 1, 6, 1]
