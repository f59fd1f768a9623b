"""The faults of the demo's Transit, as they happen: an administrator's requests to the real server."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ops.demo.openbao import ALLOWS, KEY, MOUNT, POLICY, READS, OpenBao

_Request = tuple[str, str, Mapping[str, Any] | None]
"""Method, path, document."""
_POLICY: Final = f"sys/policies/acl/{POLICY}"
_KEY: Final = f"{MOUNT}/keys/{KEY}"
_QUOTA: Final = "sys/quotas/rate-limit/demo"


class _Fault(NamedTuple):
    label: str
    """What the page calls it."""
    begin: _Request
    end: _Request | None
    """None where the server is unsealed."""
    shown_by: str
    """What is read to see whether it is there."""
    is_there: Callable[[Any], bool]


_FAULTS: Final = {
    "permission_denied": _Fault(
        "Permission denied",
        ("POST", _POLICY, {"policy": READS}),
        ("POST", _POLICY, {"policy": ALLOWS}),
        _POLICY,
        lambda found: found["data"]["policy"] != ALLOWS,
    ),
    "sealed": _Fault("Sealed", ("PUT", "sys/seal", None), None, "sys/seal-status", lambda found: found["sealed"]),
    "disabled": _Fault(
        "Key soft-deleted",
        ("DELETE", f"{_KEY}/soft-delete", None),
        ("POST", f"{_KEY}/soft-delete-restore", {}),
        _KEY,
        lambda found: found["data"]["soft_deleted"],
    ),
    "quota_exhausted": _Fault(
        "Rate limit",
        ("POST", _QUOTA, {"path": f"{MOUNT}/encrypt/{KEY}", "rate": 1, "interval": "24h"}),
        ("DELETE", _QUOTA, None),
        _QUOTA,
        bool,
    ),
}


class TransitFaults:
    """Breaks and heals it; the same methods as `KmsFaults`."""

    labels: Final = {name: fault.label for name, fault in _FAULTS.items()}

    def __init__(self, bao: OpenBao) -> None:
        self._bao = bao

    async def list_active(self) -> dict[str, Any]:
        """As `KmsFaults` has it, whoever broke it. While it is sealed nothing else can be seen. Raises OpenBaoError."""
        seal = _FAULTS["sealed"]
        if seal.is_there(await self._bao.call("GET", seal.shown_by)):
            return {"broken": "sealed", "faults": ["sealed"]}
        others = {name: fault for name, fault in _FAULTS.items() if fault.end}
        found = [name for name, fault in others.items() if fault.is_there(await self._bao.call("GET", fault.shown_by))]
        return {"broken": found[0] if len(found) == 1 else "other" if found else None, "faults": found}

    async def break_kms(self, name: str) -> None:
        """Break it with the named fault alone. Raises KeyError for an unknown name, OpenBaoError."""
        fault = _FAULTS[name]
        await self.heal_kms()
        await self._bao.call(*fault.begin)

    async def heal_kms(self) -> None:
        await self._bao.unseal()
        for name in (await self.list_active())["faults"]:
            if end := _FAULTS[name].end:
                await self._bao.call(*end)
