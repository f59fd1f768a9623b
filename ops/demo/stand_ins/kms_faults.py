"""Breaks KMS in the ways that happen, by their names: a name comes in, faults go to the emulator's API."""

from typing import Any, Final

import aiohttp

CALL_TIMEOUT = aiohttp.ClientTimeout(total=5)

Json = dict[str, Any]

_CRYPTO = ("Encrypt", "Decrypt")


def _build_crypto_faults(**fault: Any) -> tuple[Json, ...]:
    return tuple({**fault, "operation": operation} for operation in _CRYPTO)


FAULTS_BY_NAME: Final[dict[str, tuple[Json, ...]]] = {
    "permission_denied": _build_crypto_faults(kind="denied"),
    "unavailable": ({"kind": "status", "status": "UNAVAILABLE", "message": "The service is currently unavailable."},),
    "latency": _build_crypto_faults(kind="latency", seconds=2.0),
    "stall": _build_crypto_faults(kind="stall"),
    "disabled": _build_crypto_faults(
        kind="status",
        status="FAILED_PRECONDITION",
        message="The key version is not enabled, current state is: DISABLED.",
    ),
    "corrupt_crc": _build_crypto_faults(kind="corrupt_crc"),
}


class EmulatorError(Exception):
    """The emulator does not answer; the message is one sentence with the next step."""


class KmsFaults:
    """The emulator's faults, over HTTP.

    Args:
        url: of its faults API, such as `http://127.0.0.1:9011`; None without an emulator.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url

    async def list_active(self) -> Json:
        """`{"broken": NAME | "other" | None, "faults": […]}`: the current faults, whoever added them."""
        answer = await self._call("GET")
        faults = answer["faults"]
        if not faults:
            return {"broken": None, "faults": []}
        return {
            "broken": next((name for name, parts in FAULTS_BY_NAME.items() if _are_equal(parts, faults)), "other"),
            "faults": faults,
        }

    async def break_kms(self, name: str) -> None:
        """Break KMS with the named fault alone. Raises KeyError for an unknown name, EmulatorError."""
        parts = FAULTS_BY_NAME[name]
        await self._call("DELETE")
        for part in parts:
            await self._call("POST", part)

    async def heal_kms(self) -> None:
        """Remove every fault. Raises EmulatorError."""
        await self._call("DELETE")

    async def _call(self, method: str, fault: Json | None = None) -> Json:
        if self._url is None:
            raise EmulatorError("no KMS emulator is connected; start the stand-ins with --emulator-faults URL")
        try:
            async with (
                aiohttp.ClientSession(timeout=CALL_TIMEOUT) as session,
                session.request(method, f"{self._url.rstrip('/')}/faults", json=fault) as response,
            ):
                if response.status >= 300:
                    raise EmulatorError(f"the KMS emulator at {self._url} answered {response.status}; see its log")
                return await response.json() if response.status != 204 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise EmulatorError(f"the KMS emulator at {self._url} does not answer; start it, or see its log") from None


def _are_equal(parts: tuple[Json, ...], faults: list[Json]) -> bool:
    """Whether the faults in force are exactly these."""
    return len(parts) == len(faults) and all(any(part.items() <= fault.items() for fault in faults) for part in parts)
