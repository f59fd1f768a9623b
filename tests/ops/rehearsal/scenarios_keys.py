"""What happens to keys, and the alerts that the exporter's own calls raise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.ops.rehearsal.gcloud import BOTH, CRYPTO, EXPORTER_ACCOUNT, VIEWER
from tests.ops.rehearsal.rehearsal import Broken, Rehearsal, Scenario
from tests.ops.rehearsal.stage import Stage


@asynccontextmanager
async def _denied(stage: Stage) -> AsyncIterator[Broken]:
    await stage.gcloud.revoke("ledger", CRYPTO, BOTH)
    yield Broken()


@asynccontextmanager
async def _destroyed(stage: Stage) -> AsyncIterator[Broken]:
    """A version that records need; the service was restarted since, and somebody goes on reading."""
    await stage.wait_for_value('kms_key_primary_version{target="orders-kek"}')  # so version 1 has a canary
    await stage.put("orders", "old")
    await stage.gcloud.rotate("orders")
    await stage.gcloud.schedule_destruction("orders", 1)
    await stage.kubectl.stop("orders")
    await stage.kubectl.start("orders")
    await stage.answers("orders")
    reading = asyncio.create_task(stage.read_repeatedly("orders", "old"))
    try:
        yield Broken()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


@asynccontextmanager
async def _slow(stage: Stage) -> AsyncIterator[Broken]:
    fault = await stage.kms_fault("slow", kind="latency", seconds=3, operation="Encrypt")
    yield Broken(repair=lambda: stage.kms_healed(fault))


@asynccontextmanager
async def _flapping(stage: Stage) -> AsyncIterator[Broken]:
    """One node of several cannot reach KMS, until it is cordoned."""

    async def alternate() -> None:
        while not stage.kubectl.cordoned.is_set():
            fault = await stage.kms_fault("flapping", kind="status", status="UNAVAILABLE")
            await stage.wait_for_value('kms_probe_success{target="flapping-kek"} == 0')
            await stage.kms_healed(fault)
            await stage.wait_for_value('kms_probe_success{target="flapping-kek"} == 1')

    turning = asyncio.create_task(alternate())
    try:
        yield Broken()
    finally:
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)


@asynccontextmanager
async def _blind(stage: Stage) -> AsyncIterator[Broken]:
    await stage.gcloud.revoke("blind", VIEWER, [EXPORTER_ACCOUNT])
    yield Broken()


GRANT = ("Grant the role",)
UPDATED = ("Updated IAM policy",)
LEDGER = {"service": "backend", "target": "ledger-kek"}
OLD = {"service": "orders", "target": "orders-kek", "version": "1"}

DENIED = Scenario(
    "a role that is gone",
    _denied,
    (
        Rehearsal(
            "KMSCryptoModeNotKMS",
            {"service": "backend"},
            ('"crypto_mode":"env"', "permission_denied"),
            ('"crypto_mode":"kms"',),
            done=UPDATED,
            first_sections=("What to look at first", "permission_denied"),
            also=GRANT,
        ),
        Rehearsal("KMSProbeFailing", LEDGER, ("permission_denied", "=> 0"), ("=> 1",), done=UPDATED, also=GRANT),
        Rehearsal("KMSPermissionMissing", LEDGER, ("useToEncrypt", "=> 0"), ("=> 1",), done=UPDATED, also=GRANT),
    ),
)
DESTROYED = Scenario(
    "a version to be destroyed",
    _destroyed,
    tuple(
        Rehearsal(
            alert,
            {name: OLD[name] for name in labels},
            bad,
            good,
            variables={**{name.upper(): value for name, value in OLD.items()}, "KEY": "orders"},
            done=("state: ENABLED",),
            also=also,
        )
        for alert, labels, bad, good, also in (
            ("KMSKeyVersionDestroyScheduled", OLD, ("cryptoKeyVersions/1", '"kek_version":"1"'), ("ENABLED",), ()),
            ("KMSCanaryLost", OLD, ("key_destroyed", "DESTROY_SCHEDULED"), ("=> 1",), ()),
            (
                "KMSHighCryptoErrorRate",
                ("service",),
                ("=>", "data key cannot be unwrapped"),
                ("=> 0",),
                ("Enable a version",),
            ),
            ("KMSDecryptionErrorsBurst", ("service",), ("=>",), ("=> 0",), ("Enable a version",)),
            (
                "KMSDataKeysUnusable",
                ("service",),
                ("=> 1", '"data_keys_unusable":1', "key_destroyed (version 1)", "DESTROY_SCHEDULED"),
                ('"status":"ok"', "=> 0"),
                ("Enable a version",),
            ),
        )
    ),
)
SLOW = Scenario(
    "a KMS that is slow",
    _slow,
    (Rehearsal("KMSHighLatency", {"service": "slow", "target": "slow-kek"}, ('operation="encrypt"',), ()),),
)
FLAPPING = Scenario(
    "a node that reaches KMS now and then",
    _flapping,
    (Rehearsal("KMSProbeFlapping", {"service": "flapping", "target": "flapping-kek"}, ("unavailable",), ("=>",)),),
)
BLIND = Scenario(
    "an exporter without its viewer's role",
    _blind,
    (
        Rehearsal(
            "KMSKeyProblems",
            {"service": "blind", "target": "blind-kek"},
            ("the key cannot be read", "permission_denied"),
            ("=> 0",),
            variables={"KEY": "blind"},
            done=UPDATED,
        ),
    ),
)
