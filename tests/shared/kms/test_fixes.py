"""The commands that fix a failure: complete, filled in, and never with anything that an alert smuggles in."""

import itertools
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.kms.alert_fixes import list_fixes
from shared.kms.fixes import GENERIC_FIXES
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.reason import Cause, Reason
from shared.kms.registry import providers

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
VALUES = {
    "kms_provider": "gcp",
    "kms_key": KEY,
    "kms_reason": "permission_denied",
    "kms_cause": "role_missing",
    "kms_target": "ledger-kek",
    "kms_version": "3",
    "kms_permission": "cloudkms.cryptoKeyVersions.useToEncrypt",
    "kms_account": "exporter@demo.iam.gserviceaccount.com",
}
OF_PROVIDER = {
    "gcp": VALUES,
    "transit": {
        **VALUES,
        "kms_provider": "transit",
        "kms_key": "transit:bao:team/transit/ledger",
        "kms_permission": "encrypt",
    },
}
RING = ["--project=demo", "--location=global", "--keyring=app"]


def commands(**changes: str) -> list[list[str]]:
    values = {**VALUES, **({"kms_cause": ""} if "kms_reason" in changes else {}), **changes}
    return [shlex.split(fix.command) for fix in list_fixes(values, {})]


def test_the_audit_log_and_a_deny_policy_come_before_the_role_is_granted_on_the_key_to_the_account() -> None:
    log, deny, grant = commands()
    assert deny[3:] == [
        *("iam", f"//cloudkms.googleapis.com/{KEY}", "--principal-email=exporter@demo.iam.gserviceaccount.com"),
        "--permission=cloudkms.cryptoKeyVersions.useToEncrypt",
    ]
    assert grant == [
        *("gcloud", "kms", "keys", "add-iam-policy-binding", "ledger", *RING),
        *("--role=roles/cloudkms.cryptoKeyEncrypterDecrypter",),
        "--member=serviceAccount:exporter@demo.iam.gserviceaccount.com",
    ]
    assert log[:5] == ["gcloud", "logging", "read", "--project=demo", "--freshness=1h"]
    assert log[-1].endswith('protoPayload.methodName:"SetIamPolicy"')

    (*_, grant) = commands(kms_permission="cloudkms.cryptoKeys.get", kms_account="")
    assert grant[-2:] == ["--role=roles/cloudkms.viewer", "--member=serviceAccount:$EXPORTER_ACCOUNT"]
    assert commands(kms_permission="cloudkms.keyRings.create")[0] == log
    assert len(commands(kms_permission="cloudkms.keyRings.create")) == 2, "nobody knows the role that grants it"
    assert commands(kms_account="$SERVICE_ACCOUNT")[2][-1] == "--member=serviceAccount:$SERVICE_ACCOUNT"


def test_who_changed_a_version_comes_before_it_is_enabled_or_restored() -> None:
    of_version = ["3", *RING, "--key=ledger"]
    enable, versions = (
        ["gcloud", "kms", "keys", "versions", "enable", *of_version],
        ["gcloud", "kms", "keys", "versions"],
    )
    _, *fix = commands(kms_reason="key_disabled")
    assert fix == [enable]
    log, *fix = commands(kms_reason="key_destroyed")
    assert fix == [[*versions, "restore", *of_version], enable]
    assert log[-1].endswith('protoPayload.methodName:"CryptoKeyVersion"')
    assert commands(kms_reason="key_destroyed", kms_version="") == [log, [*versions, "list", *RING, "--key=ledger"]]


def test_the_project_that_is_charged_is_the_one_that_the_error_names_else_the_account_s_not_that_of_the_keys() -> None:
    def projects(cause: Cause, **values: str) -> set[str]:
        fixes = GCP_PROFILE.fixes.build(cause.reason, cause, KEY, values)
        return {found for fix in fixes for found in re.findall(r"(?:project=|s describe )([\w-]+)", fix.command)}

    account = "exporter@apps.iam.gserviceaccount.com"
    for cause in (Cause.API_DISABLED, Cause.BILLING_DISABLED, Cause.PROJECT_UNUSABLE):
        assert projects(cause, account=account, consumer="projects/42") == {"42"}
        assert projects(cause, account=account, consumer="projects/$(id)") == {"apps"}
        assert projects(cause, account="1-compute@developer.gserviceaccount.com") == projects(cause) == {"demo"}
    for cause in (Cause.ACCOUNT_DISABLED, Cause.CREDENTIALS_INVALID):
        assert projects(cause, account=account) == {"apps"}
    assert projects(Cause.ROLE_MISSING, account=account, consumer="projects/42") == {"demo"}


def test_what_no_annotation_names_comes_from_the_labels() -> None:
    annotations = {name: VALUES[name] for name in ("kms_provider", "kms_key")}
    labels = {"target": "ledger-kek", "version": "3", "permission": "cloudkms.cryptoKeys.get", "account": "me@x.org"}
    (_, restore, *_) = list_fixes({**annotations, "kms_reason": "key_destroyed"}, labels)
    assert restore.command.startswith("gcloud kms keys versions restore 3 ")
    (*_, grant) = list_fixes({**annotations, "kms_reason": "permission_denied", "kms_cause": "role_missing"}, labels)
    assert grant.command.endswith('--role=roles/cloudkms.viewer --member="serviceAccount:$EXPORTER_ACCOUNT"')
    (measure,) = list_fixes({**annotations, "kms_reason": "timeout"}, labels)
    assert "target=ledger-kek&" in measure.command


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.ROLE_MISSING])
def test_no_other_cause_than_a_missing_role_tells_to_grant_one(cause: Cause) -> None:
    for reason in Reason:
        for values in (VALUES, {**VALUES, "kms_account": "$SERVICE_ACCOUNT"}):
            found = list_fixes({**values, "kms_reason": reason, "kms_cause": cause}, {})
            assert not [fix for fix in found if "policy-binding" in fix.command or "Grant" in fix.title]
        assert "Grant" not in GCP_PROFILE.advise(reason, cause)


@pytest.mark.parametrize("provider", providers)
def test_each_reason_and_cause_has_a_command_of_sound_shell(provider: str) -> None:
    script = "#!/bin/bash\n"
    for reason, cause in {*itertools.product(Reason, [Cause.NONE]), *((cause.reason, cause) for cause in Cause)}:
        fixes = list_fixes({**OF_PROVIDER[provider], "kms_reason": reason, "kms_cause": cause}, {})
        assert fixes, (reason, cause)
        assert all("\n" not in fix.command and fix.title for fix in fixes)
        script += "".join(f"{fix.command}\n" for fix in fixes)
    shellcheck = [sys.executable.rpartition("/")[0] + "/shellcheck", "-s", "bash", "-e", "SC2154", "-"]
    answer = subprocess.run(shellcheck, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_commands_need_no_library_of_a_provider_which_the_relay_does_not_have() -> None:
    clients = {"google", "google_crc32c", "grpc", "shared.kms.transit.client"}
    imported = f"import sys, services.relay.app; print({clients} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "set()\n"


def test_a_provider_that_is_not_known_has_the_commands_that_need_no_provider() -> None:
    fixes = list_fixes({**VALUES, "kms_provider": "memory", "kms_reason": "timeout"}, {})
    assert fixes == tuple(GENERIC_FIXES.build(Reason.TIMEOUT, Cause.NONE, "", VALUES | {"target": "ledger-kek"}))
    assert list_fixes({**VALUES, "kms_provider": "memory"}, {}) == ()
    assert list_fixes({}, {}) == list_fixes({**VALUES, "kms_reason": "$(id)"}, {}) == ()


HOSTILE = (
    "; id",
    "$(id)",
    "`id`",
    "' id '",
    '" id "',
    "\nid",
    " --impersonate-service-account=x",
    "\u202e",
    "{reason}",
)


@pytest.mark.parametrize("provider", providers)
@settings(max_examples=20)  # each in every place and for every reason
@given(text=st.text() | st.sampled_from(HOSTILE))
@example(text="0")
@example(text="$(id)")
@example(text="' id '")
def test_what_an_alert_smuggles_in_is_never_more_than_a_part_of_an_argument(provider: str, text: str) -> None:
    of_provider = OF_PROVIDER[provider]
    named = [(reason, Cause.NONE) for reason in Reason] + [(cause.reason, cause) for cause in Cause]
    for name, (reason, cause) in itertools.product(
        of_provider.keys() - {"kms_reason", "kms_cause", "kms_provider"}, named
    ):
        values = {**of_provider, "kms_reason": str(reason), "kms_cause": str(cause)}
        usual = [*list_fixes(values, {}), *list_fixes({**values, name: ""}, {})]
        expected = {argument for fix in usual for argument in shlex.split(fix.command)}
        for value in (text, values[name] + text, text + values[name]):
            for fix in list_fixes({**values, name: value}, {}):
                for argument in set(shlex.split(fix.command)) - expected:
                    assert re.fullmatch(
                        r"(--[\w-]+=|\$EXPORTER/|//(?=cloudkms\.googleapis\.com/))?\w[\w.:/@=?&-]*", argument, re.ASCII
                    )


@pytest.mark.parametrize("value", ["--help", "ledger --impersonate-service-account=x", "ledger;id", "a/b", "ledger\n"])
def test_a_key_whose_name_is_none_of_google_s_has_no_command_but_those_without_its_name(value: str) -> None:
    key = KEY.removesuffix("ledger") + value
    for cause in Cause:
        values = {**VALUES, "kms_reason": cause.reason, "kms_cause": cause, "kms_key": key}
        found = [fix.command for fix in list_fixes(values, {})]
        assert [command for command in found if "gcloud" in command] == []
