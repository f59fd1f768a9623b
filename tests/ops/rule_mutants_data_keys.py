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
    ("last_over_time(kms_data_keys_unusable[5m])", "kms_data_keys_unusable"),
    ("last_over_time(crypto_mode[5m])", "crypto_mode"),
    ("[5m]", "[4m]"),
    ("[5m]", "[6m]"),
]
_AILING = [
    ("max by", "min by"),
    ("env, service", "service"),
    ("env, service", "env"),
    ("> 0", "> 1"),
    ("> 0", ">= 0"),
    ("[5m]", "[4m]"),
    ("[5m]", "[6m]"),
]
MUTATIONS = [
    *(("KMSDataKeysUnusable", *mistake) for mistake in _UNUSABLE),
    *((alert, *mistake) for alert in ("KMSKeyringRowsUnreadable", "KMSLocalKeyMissing") for mistake in _AILING),
    ("KMSKeyringRowsUnreadable", "max by", "sum by"),
]
