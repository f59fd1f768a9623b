"""What happens to services, to their rotations, and to an exporter."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import yaml

from tests.ops.rehearsal.gcloud import CRYPTO, SERVICE_ACCOUNT, name_of
from tests.ops.rehearsal.rehearsal import Broken, Rehearsal, Scenario
from tests.ops.rehearsal.stage import Stage
from tests.shared.certificates import Authority

START_SECONDS = 30.0
ON_ITS_LOCAL_KEY_SECONDS = 10
"""As long as the stage's KMSCryptoDownOnLocalKey asks for."""
EXPORTER = "exporter-staging.yml"


@asynccontextmanager
async def _back_and_forth(stage: Stage) -> AsyncIterator[Broken]:
    """The service loses KMS, has it again, and loses it; the exporter watches another key, and sees nothing."""
    for mode in (0, 1):
        fault = await stage.kms_fault("payroll", kind="denied", operation="Encrypt")
        await stage.wait_for_value('crypto_mode{service="payroll"} == 0')
        if mode == 0:
            await stage.kms_healed(fault)
            await stage.wait_for_value('crypto_mode{service="payroll"} == 1')
    await stage.gcloud.revoke("payroll", CRYPTO, [SERVICE_ACCOUNT])
    await stage.kms_healed(fault)
    yield Broken()


@asynccontextmanager
async def _forgotten(stage: Stage) -> AsyncIterator[Broken]:
    """Nobody has renewed a certificate."""
    authority = Authority(stage.stack.folder)
    authority.sign("client", days=0.25)  # of a life of 1.25

    async def renewed() -> None:
        authority.sign("client", days=90)

    yield Broken(repair=renewed)


@asynccontextmanager
async def _stop_archive(stage: Stage) -> AsyncIterator[Broken]:
    await stage.kubectl.stop("archive")
    yield Broken()


@asynccontextmanager
async def _without_database(stage: Stage) -> AsyncIterator[Broken]:
    """It starts without a data key, and can make none: meanwhile its database takes no more writes."""
    async with _unwritable(stage) as broken:
        yield broken


@asynccontextmanager
async def _down_on_its_local_key(stage: Stage) -> AsyncIterator[Broken]:
    """The same, of a service that had worked without KMS for a while."""
    fault = await stage.kms_fault("archive", kind="denied", operation="Encrypt")
    began = "ALERTS_FOR_STATE{alertname='KMSCryptoModeNotKMS', service='archive'}"
    await stage.wait_for_value(f"time() - {began} > {ON_ITS_LOCAL_KEY_SECONDS}")
    async with _unwritable(stage) as broken:
        yield broken
    await stage.kms_healed(fault)


@asynccontextmanager
async def _unwritable(stage: Stage) -> AsyncIterator[Broken]:
    await stage.kubectl.stop("archive")
    with closing(sqlite3.connect(stage.stack.folder / "archive.db")) as database:
        database.execute("DELETE FROM data_keys")
        database.execute("DELETE FROM records")  # of which none can be read without them, which is another alert
        database.commit()
    (stage.stack.folder / "archive.key").unlink()
    hurry = await stage.kms_fault("archive", kind="latency", seconds=1.5)
    await stage.kubectl.start("archive")
    async with asyncio.timeout(START_SECONDS):
        while not _is_alive(stage):  # noqa: ASYNC110 - noted with its local key, before KMS is asked
            await asyncio.sleep(0.01)
    with closing(stage.locked("archive.db")) as lock:
        await stage.kms_healed(hurry)

        async def repaired() -> None:
            lock.execute("ROLLBACK")

        yield Broken(repair=repaired)


@asynccontextmanager
async def _without_row(stage: Stage) -> AsyncIterator[Broken]:
    """The row of a data key is gone, as after an older snapshot was put back, and no instance holds the data key."""
    await stage.put("archive", "old")
    await stage.kubectl.stop("archive")
    await _execute(stage, "CREATE TABLE backup AS SELECT * FROM data_keys", "DELETE FROM data_keys")
    await stage.kubectl.start("archive")
    await stage.answers("archive")

    async def put_back() -> None:
        await _execute(stage, "UPDATE backup SET status = 'retired'", "INSERT INTO data_keys SELECT * FROM backup")

    yield Broken(repair=put_back)


@asynccontextmanager
async def _spoilt_row(stage: Stage) -> AsyncIterator[Broken]:
    """Another program writes a text that is none into the row of a data key."""
    await _execute(stage, "UPDATE data_keys SET algorithm = CAST(X'FF' AS TEXT)")

    async def corrected() -> None:
        await _execute(stage, "UPDATE data_keys SET algorithm = 'AES-256-GCM'")

    yield Broken(repair=corrected)


@asynccontextmanager
async def _without_local_key(stage: Stage) -> AsyncIterator[Broken]:
    """The file is gone after a restart, and another instance still has that key, so none is made."""
    await stage.kubectl.stop("archive")
    file = stage.stack.folder / "archive.key"
    content = file.read_bytes()
    file.unlink()
    await _execute(
        stage,
        "INSERT INTO keyring_instances (id, last_seen_at, interval, unwrapped_keys)"
        " VALUES ('other', unixepoch(), 60, '')",
    )
    await stage.kubectl.start("archive")
    await stage.answers("archive")

    async def put_back() -> None:
        file.write_bytes(content)
        file.chmod(0o600)
        await _execute(stage, "DELETE FROM keyring_instances WHERE id = 'other'")

    yield Broken(repair=put_back)


def _is_alive(stage: Stage) -> bool:
    with closing(sqlite3.connect(stage.stack.folder / "archive.db", timeout=10)) as database:
        return database.execute("SELECT 1 FROM keyring_instances").fetchone() is not None


async def _execute(stage: Stage, *statements: str) -> None:
    with closing(sqlite3.connect(stage.stack.folder / "archive.db", timeout=10)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@asynccontextmanager
async def _half_done(stage: Stage) -> AsyncIterator[Broken]:
    """The key has a new primary version, and KMS refuses the rotation that follows, which ends it at once."""
    await stage.put("backend", "old")
    await stage.gcloud.rotate("ledger")
    fault = await stage.kms_fault("ledger", kind="denied", operation="Encrypt")
    command = "keypulse-rotator run --config /etc/keypulse/rotator.yml --type rewrap-kek"
    ran = await stage.shell.run(command, command)
    assert ran.code == 1, ran.printed
    await stage.kms_healed(fault)
    await stage.wait_for_value('crypto_mode{service="backend"} == 1')
    yield Broken()


@asynccontextmanager
async def _unrefreshed(stage: Stage) -> AsyncIterator[Broken]:
    """An exporter begins to watch a key whose HSM instance nobody has refreshed for long."""
    await stage.gcloud.create_key_in_hsm("sealed")
    file = stage.stack.folder / EXPORTER
    before = file.read_text(encoding="utf-8")
    watched = yaml.safe_load(before)
    watched["targets"].append({**watched["targets"][0], **SEALED, "key": name_of("sealed")})
    file.write_text(yaml.safe_dump(watched), encoding="utf-8")
    await stage.reload("exporter-staging")
    try:
        yield Broken()
    finally:
        file.write_text(before, encoding="utf-8")
        await stage.reload("exporter-staging")


@asynccontextmanager
async def _careless(stage: Stage) -> AsyncIterator[Broken]:
    """Somebody leads the exporter to something that is not KMS."""
    file = stage.stack.folder / EXPORTER
    right = file.read_text(encoding="utf-8")
    wrong = yaml.safe_load(right)
    wrong["targets"][0]["endpoint"] = f"127.0.0.1:{stage.staging['careless']}"
    file.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    await stage.reload("exporter-staging")

    async def corrected() -> None:
        file.write_text(right, encoding="utf-8")

    yield Broken(repair=corrected)


@asynccontextmanager
async def _mistaken(stage: Stage) -> AsyncIterator[Broken]:
    file = stage.stack.folder / EXPORTER
    right = file.read_text(encoding="utf-8")
    file.write_text(right + "tragets: []\n", encoding="utf-8")
    await stage.reload("exporter-staging")

    async def corrected() -> None:
        file.write_text(right, encoding="utf-8")

    yield Broken(repair=corrected)


@asynccontextmanager
async def _unwatched(stage: Stage) -> AsyncIterator[Broken]:
    """Somebody gives the exporter an address with other metrics."""
    file = stage.stack.folder / EXPORTER
    before = file.read_text(encoding="utf-8")
    watched = yaml.safe_load(before)
    backend = watched["backends"][0]
    backend["metrics_url"] = f"{stage.url('exporter-staging')}/metrics"
    file.write_text(yaml.safe_dump(watched), encoding="utf-8")
    await stage.reload("exporter-staging")

    async def corrected() -> None:
        backend["metrics_url"] = f"{stage.url('backend')}/metrics"
        file.write_text(yaml.safe_dump(watched), encoding="utf-8")

    try:
        yield Broken(repair=corrected)
    finally:
        file.write_text(before, encoding="utf-8")
        await stage.reload("exporter-staging")


@asynccontextmanager
async def _absent(stage: Stage) -> AsyncIterator[Broken]:
    await stage.kubectl.stop("exporter-staging")
    yield Broken()


SEALED = {"name": "sealed-kek", "service": "sealed"}
PAYROLL, ARCHIVE = {"service": "payroll"}, {"service": "archive"}
STAGING = {"env": "staging"}
AAD = {**STAGING, "service": "aad", "target": "aad-kek"}

STARTED = ("successfully rolled out",)

BACK_AND_FORTH = Scenario(
    "a service that loses KMS again and again",
    _back_and_forth,
    (
        Rehearsal(
            "KMSCryptoModeFlapping",
            PAYROLL,
            ("0 @", "1 @", "RESTARTS"),
            ("=>",),
            {"KEY": "payroll"},
            done=("Updated IAM policy",),
            also=("Grant the role",),
        ),
        Rehearsal(
            "KMSBackendOnEnvWhileKMSHealthy",
            PAYROLL,
            ("permission_denied",),
            ("=> 1",),
            {"KEY": "payroll"},
            done=("Updated IAM policy",),
            also=("Grant the role",),
        ),
    ),
)
MISSING = Scenario(
    "a service that ended",
    _stop_archive,
    (
        Rehearsal(
            "KMSHealthChecksFailing",
            ARCHIVE,
            ("=> 0", "CrashLoopBackOff"),
            ("=> 1",),
            done=STARTED,
            codes=frozenset({7}),
        ),
    ),
)
WITHOUT_DATABASE = Scenario(
    "a database that nobody can write",
    _without_database,
    (
        Rehearsal(
            "KMSCryptoNotReady",
            ARCHIVE,
            ('"crypto_ready":false', "503", "the keyring's database cannot be used"),
            ('"crypto_ready":true', "204", "check"),
            done=STARTED,
        ),
    ),
)
DOWN_ON_ITS_LOCAL_KEY = Scenario(
    "a database that nobody can write, while KMS is away",
    _down_on_its_local_key,
    (
        Rehearsal(
            "KMSCryptoDownOnLocalKey",
            ARCHIVE,
            ('"crypto_mode":"env"', '"crypto_ready":false', "503", "the keyring's database cannot be used"),
            ('"crypto_ready":true', "204", "check"),
            done=STARTED,
        ),
    ),
)
WITHOUT_ROW = Scenario(
    "a database that lost the row of a data key",
    _without_row,
    (
        Rehearsal(
            "KMSDataKeysMissing",
            ARCHIVE,
            ('"status":"degraded"', "the database lacks 1 data key that records need", "=> 1"),
            ('"status":"ok"', "=> 0"),
        ),
    ),
)
SPOILT_ROW = Scenario(
    "a row of the keyring that another program spoilt",
    _spoilt_row,
    (
        Rehearsal(
            "KMSKeyringRowsUnreadable",
            ARCHIVE,
            ('"status":"degraded"', "of the keyring cannot be read", "correct it there"),
            ('"status":"ok"', "=> 0"),
        ),
    ),
)
WITHOUT_LOCAL_KEY = Scenario(
    "a local key that is lost",
    _without_local_key,
    (
        Rehearsal(
            "KMSLocalKeyMissing",
            ARCHIVE,
            ('"status":"degraded"', "there is no local key for an outage of KMS", "=> 1"),
            ('"status":"ok"', "=> 0"),
        ),
    ),
)
ROTATION = Scenario(
    "a rotation that failed",
    _half_done,
    (
        Rehearsal("KMSRotationFailed", {"service": "backend"}, ("step=",), ("everything can be read", "=> 0")),
        Rehearsal(
            "KMSRotationOverdue",
            {"service": "backend"},
            ('kek_version="1"', "there was no rotation yet"),
            ('kek_version="2"', "kms_rotation_last_success_timestamp_seconds"),
        ),
    ),
)
UNREFRESHED = Scenario(
    "an HSM instance that nobody refreshed",
    _unrefreshed,
    (
        Rehearsal(
            "KMSHsmInstanceExpiring",
            {**STAGING, "service": "sealed", "target": "sealed-kek"},
            ("=> 2", "state: ACTIVE"),
            ("=> 63",),
            {"KEY": "sealed"},
            done=("proposals/refresh",),
        ),
    ),
)
CARELESS = Scenario(
    "something else than KMS",
    _careless,
    (Rehearsal("KMSWrongAADAccepted", AAD, ("=> 0",), ("=> 1",), {"KEY": "aad"}),),
)
MISTAKEN = Scenario(
    "a mistake in an exporter's file",
    _mistaken,
    (
        Rehearsal(
            "KMSConfigReloadFailed",
            STAGING,
            ("tragets", "configuration reload failed"),
            ("=> 1",),
            done=("reloaded",),
            codes=frozenset({2}),
        ),
    ),
)
FORGOTTEN = Scenario(
    "a certificate that nobody renews",
    _forgotten,
    (
        Rehearsal(
            "KMSCredentialExpiring",
            {"env": "staging", "credential": "client certificate for the backend exporter"},
            ("client certificate for the backend",),
            (),
        ),
    ),
)
UNWATCHED = Scenario(
    "a backend whose metrics cannot be read",
    _unwatched,
    (
        Rehearsal(
            "KMSBackendMetricsUnreadable",
            {**STAGING, "service": "exporter"},
            ("=> 0", "none of the names that are read"),
            ("=> 1",),
            done=("reloaded",),
        ),
    ),
)
ABSENT = Scenario(
    "an exporter that ended",
    _absent,
    (Rehearsal("KMSExporterAbsent", STAGING, ("=> 0",), ("=> 1",), done=STARTED, codes=frozenset({7})),),
)
