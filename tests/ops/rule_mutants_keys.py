"""Mistakes in the rules about keys, and in what their messages look up."""

LOST = "kms:canary_lost"
REASON, CAUSE, CAUSE_OF_SERVICE = "kms:probe_failure_reason", "kms:probe_failure_cause", "kms:service_failure_cause"
DESTROY_AT = "kms:key_version_destroy_timestamp_seconds"
OF_A_KEY = [("env, service", "service"), ("env, service", "env"), (", target", "")]

MUTATIONS = [
    (REASON, "topk", "bottomk"),
    (REASON, "topk by (env, service, target)", "topk by (env, service)"),
    (REASON, "topk by (env, service, target)", "topk by (service, target)"),
    (REASON, "[1m]", "[2m]"),
    (REASON, "[1m]", "[5m]"),
    (REASON, "[15m]", "[10m]"),
    (REASON, "[15m]", "[20m]"),
    (REASON, '{operation!="canary_decrypt"}', ""),
    (REASON, "unless on (env, service, target)", "and on (env, service, target)"),
    (CAUSE, "group_left (cause)", "group_left ()"),
    (CAUSE, "+ on (env, service, target, operation, reason)", "+ on (service, target, operation, reason)"),
    (CAUSE, "topk by", "bottomk by"),
    (CAUSE, "1000 *", "0 *"),
    (CAUSE, "[1m]", "[15m]"),
    (CAUSE, "[15m]", "[1m]"),
    (CAUSE, "unless on (env, service, target, operation, reason)", "and on (env, service, target, operation, reason)"),
    (CAUSE, "or on (env, service, target) kms:probe_failure_reason", ""),
    (CAUSE_OF_SERVICE, "topk by (env, service)", "topk by (env)"),
    (CAUSE_OF_SERVICE, " and on (env, service, target) kms_probe_success == 0", ""),
    (CAUSE_OF_SERVICE, "== 0", "== 1"),
    (CAUSE_OF_SERVICE, "on (env, service, target)", "on (env, service)"),
    *[
        (alert, old, new)
        for alert in (
            "KMSProbeFailing",
            "KMSCanaryLost",
            "KMSWrongAADAccepted",
            DESTROY_AT,
            "KMSHsmInstanceExpiring",
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
    ("KMSProbeFailing", " offset 15s", ""),
    ("KMSProbeFailing", " offset 15s", " offset 1m"),
    ("KMSProbeFailing", '{reason="quota_exhausted"}', ""),
    ("KMSProbeFailing", "max_over_time", "min_over_time"),
    ("KMSProbeFailing", "(kms_probe_success[1m])", "(kms_probe_success[2m])"),
    ("KMSProbeFailing", "(kms_probe_success[1m])", "(kms_probe_success[30s])"),
    ("KMSProbeFailing", "and ignoring", "unless ignoring"),
    ("KMSProbeFailing", "  or\n  min by (env, service, target) (last_over_time(kms_probe_success[15m]))\n", ""),
    *[("KMSProbeFlapping", old, new) for old, new in OF_A_KEY],
    ("KMSProbeFlapping", "max by", "min by"),
    ("KMSProbeFlapping", "[15m]", "[10m]"),
    ("KMSProbeFlapping", "[15m]", "[20m]"),
    ("KMSProbeFlapping", "> 5", "> 4"),
    ("KMSProbeFlapping", "> 5", "> 6"),
    ("KMSProbeFlapping", "> 0.2", "> 0.05"),
    ("KMSProbeFlapping", "> 0.2", "> 0.3"),
    ("KMSProbeFlapping", "offset 15m", "offset 10m"),
    ("KMSProbeFlapping", "offset 15m", "offset 20m"),
    ("KMSProbeFlapping", '{operation!="canary_decrypt"}', ""),
    ("KMSProbeFlapping", "sum without (operation, reason)", "sum by (env, service, target)"),
    *[("KMSKeyProblems", old, new) for old, new in OF_A_KEY],
    ("KMSKeyProblems", "max by", "min by"),
    ("KMSKeyProblems", "[20m]", "[4m]"),
    ("KMSKeyProblems", "[20m]", "[30m]"),
    ("KMSKeyProblems", "> 0", ">= 0"),
    ("KMSKeyProblems", "< 0.5", "< 0.9"),
    ("KMSKeyProblems", "unless on", "and on"),
    *[
        (alert, old, new)
        for alert in ("KMSConfigReloadFailed", "RelayConfigReloadFailed")
        for old, new in [("env, instance", "env"), ("env, instance", "instance"), ("== 0", "== 1"), ("job=", "job!=")]
    ],
    *[
        ("KMSCredentialExpiring", old, new)
        for old, new in [
            ("(env, credential)", "(credential)"),
            ("(env, credential)", "(env)"),
            ("min by", "max by"),
            ("<=", "<"),
            ("7 * 86400", "601200"),
            ("7 * 86400", "608400"),
            ("/ 10", "/ 5"),
            ("/ 4", "/ 3"),
            ("/ 4", "/ 5"),
            ('!="projected token"', '!=""'),
            ("[15m]", "[10m]"),
            ("[15m]", "[20m]"),
            ("|keypulse-relay", ""),
            ("keypulse-exporter|", ""),
            ("and on (env, instance)", "or on (env, instance)"),
        ]
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
    (LOST, "and on (env, service, target, instance) kms_probe_success == 1", ""),
    (LOST, "== 1", ""),
    (LOST, ", instance", ""),
    ("KMSCanaryLost", "[1m]", "[15s]"),
    ("KMSCanaryLost", "[1m]", "[3m]"),
    (
        "KMSCanaryLost",
        'and on (env, service, target, version) ALERTS{alertname="KMSCanaryLost", alertstate="firing"}',
        "",
    ),
    ("KMSCanaryLost", ', alertstate="firing"', ""),
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
    ("KMSPermissionMissing", "== 1", "== 0"),
    ("KMSPermissionMissing", "permission=~", "permission!="),
    ("KMSPermissionMissing", "|cloudkms.cryptoKeyVersions.useToDecrypt", ""),
    ("KMSPermissionMissing", "cloudkms.cryptoKeyVersions.useToEncrypt|", ""),
    ("KMSPermissionMissing", "|encrypt|", "|"),
    ("KMSPermissionMissing", "|decrypt", ""),
    ("KMSPermissionMissing", "min by (env, service, target) (kms_probe", "max by (env, service, target) (kms_probe"),
    *[
        ("KMSPermissionMissing", "and on (env, service, target) ", f"and on ({labels}) ")
        for labels in ("env, service", "env, target", "service, target")
    ],
    *[
        ("KMSHsmInstanceExpiring", old, new)
        for old, new in [
            ("min by", "max by"),
            ("[1h]", "[50m]"),
            ("[1h]", "[70m]"),
            ("\n  or\n", "\n  and\n"),
            ("< 7 * 86400", "<= 7 * 86400"),
            ("7 * 86400", "604740"),
        ]
    ],
    (DESTROY_AT, ", version", ""),
    (DESTROY_AT, "[1d]) > time()", "[1d])"),
    (DESTROY_AT, "unless on (env, service, target) kms_key_versions", ""),
    (DESTROY_AT, "on (env, service, target)", "on (env, service)"),
    (DESTROY_AT, "on (env, service, target)", "on (env, target)"),
    (DESTROY_AT, "on (env, service, target)", "on (service, target)"),
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
OF_A_MESSAGE = [("env=%q", "env!=%q"), ("service=%q", "service!=%q"), ("target=%q", "target!=%q")]
MISLEADING = [
    *[
        ("KMSProbeFailing", annotation, right, wrong)
        for annotation in (
            "title",
            "description",
            "kms_provider",
            "kms_key",
            "kms_account",
            "kms_reason",
            "kms_version",
        )
        for right, wrong in OF_A_MESSAGE
    ],
    ("KMSProbeFailing", "title", "target=%q", 'target="%s"'),
    *[("KMSProbeFailing", annotation, "[15m]", "[1m]") for annotation in ("kms_provider", "kms_key", "kms_account")],
    ("KMSProbeFailing", "kms_version", "[1h]", "[1m]"),
    ("KMSProbeFailing", "description", "== 0", ""),
    ("KMSProbeFailing", "description", "min(", "max("),
    ("KMSProbeFailing", "description", "[1d]", "[1m]"),
    ("KMSProbeFailing", "description", "[15m]", "[1m]"),
    ("KMSProbeFlapping", "description", "[15m]", "[5m]"),
    ("KMSProbeFlapping", "description", 'operation!="canary_decrypt", ', ""),
    ("KMSProbeFlapping", "description", "target=%q", "target!=%q"),
    ("KMSProbeFlapping", "description", "100 * ", ""),
    ("KMSProbeFlapping", "title", "target=%q", "target!=%q"),
    *[("KMSCanaryLost", annotation, "[1h]", "[1m]") for annotation in ("title", "kms_reason")],
    *[("KMSCanaryLost", annotation, ", version=%q", ", version!=%q") for annotation in ("title", "kms_reason")],
    ("KMSKeyVersionDestroyScheduled", "title", "- time()", ""),
    ("KMSPermissionMissing", "description", "[.]useTo", "[.]useToDecrypt"),
    ("KMSKeyProblems", "title", "== 0", "== 1"),
    ("KMSKeyProblems", "kms_permission", "== 0", ""),
    *[("KMSCryptoModeNotKMS", "title", right, wrong) for right, wrong in OF_A_MESSAGE[:2]],
    *[("KMSCryptoModeNotKMS", name, "and on", "unless on") for name in ("kms_provider", "kms_key", "kms_version")],
    *[("KMSCryptoNotReady", "title", right, wrong) for right, wrong in OF_A_MESSAGE[:2]],
    *[("KMSDataKeysUnusable", name, "service=%q", "service!=%q") for name in ("title", "kms_key", "kms_version")],
    ("KMSDataKeysUnusable", "kms_key", "and on", "unless on"),
    ("KMSExporterAbsent", "description", "== 0", ""),
    ("KMSExporterAbsent", "description", 'job="keypulse-exporter", ', ""),
    ("KMSExporterAbsent", "description", "env=%q", "env!=%q"),
]
