"""gcloud, as far as the runbook needs it: arguments in, what the emulator answers out, printed as gcloud prints it.

The emulator grants whatever no fault denies, and knows no accounts. So a role that somebody lacks is a fault for each
of its permissions, which is healed once nobody lacks it any more.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import yaml
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import kms_v1 as kms
from google.cloud.kms_v1 import CryptoKeyVersion, HsmManagementAsyncClient, KeyManagementServiceAsyncClient

from tests.key_versions import Versions
from tests.ops.rehearsal.answer import Flags, RefusedError, parsed, table

CRYPTO = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
VIEWER = "roles/cloudkms.viewer"
ROLES = {
    CRYPTO: ("cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"),
    VIEWER: ("cloudkms.cryptoKeys.get", "cloudkms.cryptoKeyVersions.list"),
}
RING = "projects/demo/locations/global/keyRings/app"
INSTANCE = "projects/demo/locations/global/singleTenantHsmInstances/own"
SERVICE_ACCOUNT = "ledger@demo.iam.gserviceaccount.com"
EXPORTER_ACCOUNT = "keypulse-exporter@demo.iam.gserviceaccount.com"
BOTH = (SERVICE_ACCOUNT, EXPORTER_ACCOUNT)
_IN_RING = frozenset({"project", "location", "keyring"})
_OF_KEY = _IN_RING | {"key"}
_CONDITION = re.compile(r'(?P<name>[\w.]+)(?P<compares>:|=~|=|\()"(?P<value>[^"]+)"\)?')
_LOG = Flags(frozenset({"project", "freshness", "limit", "format"}))


def name_of(key: str) -> str:
    """The full name of one of the rehearsal's keys."""
    return f"{RING}/cryptoKeys/{key}"


@dataclass
class _Missing:
    """A role on a key: who lacks it, and the faults that stand for that."""

    accounts: set[str]
    faults: list[str]


@dataclass
class Gcloud:
    """A person's gcloud."""

    client: KeyManagementServiceAsyncClient
    hsm: HsmManagementAsyncClient
    http: aiohttp.ClientSession
    faults: str
    """The emulator's `/faults`."""
    changes: list[tuple[str, str, str, str]] = field(default_factory=list)
    """What the audit log says: time, account, method, resource."""
    _missing: dict[tuple[str, str], _Missing] = field(default_factory=dict)
    """By key and role."""

    async def revoke(self, key: str, role: str, accounts: Iterable[str]) -> None:
        """Somebody takes the role away from them."""
        self._record_change("SetIamPolicy", name_of(key))
        missing = self._missing.setdefault((key, role), _Missing(set(accounts), []))
        for permission in ROLES[role]:
            fault = {"kind": "denied", "key": name_of(key), "permission": permission}
            async with self.http.post(self.faults, json=fault) as answer:
                missing.faults.append((await answer.json())["id"])

    async def schedule_destruction(self, key: str, version: int) -> None:
        """Somebody destroys a version."""
        name = f"{name_of(key)}/cryptoKeyVersions/{version}"
        self._record_change("DestroyCryptoKeyVersion", name)
        await self.client.destroy_crypto_key_version(kms.DestroyCryptoKeyVersionRequest(name=name))

    async def create_key_in_hsm(self, key: str) -> None:
        """A key in an instance that nobody has refreshed for almost two years."""
        parent, _, id_ = INSTANCE.rpartition("/singleTenantHsmInstances/")
        soon: Any = {"disable_time": datetime.now(UTC) + timedelta(days=3)}
        request: Any = {"parent": parent, "single_tenant_hsm_instance_id": id_, "single_tenant_hsm_instance": soon}
        await self.hsm.create_single_tenant_hsm_instance(request)
        document: Any = {"purpose": "ENCRYPT_DECRYPT", "crypto_key_backend": INSTANCE}
        document["version_template"] = {"protection_level": "HSM_SINGLE_TENANT"}
        await self.client.create_crypto_key({"parent": RING, "crypto_key_id": key, "crypto_key": document})

    async def rotate(self, key: str) -> None:
        """A new version becomes the primary one."""
        await Versions(self.client, name_of(key)).rotate()

    async def run(self, arguments: list[str]) -> str:
        """What gcloud prints. Raises RefusedError where it would complain."""
        commands: dict[tuple[str, ...], Callable[[list[str]], Awaitable[str]]] = {
            ("kms", "keys", "list"): self._list_keys,
            ("kms", "keys", "describe"): self._describe,
            ("kms", "keys", "get-iam-policy"): self._get_policy,
            ("kms", "keys", "add-iam-policy-binding"): self._add_binding,
            ("kms", "keys", "versions", "list"): self._list_versions,
            ("kms", "keys", "versions", "describe"): self._describe_version,
            ("kms", "keys", "versions", "enable"): self._enable,
            ("kms", "keys", "versions", "disable"): self._disable,
            ("kms", "keys", "versions", "restore"): self._restore,
            ("kms", "single-tenant-hsm", "describe"): self._describe_instance,
            ("kms", "single-tenant-hsm", "proposal", "create"): self._propose,
            ("kms", "single-tenant-hsm", "proposal", "execute"): self._execute_proposal,
            ("logging", "read"): self._read_log,
        }
        for command_names, command in commands.items():
            if tuple(arguments[: len(command_names)]) == command_names:
                try:
                    return await command(arguments[len(command_names) :])
                except GoogleAPICallError as error:
                    raise RefusedError(f"ERROR: (gcloud.{'.'.join(command_names)}) {error.message}") from None
        raise RefusedError(f"ERROR: (gcloud) Invalid choice: '{' '.join(arguments[:4])}'.")

    async def _list_keys(self, arguments: list[str]) -> str:
        _, flags = parsed(arguments, 0, Flags(_IN_RING))
        pager = await self.client.list_crypto_keys(kms.ListCryptoKeysRequest(parent=_ring(flags)))
        keys = [key async for key in pager]
        rows = [(key.name, key.purpose.name, key.primary.state.name) for key in keys]
        return table([("NAME", "PURPOSE", "PRIMARY_STATE"), *rows])

    async def _describe(self, arguments: list[str]) -> str:
        key = await self.client.get_crypto_key(
            kms.GetCryptoKeyRequest(name=_key(*parsed(arguments, 1, Flags(_IN_RING))))
        )
        document = kms.CryptoKey.to_dict(key, use_integers_for_enums=False, preserving_proto_field_name=False)
        return str(yaml.safe_dump({name: value for name, value in document.items() if value}))

    async def _get_policy(self, arguments: list[str]) -> str:
        name = _key(*parsed(arguments, 1, Flags(_IN_RING)))
        await self.client.get_crypto_key(kms.GetCryptoKeyRequest(name=name))
        return self._policy(name)

    async def _add_binding(self, arguments: list[str]) -> str:
        positional, flags = parsed(arguments, 1, Flags(_IN_RING | {"role", "member"}))
        name = _key(positional, flags)
        if flags["role"] not in ROLES:
            raise RefusedError(f"ERROR: Role {flags['role']} is not supported for this resource.")
        if not flags["member"].startswith("serviceAccount:"):
            raise RefusedError(f"ERROR: The member {flags['member']} is of an unknown type.")
        await self._granted((positional[0], flags["role"]), flags["member"].removeprefix("serviceAccount:"))
        return f"Updated IAM policy for key [{positional[0]}].\n" + self._policy(name)

    async def _granted(self, role: tuple[str, str], account: str) -> None:
        missing = self._missing.get(role, _Missing(set(), []))
        missing.accounts.discard(account)
        while missing.faults and not missing.accounts:
            async with self.http.delete(f"{self.faults}/{missing.faults.pop()}") as answer:
                assert answer.status == 204

    async def _list_versions(self, arguments: list[str]) -> str:
        _, flags = parsed(arguments, 0, Flags(_OF_KEY))
        name = _key([flags["key"]], flags)
        pager = await self.client.list_crypto_key_versions(kms.ListCryptoKeyVersionsRequest(parent=name))
        return table([("NAME", "STATE"), *[(version.name, version.state.name) async for version in pager]])

    async def _describe_version(self, arguments: list[str]) -> str:
        name = _version(*parsed(arguments, 1, Flags(_OF_KEY)))
        return _describe_version(await self.client.get_crypto_key_version(kms.GetCryptoKeyVersionRequest(name=name)))

    async def _enable(self, arguments: list[str]) -> str:
        return await self._set_state(arguments, CryptoKeyVersion.CryptoKeyVersionState.ENABLED)

    async def _disable(self, arguments: list[str]) -> str:
        return await self._set_state(arguments, CryptoKeyVersion.CryptoKeyVersionState.DISABLED)

    async def _set_state(self, arguments: list[str], state: int) -> str:
        version = CryptoKeyVersion(name=_version(*parsed(arguments, 1, Flags(_OF_KEY))), state=state)
        request = kms.UpdateCryptoKeyVersionRequest(crypto_key_version=version, update_mask={"paths": ["state"]})
        return _describe_version(await self.client.update_crypto_key_version(request))

    async def _restore(self, arguments: list[str]) -> str:
        name = _version(*parsed(arguments, 1, Flags(_OF_KEY)))
        return _describe_version(
            await self.client.restore_crypto_key_version(kms.RestoreCryptoKeyVersionRequest(name=name))
        )

    async def _describe_instance(self, arguments: list[str]) -> str:
        (name,), _ = parsed(arguments, 1, Flags(frozenset()))
        instance: Any = await self.hsm.get_single_tenant_hsm_instance({"name": name})
        return f"disableTime: {instance.disable_time}\nname: {name}\nstate: {instance.state.name}\n"

    async def _propose(self, arguments: list[str]) -> str:
        flags = frozenset({"operation-type", "single-tenant-hsm-instance-proposal-id"})
        (name,), given = parsed(arguments, 1, Flags(flags))
        assert given["operation_type"] == "refresh_sthi"
        return f"name: {name}/proposals/{given['single_tenant_hsm_instance_proposal_id']}\nstate: CREATING\n"

    async def _execute_proposal(self, arguments: list[str]) -> str:
        (name,), _ = parsed(arguments, 1, Flags(frozenset()))
        await self.hsm.execute_single_tenant_hsm_instance_proposal({"name": name})
        return f"Executed proposal [{name}].\n"

    async def _read_log(self, arguments: list[str]) -> str:
        (query,), flags = parsed(arguments, 1, _LOG)
        columns = flags["format"].removeprefix("table(").removesuffix(")").split(", ")
        headings = tuple(column.rpartition(".")[2].upper() for column in columns)
        parts = ("timestamp", "protoPayload.authenticationInfo.principalEmail", "protoPayload.methodName")
        positions = {**{part: n for n, part in enumerate(parts)}, "protoPayload.resourceName": 3}
        if unknown := set(columns) - positions.keys():
            raise RefusedError(f"ERROR: nothing in the log is called {', '.join(unknown)}")
        rows = [change for change in self.changes if selects(query, change[2], change[3])]
        return table([headings, *[tuple(row[positions[column]] for column in columns) for row in rows]])

    def _record_change(self, method: str, resource: str) -> None:
        self.changes.append((datetime.now(UTC).isoformat(), "somebody@example.org", method, resource))

    def _policy(self, name: str) -> str:
        key = name.rpartition("/")[2]
        bindings = []
        for role in ROLES:
            lack = self._missing[key, role].accounts if (key, role) in self._missing else set()
            members = [f"serviceAccount:{account}" for account in BOTH if account not in lack]
            bindings += [{"members": members, "role": role}] if members else []
        return str(yaml.safe_dump({"bindings": bindings, "etag": "BwY=", "version": 1}))


def selects(query: str, method: str, resource: str) -> bool:
    """Whether a filter of the log selects a change of a key. Raises RefusedError where it is none."""
    fields = {
        "log_id": "cloudaudit.googleapis.com/activity",
        "protoPayload.serviceName": "cloudkms.googleapis.com",
        "protoPayload.methodName": method,
        "protoPayload.resourceName": resource,
    }
    found = [_CONDITION.fullmatch(condition) for condition in query.split(" AND ")]
    if unclear := [query for one in found if one is None or one["name"] not in fields]:
        raise RefusedError(f"ERROR: (gcloud.logging.read) INVALID_ARGUMENT: Unparseable filter: {unclear[0]}")
    return all(_compares(one["compares"], one["value"], fields[one["name"]]) for one in found if one)


def _compares(how: str, wanted: str, value: str) -> bool:
    if how == "=~":
        return re.search(wanted, value) is not None
    return wanted in value if how == ":" else wanted == value


def _ring(flags: dict[str, str]) -> str:
    return f"projects/{flags['project']}/locations/{flags['location']}/keyRings/{flags['keyring']}"


def _key(positional: list[str], flags: dict[str, str]) -> str:
    return f"{_ring(flags)}/cryptoKeys/{positional[0]}"


def _version(positional: list[str], flags: dict[str, str]) -> str:
    return f"{_key([flags['key']], flags)}/cryptoKeyVersions/{positional[0]}"


def _describe_version(version: CryptoKeyVersion) -> str:
    return f"algorithm: {version.algorithm.name}\nname: {version.name}\nstate: {version.state.name}\n"
