"""Mistakes in the rules about data keys that cannot be unwrapped, and what else ails a keyring."""

JOINED = "on (env, service, instance, replica)"
_UNUSABLE = [
    ("max by", "sum by"),
    ("max by", "min by"),
    ("max by (env, service)", "max by (service)"),
    ("max by (env, service)", "max by (env)"),
    ("> 0", "> 1"),
    ("> 0", ">= 0"),
    ("== 0", "== 1"),
    ("== 0", ">= 0"),
    ("unless", "and"),
    (JOINED, "on (service, instance, replica)"),
    (JOINED, "on (env, instance, replica)"),
    (JOINED, "on (env, service, replica)"),
    (JOINED, "on (env, service, instance)"),
    ("last_over_time(crypto_mode[5m])", "crypto_mode"),
]
_PROBLEMS = [
    *(
        (f"last_over_time({name}[5m])", name)
        for name in ("kms_data_keys_unusable", "kms_data_keys_missing", "kms_keyring_rows_unreadable")
    ),
    ("last_over_time(kms_local_key_missing[5m])", "kms_local_key_missing"),
    *((f"{name}[5m]", f"{name}[4m]") for name in ("kms_data_keys_unusable", "kms_data_keys_missing")),
    *((f"{name}[5m]", f"{name}[6m]") for name in ("kms_keyring_rows_unreadable", "kms_local_key_missing")),
    ("last_over_time(kms:data_key_problems[1d])", "kms:data_key_problems"),
    ("[1d]", "[12h]"),
    ("and on (env, service, instance, replica)", "and on (service, instance, replica)"),
    ("and on (env, service, instance, replica)", "and on (env, instance, replica)"),
    ("and on (env, service, instance, replica)", "and on (env, service, replica)"),
    ("and on (env, service, instance, replica)", "and on (env, service, instance)"),
    ("last_over_time(crypto_backend_metrics_up[5m])", "crypto_backend_metrics_up"),
    ("or last_over_time(crypto_backend_up[5m]) == 0", ""),
    ("last_over_time(crypto_backend_metrics_up[5m]) == 0 or ", ""),
]
_UNREADABLE = [
    ("min by", "max by"),
    ("env, service", "service"),
    ("env, service", "env"),
    ("last_over_time(crypto_backend_metrics_up[5m])", "crypto_backend_metrics_up"),
    ("[5m]", "[4m]"),
    ("[5m]", "[6m]"),
    ("== 0", "== 1"),
]
_AILING = [
    ("max by", "min by"),
    ("env, service", "service"),
    ("env, service", "env"),
    ("> 0", "> 1"),
    ("> 0", ">= 0"),
]
MUTATIONS = [
    *(("kms:data_key_problems", *mistake) for mistake in _PROBLEMS),
    *(("KMSBackendMetricsUnreadable", *mistake) for mistake in _UNREADABLE),
    *(("KMSDataKeysUnusable", *mistake) for mistake in _UNUSABLE),
    *((alert, *mistake) for alert in ("KMSKeyringRowsUnreadable", "KMSLocalKeyMissing") for mistake in _AILING),
    ("KMSKeyringRowsUnreadable", "max by", "sum by"),
]
