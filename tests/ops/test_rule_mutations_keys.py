"""As test_rule_mutations.py, for the alerts about keys, and for what their messages look up."""

from pathlib import Path

import pytest

from tests.ops.rule_mutations import mistaken, noticed, one_of
from tests.ops.rules import ALERTS

LOST = "kms:canary_lost"
OF_A_KEY = [("env, service", "service"), ("env, service", "env"), (", target", "")]

MISTAKES = [
    *[
        (alert, old, new)
        for alert in (
            "KMSProbeFailing",
            "KMSCanaryLost",
            "KMSWrongAADAccepted",
            "KMSKeyVersionDestroyScheduled",
            "KMSPermissionMissing",
        )
        for old, new in OF_A_KEY
    ],
    ("KMSProbeFailing", "min by (env, service, target) (\n", "max by (env, service, target) (\n"),
    ("KMSProbeFailing", "[15m]", "[10m]"),
    ("KMSProbeFailing", "[15m]", "[20m]"),
    ("KMSProbeFailing", "== 0", "!= 0"),
    ("KMSProbeFailing", ", instance", ""),
    ("KMSProbeFailing", 'and on (env, instance) up{job="keypulse-exporter"}', ""),
    ("KMSProbeFailing", 'up{job="keypulse-exporter"}', 'up{job="keypulse-exporter"} == 1'),
    ("KMSProbeFailing", "\n  or\n", "\n  and\n"),
    ("KMSProbeFailing", "  or\n  min by (env, service, target) (last_over_time(kms_probe_success[15m]))\n", ""),
    *[("KMSProbeFlapping", old, new) for old, new in OF_A_KEY],
    ("KMSProbeFlapping", "max by", "min by"),
    ("KMSProbeFlapping", "[15m]", "[10m]"),
    ("KMSProbeFlapping", "[15m]", "[20m]"),
    ("KMSProbeFlapping", "> 5", "> 4"),
    ("KMSProbeFlapping", "> 5", "> 6"),
    *[("KMSKeyProblems", old, new) for old, new in OF_A_KEY],
    ("KMSKeyProblems", "max by", "min by"),
    ("KMSKeyProblems", "[20m]", "[4m]"),
    ("KMSKeyProblems", "[20m]", "[30m]"),
    ("KMSKeyProblems", "> 0", ">= 0"),
    *[
        (alert, old, new)
        for alert in ("KMSConfigReloadFailed", "RelayConfigReloadFailed")
        for old, new in [("env, instance", "env"), ("env, instance", "instance"), ("== 0", "== 1"), ("job=", "job!=")]
    ],
    (LOST, "key_disabled|", ""),
    (LOST, "|key_destroyed", ""),
    (LOST, "|key_not_found", ""),
    (LOST, "|crc_mismatch", ""),
    (LOST, "|plaintext_mismatch", ""),
    (LOST, "|invalid_request", ""),
    *[
        (LOST, "invalid_request", f"invalid_request|{unknown}")
        for unknown in ("timeout", "unavailable", "permission_denied", "unauthenticated", "quota_exhausted", "internal")
    ],
    (LOST, ", reason)", ")"),
    (LOST, ", version", ""),
    ("KMSCanaryLost", ", version) (kms", ") (kms"),
    ("KMSCanaryLost", "group by (env, service, target, version) (kms:canary_lost)\nor\n", ""),
    ("KMSCanaryLost", "[1h]", "[50m]"),
    ("KMSCanaryLost", "[1h]", "[70m]"),
    ("KMSCanaryLost", " == 1", ""),
    ("KMSCanaryLost", "unless on (env, service, target, version) kms_canary_success == 1", ""),
    ("KMSCanaryLost", "on (env, service, target, version)", "on (env, service, target)"),
    ("KMSCanaryLost", "on (env, service, target, version)", "on (env, service, version)"),
    ("KMSCanaryLost", "on (env, service, target, version)", "on (env, target, version)"),
    ("KMSCanaryLost", "on (env, service, target, version)", "on (service, target, version)"),
    *[
        (alert, old, new)
        for alert in ("KMSWrongAADAccepted", "KMSPermissionMissing")
        for old, new in [
            ("min by", "max by"),
            ("[1h]", "[50m]"),
            ("[1h]", "[70m]"),
            ("== 0", "!= 0"),
            ("\n  or\n", "\n  and\n"),
        ]
    ],
    ("KMSWrongAADAccepted", "min by (env, service, target) (kms_wrong_aad_refused)\n  or\n", ""),
    ("KMSPermissionMissing", "min by (env, service, target, permission) (kms_key_permission)\n  or\n", ""),
    ("KMSPermissionMissing", ", permission", ""),
    ("KMSKeyVersionDestroyScheduled", ", version", ""),
    ("KMSKeyVersionDestroyScheduled", "[1h]", "[50m]"),
    ("KMSKeyVersionDestroyScheduled", "[1h]", "[70m]"),
    ("KMSKeyVersionDestroyScheduled", "unless on (env, service, target) kms_key_versions", ""),
    ("KMSKeyVersionDestroyScheduled", "on (env, service, target)", "on (env, service)"),
    ("KMSKeyVersionDestroyScheduled", "on (env, service, target)", "on (env, target)"),
    ("KMSKeyVersionDestroyScheduled", "on (env, service, target)", "on (service, target)"),
    ("KMSBackendOnEnvWhileKMSHealthy", "(crypto_mode) == 0", "(crypto_mode) == 1"),
    ("KMSBackendOnEnvWhileKMSHealthy", "min by (env, service) (crypto_mode)", "max by (env, service) (crypto_mode)"),
    (
        "KMSBackendOnEnvWhileKMSHealthy",
        "min by (env, service) (kms_probe_success)",
        "max by (env, service) (kms_probe_success)",
    ),
    ("KMSBackendOnEnvWhileKMSHealthy", "(kms_probe_success) == 1", "(kms_probe_success)"),
    ("KMSBackendOnEnvWhileKMSHealthy", "env, service", "env"),
    ("KMSBackendOnEnvWhileKMSHealthy", "env, service", "service"),
    ("KMSBackendOnEnvWhileKMSHealthy", "\nand\n", "\nor\n"),
    (
        "KMSExporterAbsent",
        'min by (env) (up{job="keypulse-exporter"}) !=',
        'max by (env) (up{job="keypulse-exporter"}) !=',
    ),
    ("KMSExporterAbsent", "!= 1", "> 1"),
    ("KMSExporterAbsent", "unless", "and"),
    ("KMSExporterAbsent", "[1d]", "[12h]"),
    ("KMSExporterAbsent", "[1d]", "[2d]"),
    ("KMSExporterAbsent", "by (env)", "by (env, instance)"),
    ("KMSExporterAbsent", "by (env)", "by ()"),
    ("KMSExporterAbsent", '{job="keypulse-exporter"}', ""),
    ("KMSExporterAbsent", ") - 1", ")"),
]

# The same, of what a message looks up when it is written.
MISLEADING = [
    ("KMSProbeFailing", "topk(", "bottomk("),
    ("KMSProbeFailing", "1e6 * ", ""),
    ("KMSProbeFailing", "[1m]", "[2m]"),
    ("KMSProbeFailing", "[5m]", "[10m]"),
    ("KMSProbeFailing", "[5m]", "[1m]"),
    ("KMSProbeFailing", 'operation!="canary_decrypt", ', ""),
    ("KMSProbeFailing", "> 0", ">= 0"),
    ("KMSProbeFailing", "env=%q", "env!=%q"),
    ("KMSProbeFailing", "service=%q", "service!=%q"),
    ("KMSProbeFailing", "target=%q", "target!=%q"),
    ("KMSProbeFailing", "target=%q", 'target="%s"'),
    ("KMSProbeFailing", "== 0", ""),
    ("KMSProbeFailing", "min(", "max("),
    ("KMSProbeFailing", "[1d]", "[1m]"),
    ("KMSProbeFailing", "[15m]", "[1m]"),
    ("KMSProbeFlapping", "[15m]", "[5m]"),
    ("KMSProbeFlapping", "[1m]", "[15m]"),
    ("KMSProbeFlapping", 'operation!="canary_decrypt", ', ""),
    ("KMSProbeFlapping", "target=%q", "target!=%q"),
    ("KMSProbeFlapping", "100 * ", ""),
    ("KMSCanaryLost", "[1h]", "[1m]"),
    ("KMSCanaryLost", ", version=%q", ", version!=%q"),
    ("KMSKeyVersionDestroyScheduled", "- time()", ""),
    ("KMSPermissionMissing", "[.]useTo", "[.]useToDecrypt"),
    ("KMSExporterAbsent", "== 0", ""),
    ("KMSExporterAbsent", 'job="keypulse-exporter", ', ""),
    ("KMSExporterAbsent", "env=%q", "env!=%q"),
]


@pytest.mark.parametrize(("rule", "right", "wrong"), one_of(MISTAKES))
def test_an_error_in_an_expression_fails_a_promtool_test(rule: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert mistaken(tmp_path, rule, right, wrong)


@pytest.mark.parametrize(("alert", "right", "wrong"), one_of(MISLEADING))
def test_an_error_in_a_message_fails_a_promtool_test(alert: str, right: str, wrong: str, tmp_path: Path) -> None:
    annotations = ALERTS[alert]["annotations"]
    assert right in annotations["description"]
    change = {**annotations, "description": annotations["description"].replace(right, wrong)}
    assert noticed(tmp_path, alert, {"annotations": change})


@pytest.mark.parametrize("wait", one_of([("1m45s",), ("2m15s",)]))
def test_an_all_clear_that_comes_15_seconds_off_fails_a_promtool_test(wait: str, tmp_path: Path) -> None:
    assert noticed(tmp_path, "KMSBackendOnEnvWhileKMSHealthy", {"keep_firing_for": wait})
