"""`keypulse-audit` as a command: what it prints, and its exit codes."""

import os
import subprocess
import sys

import pytest

from tests.ops.audit.conftest import Audit, Waits
from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.server import Fault, RefusedError, Stand

FULL = ("--project", "acme-prod", "--location", "europe-west3", "--bigquery", "--bucket", "{project}-kms-audit")
PLAN = """\
project acme-prod
  API cloudkms.googleapis.com
    - disabled
    + enabled
  Data Access logs of cloudkms.googleapis.com
    - DATA_READ of all but user:old@example.org
    + ADMIN_READ of all but user:a@example.org
    + DATA_READ of all but user:a@example.org
    + DATA_WRITE
  note: user:boss@example.org is exempted for all services, so for Cloud KMS too; check whether that is intended
  2 to change, 0 as configured. Nothing was changed.
"""


def config(service: str, member: str) -> dict[str, object]:
    return {"service": service, "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": [member]}]}


def test_a_plan_says_what_would_change_and_changes_nothing(audit: Audit, world: LoggingWorld, stand: Stand) -> None:
    before = [config("allServices", "user:boss@example.org"), config("cloudkms.googleapis.com", "user:old@example.org")]
    world.project("acme-prod")["auditConfigs"] = before
    result = audit("plan", "--project", "acme-prod", "--exempt", "user:a@example.org")
    assert (result.output, result.exit_code) == (PLAN, 0)
    assert {name.rpartition(".")[2] for name in stand.names()} == {"get", "getIamPolicy"}


def test_plan_apply_apply_and_verify(audit: Audit, stand: Stand) -> None:
    plan = audit("plan", *FULL)
    assert "8 to change, 0 as configured. Nothing was changed." in plan.output
    first = audit("apply", *FULL)
    assert "8 changed, 0 as configured." in first.output
    assert "known when" in plan.output
    assert "known when" not in first.output
    stand.requests.clear()
    second = audit("apply", *FULL)
    assert second.output == "project acme-prod\n  0 changed, 8 as configured.\n"
    assert {name.rpartition(".")[2] for name in stand.names()} == {"get", "getIamPolicy"}
    verified = audit("verify", *FULL)
    assert [line[:1] for line in verified.output.splitlines()] == ["✓"] * 6
    assert {each.exit_code for each in (plan, first, second, verified)} == {0}


def test_what_fails_in_one_project_leaves_the_others_alone(audit: Audit, stand: Stand) -> None:
    stand.faults.append(Fault("serviceusage.services.get", refuse=RefusedError(403, "no such\x1b[31m\nproject")))
    result = audit("apply", "--project", "acme-gone", "--project", "acme-prod")
    assert result.exit_code == 1
    assert "2 changed" in result.stdout
    assert "(no such [31m project); it needs serviceusage.services.get: ask for" in result.stderr


def test_what_prevents_it_is_one_line_and_exit_1(audit: Audit) -> None:
    audit("apply", *FULL)
    result = audit("plan", "--project", "acme-prod", "--bigquery", "--location", "US")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "say --location europe-west3" in result.stderr


def test_verify_fails_after_the_time_that_it_was_given(audit: Audit, world: LoggingWorld, waits: Waits) -> None:
    audit("apply", *FULL)
    world.delay, before = 10**6, waits.seconds
    result = audit("verify", *FULL, "--timeout", "2m")
    assert (result.exit_code, waits.seconds - before) == (1, 120)
    mark = result.output.rpartition("--probe ")[2].split()[0]
    world.delay = 0
    assert audit("verify", *FULL, "--probe", mark).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Missing option '--project'"),
        (("--project", "Acme"), "expected the ID of a project, such as acme-prod, got 'Acme'"),
        (("--project", "acme-prod", "--exempt", "a@x"), "expected a member, such as serviceAccount:NAME"),
        (("--project", "acme-prod", "--exempt", "user:a b"), "expected a member, such as serviceAccount:NAME"),
        (("--project", "acme-prod", "--bigquery"), "need --location"),
        (("--project", "acme-prod", "--bucket", "acme"), "need --location"),
        (("--project", "acme-prod", "--bigquery", "--location", "a'b"), "expected a region such as europe-west3"),
        (("--project", "acme-prod", "--bucket", "A", "--location", "EU"), "expected 3 to 63 of a-z"),
        (("--project", "acme-prod", "--project", "acme-test", "--bucket", "acme", "--location", "EU"), "{project}"),
        (("--project", "acme-prod", "--endpoint", "ftp://x"), "expected the address of a stand-in"),
    ],
)
@pytest.mark.parametrize("command", ["apply", "verify"])
def test_wrong_usage_is_exit_2(
    command: str, arguments: tuple[str, ...], sentence: str, audit: Audit, stand: Stand
) -> None:
    result = audit(command, *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert stand.requests == []


def test_the_program_talks_to_a_stand_in_and_logs_nothing_of_the_sdk_s(stand: Stand) -> None:
    refused = RefusedError(403, "no")
    refused.body["error"]["errors"] = [{"reason": "forbidden"}]
    stand.faults.append(Fault("serviceusage.services.get", refuse=refused))
    run = [sys.executable, "-m", "ops.audit", "plan", "--project", "acme-prod"]
    environment = os.environ | {"KEYPULSE_AUDIT_ENDPOINT": stand.url}
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "project acme-prod\n")
    assert done.stderr.startswith("  serviceusage.services.get is refused with 403")
    assert done.stderr.count("\n") == 1
