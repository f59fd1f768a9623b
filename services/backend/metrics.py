"""The backend's metrics, by the names of the contract; the only room that names them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from shared.contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    CryptoMode,
)


def expose(
    registry: CollectorRegistry,
    *,
    mode: Callable[[], CryptoMode],
    ready: Callable[[], bool],
    initialised_at: Callable[[], float],
) -> Callable[[], None]:
    """Registers every metric; the functions are asked at each scrape.

    Returns:
        What to call at each failed decryption of a record.
    """
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        (CRYPTO_MODE, "What wraps new data keys: 0 the local key, 1 KMS.", lambda: mode().gauge),
        (CRYPTO_READY, "1 while a data key can be used, else 0.", ready),
        (CRYPTO_INIT_TIMESTAMP, "When mode or readiness last changed, the start included; unix time.", initialised_at),
    )
    for name, meaning, value in gauges:
        Gauge(name, meaning, registry=registry).set_function(value)
    errors = Counter(
        CRYPTO_DECRYPTION_ERRORS,
        "Reads of a record that failed: its data key cannot be unwrapped, or it is corrupt.",
        registry=registry,
    )
    return errors.inc
