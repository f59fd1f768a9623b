"""Mistakes in the rules about rotation, and in what their messages look up."""

LATE, FAILED = "KMSRotationOverdue", "KMSRotationFailed"
SUCCESS = "max by (env, service) (last_over_time(kms_rotation_last_success_timestamp_seconds[1h]))"
OF_TYPE = SUCCESS.replace("service)", "service, type)")
LAST_FAILURE = "kms_rotation_last_failure_timestamp_seconds"
MUTATIONS = [
    *[(alert, "(env, service)", wrong) for alert in (LATE, FAILED) for wrong in ("(service)", "(env)")],
    (LATE, f"{SUCCESS} > 35", f"{SUCCESS.replace('max', 'min')} > 35"),
    (LATE, "> 35 * 86400", "> 34 * 86400"),
    (LATE, "> 35 * 86400", "> 36 * 86400"),
    (LATE, "<= 35 * 86400", "<= 33 * 86400"),
    (LATE, "<= 35 * 86400", "<= 37 * 86400"),
    (LATE, "[1h]", "[10m]"),
    (LATE, ', type="rewrap-kek"', ""),
    (LATE, "> 0", ">= 0"),
    (LATE, "unless on (env, service, kek_version)", "and on (env, service, kek_version)"),
    (LATE, "on (env, service, kek_version)", "on (service, kek_version)"),
    (LATE, "on (env, service, kek_version)", "on (env, service)"),
    (LATE, "and on (env, service) last_over_time(kms_key_primary_version_info[1h])\n", ""),
    (FAILED, "last_over_time(kms_rotation_last_failure_timestamp_seconds[1h])", f"{LAST_FAILURE} + 0"),
    (FAILED, ">= on (env, service, type)", "> on (env, service, type)"),
    (FAILED, ">= on (env, service, type)", "< on (env, service, type)"),
    *[(FAILED, "(env, service, type)", wrong) for wrong in ("(service, type)", "(env, type)", "(env, service)")],
    (FAILED, OF_TYPE, OF_TYPE.replace("max", "min")),
    (FAILED, "[6h]", "[5h30m]"),
    (FAILED, "min_over_time", "max_over_time"),
    (FAILED, "and on (env, service) last_over_time(kms_rotation_in_progress[1h] offset 6h) == 1", ""),
]  # fmt: skip
MISLEADING = [
    (LATE, "description", "max(last_over_time(kms_rotation", "min(last_over_time(kms_rotation"),
    (LATE, "description", "max by (kek_version, status)", "sum by (kek_version, status)"),
    (LATE, "description", ") > 0", ")"),
    (LATE, "description", "env=%q", "env!=%q"),
    (LATE, "description", "service=%q", "service!=%q"),
    (FAILED, "title", "[1d]", "[1m]"),
    (FAILED, "title", "> 0", ">= 0"),
    (FAILED, "title", "env=%q", "env!=%q"),
    (FAILED, "title", "service=%q", "service!=%q"),
]
