"""Mistakes in the rules about a service's encryption: the rule, what stands there, what somebody might write."""

from tests.ops.rule_mutations import JOB

HEALTH = "kms:crypto_health_status"
RATE = "kms:decryption_error_rate_5m"
UPTIME = "kms:uptime_since_last_crypto_init"

MUTATIONS = [
    (HEALTH, "* min by (env, service) (crypto_backend_up)", ""),
    (HEALTH, "* min by (env, service) (crypto_ready)", ""),
    (HEALTH, "min by (env, service) (crypto_mode or", "max by (env, service) (crypto_mode or"),
    (HEALTH, " or 0 * crypto_mode_unknown", ""),
    (HEALTH, "0 * crypto_mode_unknown", "crypto_mode_unknown"),
    (HEALTH, " or crypto_ready)", ")"),
    (HEALTH, "or\nmin by (env, service) (kms_probe_success)\n", ""),
    (HEALTH, "min by (env, service) (kms_probe_success)", "max by (env, service) (kms_probe_success)"),
    (HEALTH, "min by (env, service) (kms_probe_success)", "min by (env, service, target) (kms_probe_success)"),
    (HEALTH, "last_over_time(kms_probe_success[1d])", "kms_probe_success"),
    (HEALTH, "kms_probe_success[1d]", "kms_probe_success[12h]"),
    (HEALTH, "kms_probe_success[1d]", "kms_probe_success[2d]"),
    (HEALTH, "0 * min by (env, service) (last_over_time(kms_p", "min by (env, service) (last_over_time(kms_p"),
    ("KMSCryptoModeNotKMS", " or -crypto_mode_unknown", ""),
    ("KMSCryptoModeNotKMS", "-crypto_mode_unknown", "crypto_mode_unknown"),
    ("KMSCryptoModeNotKMS", "-crypto_mode_unknown", "0 * crypto_mode_unknown"),
    *[
        (rule, JOB, "")
        for rule in (
            *(HEALTH, RATE, UPTIME, "KMSCryptoModeNotKMS", "KMSCryptoNotReady", "KMSCryptoModeFlapping"),
            *("KMSHighLatency", "KMSDecryptionErrorsBurst", "KMSBackendOnEnvWhileKMSHealthy", "kms:data_key_problems"),
        )
    ],
    (RATE, JOB, JOB.replace("|", "")),
    (HEALTH, "last_over_time(crypto_backend_up[1d])", "crypto_backend_up"),
    (HEALTH, "[1d]", "[12h]"),
    (HEALTH, "[1d]", "[2d]"),
    (RATE, "[5m]", "[10m]"),
    (RATE, "sum by", "max by"),
    (RATE, "rate(", "deriv("),
    (UPTIME, "max by", "min by"),
    (UPTIME, " > 0", ""),
    *[
        (alert, old, new)
        for alert in ("KMSCryptoModeNotKMS", "KMSCryptoNotReady")
        for old, new in [
            ("min by (env, service) (\n", "max by (env, service) (\n"),
            ("[15m]", "[10m]"),
            ("[15m]", "[20m]"),
            ("and min by (env, service, instance, replica) (crypto_backend_up) == 0", ""),
            (" == 0", " == 1"),
            (" != 1", " == 1"),
            (", replica", ""),
            (", instance", ""),
            ("env, service", "service"),
            ("env, service", "env"),
            ("or\n  min by (env, service) (last_over_time", "and\n  min by (env, service) (last_over_time"),
        ]
    ],
    *[
        ("KMSCryptoDownOnLocalKey", old, new)
        for old, new in [
            ("> 60", "> 45"),
            ("> 60", "> 75"),
            ("> 60", "!= 0"),
            ("KMSCryptoNotReady", "KMSCryptoModeNotKMS"),
            ("KMSCryptoModeNotKMS", "KMSCryptoNotReady"),
            ('\n  and on (env, service) ALERTS{alertname="KMSCryptoNotReady"}', ""),
            ('\n  and on (env, service) ALERTS{alertname="KMSCryptoModeNotKMS"}', ""),
            ('ALERTS{alertname="KMSCryptoDownOnLocalKey"}', 'ALERTS{alertname="KMSCryptoNotReady"}'),
            ("env, service", "service"),
            ("env, service", "env"),
        ]
    ],
    ("KMSHealthChecksFailing", "(crypto_backend_up) != 1", "(crypto_backend_up) > 1"),
    ("KMSHealthChecksFailing", "unless", "and"),
    ("KMSHealthChecksFailing", "[1d]", "[12h]"),
    ("KMSHealthChecksFailing", "[1d]", "[2d]"),
    ("KMSHealthChecksFailing", "env, service", "env, service, instance"),
    (
        "KMSHealthChecksFailing",
        "min by (env, service) (crypto_backend_up) !=",
        "max by (env, service) (crypto_backend_up) !=",
    ),
    ("KMSDataKeysMissing", "> 0", "> 1"),
    ("KMSDataKeysMissing", "> 0", ">= 0"),
    ("KMSDataKeysMissing", "max by", "min by"),
    ("KMSDataKeysMissing", "max by", "sum by"),
    ("KMSDataKeysMissing", "[5m]", "[4m]"),
    ("KMSDataKeysMissing", "env, service", "env"),
    ("KMSCryptoModeFlapping", "> 2", "> 1"),
    ("KMSCryptoModeFlapping", "> 2", "> 3"),
    ("KMSCryptoModeFlapping", "[1h]", "[30m]"),
    ("KMSCryptoModeFlapping", "[1h]", "[2h]"),
    ("KMSCryptoModeFlapping", "max by", "sum by"),
    ("KMSCryptoModeFlapping", "max by", "min by"),
    ("KMSHighCryptoErrorRate", "> 0.1", ">= 0.1"),
    ("KMSHighCryptoErrorRate", "> 0.1", "> 0.13"),
    ("KMSHighLatency", "0.95", "0.94"),
    ("KMSHighLatency", "0.95", "0.96"),
    ("KMSHighLatency", "> 1", "> 2.5"),
    ("KMSHighLatency", "[5m]", "[15m]"),
    ("KMSHighLatency", "target, ", ""),
    ("KMSHighLatency", "operation, ", ""),
    ("KMSHighLatency", "env, ", ""),
    ("KMSHighLatency", "rate(", "delta("),
    ("KMSDecryptionErrorsBurst", "> 10", "> 11"),
    ("KMSDecryptionErrorsBurst", "> 10", ">= 10"),
    ("KMSDecryptionErrorsBurst", "floor", ""),
    ("KMSDecryptionErrorsBurst", "increase", "delta"),
    ("KMSDecryptionErrorsBurst", "[5m]", "[10m]"),
    ("KMSDecryptionErrorsBurst", "[5m]", "[4m]"),
    ("KMSDecryptionErrorsBurst", "sum by", "max by"),
]
