"""Rows about the keys: the life of the key in KMS, and the rotation of the data keys that it wraps."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana.panels.panel_types import (
    ALERTS_URL,
    BOARD_URL,
    SERVICE_SELECTOR,
    YES_LABELS,
    build_bar_chart,
    build_link,
    build_runbook_links,
    build_stat,
    build_state_timeline,
    build_table,
    build_time_series,
    build_value_mappings,
    color_cells,
    query_instant,
    query_range,
    query_table,
    set_unit,
)

_PERMISSION_LABELS = {"0": ("missing", "red"), "1": ("granted", "green")}
_CANARY_LABELS = {"0": ("does not decrypt", "red"), "1": ("decrypts", "green")}
_IN_PROGRESS_LABELS = {"0": ("no", "green"), "1": ("under way", "blue")}


def build_key_panels() -> list[Builder[Panel]]:
    """The exporter's key inspections: versions, canaries, permissions, destructions."""
    destroyed = (
        f"min by (env, service, target, version) (kms_key_version_destroy_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    )
    destruction = {name: name for name in ("env", "service", "target", "version")}
    return [
        _build_keys_table(),
        build_time_series("Versions by state", "Versions of each key, by what they can be used for.")
        .with_target(
            query_range(
                f"max by (env, service, target, state) (kms_key_versions{{{SERVICE_SELECTOR}}}) > 0",
                "{{env}} {{service}} {{target}} {{state}}",
            )
        )
        .unit("short")
        .decimals(0)
        .links(build_runbook_links("key_disabled", "Enable a version"))
        .span(12)
        .height(8),
        build_state_timeline(
            "Canaries",
            "Whether what each older version once encrypted can still be decrypted. Where it cannot, whatever data is "
            "still of that version cannot be read either.",
            _CANARY_LABELS,
        )
        .with_target(
            query_range(
                f"min by (env, service, target, version) (kms_canary_success{{{SERVICE_SELECTOR}}})",
                "{{env}} {{service}} {{target}} version {{version}}",
            )
        )
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSCanaryLost", "key_destroyed")])
        .span(12)
        .height(8),
        build_state_timeline(
            "Permissions", "Whether IAM grants the exporter's account what the key needs.", _PERMISSION_LABELS
        )
        .with_target(
            query_range(
                f"min by (env, service, target, permission) (kms_key_permission{{{SERVICE_SELECTOR}}})",
                "{{env}} {{service}} {{target}} {{permission}}",
            )
        )
        .links(build_runbook_links("KMSPermissionMissing", "Grant the role"))
        .span(12)
        .height(8),
        build_table(
            "Scheduled destructions",
            "Versions that will be destroyed, and when. Nothing that such a version encrypted can be read already now; "
            "until then it can be restored.",
            destruction | {"Value": "when"},
        )
        .with_target(query_table(f"1000 * {destroyed}"))
        .override_by_name("when", set_unit("dateTimeAsIso"))
        .links([*build_runbook_links("KMSKeyVersionDestroyScheduled"), build_link("Alerts", ALERTS_URL)])
        .span(24)
        .height(6),
    ]


def _build_keys_table() -> Builder[Panel]:
    by = "by (env, service, target)"
    inspections = {
        "primary version": f"max {by} (kms_key_primary_version{{{SERVICE_SELECTOR}}})",
        "next rotation": f"1000 * max {by} (kms_key_next_rotation_timestamp_seconds{{{SERVICE_SELECTOR}}})",
        "wrong AAD refused": f"min {by} (kms_wrong_aad_refused{{{SERVICE_SELECTOR}}})",
        "problems": f"max {by} (kms_key_inspection_problems{{{SERVICE_SELECTOR}}})",
    }
    names = {name: name for name in ("env", "service", "target")}
    names |= {f"Value #{ref}": name for ref, name in zip("ABCD", inspections, strict=True)}
    panel = build_table(
        "Keys",
        "Each key: the version that encrypts, when KMS makes the next one (blank where no rotation is planned), "
        "whether KMS refuses a wrong AAD, and how many things were wrong at the last key inspection; the board names "
        "them.",
        names,
    )
    for ref, expr in zip("ABCD", inspections.values(), strict=True):
        panel.with_target(query_table(expr, ref))
    return (
        panel.override_by_name("next rotation", set_unit("dateTimeAsIso"))
        .override_by_name("wrong AAD refused", color_cells(YES_LABELS))
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSWrongAADAccepted")])
        .span(12)
        .height(8)
    )


def build_rotation_panels() -> list[Builder[Panel]]:
    """The data keys of services. Services that share a database report the same, so nothing is summed."""
    data_keys = f"max by (env, service, type) (kms_rotation_last_success_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    failed = f"max by (env, service) (kms_rotation_last_failure_timestamp_seconds{{{SERVICE_SELECTOR}}})"
    keys = f"max by (env, service, kek_version, status) (kms_data_keys{{{SERVICE_SELECTOR}}})"
    steps = (
        f"max by (env, service, step) (increase(kms_rotation_failures_total{{{SERVICE_SELECTOR}}}[$__rate_interval]))"
    )
    return [
        build_stat(
            "Since the last rotation",
            "How long ago data keys were last rotated, by type: a new one made, or old ones wrapped anew. Orange after "
            "35 days: a rotation is monthly.",
            {0: "green", 35 * 86400: "orange"},
        )
        .with_target(query_instant(f"time() - {data_keys}", "{{env}} {{service}} {{type}}"))
        .unit("s")
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSRotationOverdue")])
        .span(8)
        .height(5),
        build_stat(
            "Rotation under way",
            "Whether a rotation is under way, or was left in the middle.",
            {0: "green", 1: "blue"},
        )
        .with_target(
            query_instant(
                f"max by (env, service) (kms_rotation_in_progress{{{SERVICE_SELECTOR}}})", "{{env}} {{service}}"
            )
        )
        .unit("none")
        .mappings(build_value_mappings(_IN_PROGRESS_LABELS))
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSRotationFailed")])
        .span(8)
        .height(5),
        build_stat(
            "Since a step last failed",
            "How long ago a step of a rotation failed. Red within a day; none is best.",
            {0: "red", 86400: "green"},
        )
        .with_target(query_instant(f"time() - {failed}", "{{env}} {{service}}"))
        .unit("s")
        .no_value("none failed")
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSRotationFailed")])
        .span(8)
        .height(5),
        build_time_series(
            "Data keys",
            "Data keys by the version of the KMS key that wraps them (0: the local key) and by status. A version is to "
            "be disabled only when it wraps none.",
        )
        .with_target(query_range(keys, "{{env}} {{service}} version {{kek_version}} {{status}}"))
        .unit("short")
        .decimals(0)
        .links(build_runbook_links("KMSRotationOverdue", "KMSKeyVersionDestroyScheduled"))
        .span(12)
        .height(8),
        build_bar_chart("Failures of rotations", "Steps of rotations that failed in each interval.")
        .with_target(query_range(steps, "{{env}} {{service}} {{step}}"))
        .unit("short")
        .links([build_link("Board", BOARD_URL), *build_runbook_links("KMSRotationFailed")])
        .span(12)
        .height(8),
    ]
