"""Rows about the keys: the life of the key in KMS, and the rotation of the data keys that it wraps."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ops.grafana import links
from ops.grafana.links import link, sections
from ops.grafana.panels.kinds import bars, cell, lines, stat, table, timeline, unit
from ops.grafana.panels.looks import YES, words
from ops.grafana.panels.queries import columns, now, over_time
from ops.grafana.variables import SERVICE

_PERMITTED = {"0": ("missing", "red"), "1": ("granted", "green")}
_DECRYPTS = {"0": ("does not decrypt", "red"), "1": ("decrypts", "green")}
_UNDER_WAY = {"0": ("no", "green"), "1": ("under way", "blue")}


def lifecycle() -> list[Builder[Panel]]:
    """What the exporter sees at each look: versions, canaries, permissions, destructions."""
    destroyed = f"min by (env, service, target, version) (kms_key_version_destroy_timestamp_seconds{{{SERVICE}}})"
    destruction = {name: name for name in ("env", "service", "target", "version")}
    return [
        _keys(),
        lines("Versions by state", "Versions of each key, by the state that Cloud KMS calls them in.")
        .with_target(
            over_time(
                f"max by (env, service, target, state) (kms_key_versions{{{SERVICE}}}) > 0",
                "{{env}} {{service}} {{target}} {{state}}",
            )
        )
        .unit("short")
        .decimals(0)
        .links(sections("key_disabled", "Enable a version"))
        .span(12)
        .height(8),
        timeline(
            "Canaries",
            "Whether what each older version once encrypted can still be decrypted. Where it cannot, whatever data is "
            "still of that version cannot be read either.",
            _DECRYPTS,
        )
        .with_target(
            over_time(
                f"min by (env, service, target, version) (kms_canary_success{{{SERVICE}}})",
                "{{env}} {{service}} {{target}} version {{version}}",
            )
        )
        .links([link("Board", links.BOARD), *sections("KMSCanaryLost", "key_destroyed")])
        .span(12)
        .height(8),
        timeline("Permissions", "Whether IAM grants the exporter's account what the key needs.", _PERMITTED)
        .with_target(
            over_time(
                f"min by (env, service, target, permission) (kms_key_permission{{{SERVICE}}})",
                "{{env}} {{service}} {{target}} {{permission}}",
            )
        )
        .links(sections("KMSPermissionMissing", "Grant the role"))
        .span(12)
        .height(8),
        table(
            "Scheduled destructions",
            "Versions that will be destroyed, and when. Nothing that such a version encrypted can be read already now; "
            "until then it can be restored.",
            destruction | {"Value": "when"},
        )
        .with_target(columns(f"1000 * {destroyed}"))
        .override_by_name("when", unit("dateTimeAsIso"))
        .links([*sections("KMSKeyVersionDestroyScheduled"), link("Alerts", links.ALERTS)])
        .span(24)
        .height(6),
    ]


def _keys() -> Builder[Panel]:
    by = "by (env, service, target)"
    asked = {
        "primary version": f"max {by} (kms_key_primary_version{{{SERVICE}}})",
        "next rotation": f"1000 * max {by} (kms_key_next_rotation_timestamp_seconds{{{SERVICE}}})",
        "wrong AAD refused": f"min {by} (kms_wrong_aad_refused{{{SERVICE}}})",
        "problems": f"max {by} (kms_key_problems{{{SERVICE}}})",
    }
    names = {name: name for name in ("env", "service", "target")}
    names |= {f"Value #{ref}": name for ref, name in zip("ABCD", asked, strict=True)}
    panel = table(
        "Keys",
        "Each key: the version that encrypts, when KMS makes the next one (blank where no rotation is planned), "
        "whether KMS refuses a wrong AAD, and how many things were wrong at the last look; the board names them.",
        names,
    )
    for ref, expr in zip("ABCD", asked.values(), strict=True):
        panel.with_target(columns(expr, ref))
    return (
        panel.override_by_name("next rotation", unit("dateTimeAsIso"))
        .override_by_name("wrong AAD refused", cell(YES))
        .links([link("Board", links.BOARD), *sections("KMSWrongAADAccepted")])
        .span(12)
        .height(8)
    )


def rotation() -> list[Builder[Panel]]:
    """What services tell of their data keys. Those that share a database tell the same, so nothing is added up."""
    told = f"max by (env, service, type) (kms_rotation_last_success_timestamp_seconds{{{SERVICE}}})"
    failed = f"max by (env, service) (kms_rotation_last_failure_timestamp_seconds{{{SERVICE}}})"
    keys = f"max by (env, service, kek_version, status) (kms_data_keys{{{SERVICE}}})"
    steps = f"max by (env, service, step) (increase(kms_rotation_failures_total{{{SERVICE}}}[$__rate_interval]))"
    return [
        stat(
            "Since the last rotation",
            "How long ago data keys were last rotated, by type: a new one made, or old ones wrapped anew. Orange after "
            "35 days: a rotation is monthly.",
            {0: "green", 35 * 86400: "orange"},
        )
        .with_target(now(f"time() - {told}", "{{env}} {{service}} {{type}}"))
        .unit("s")
        .links([link("Board", links.BOARD), *sections("KMSRotationOverdue")])
        .span(8)
        .height(5),
        stat(
            "Rotation under way",
            "Whether a rotation is under way, or was left in the middle.",
            {0: "green", 1: "blue"},
        )
        .with_target(now(f"max by (env, service) (kms_rotation_in_progress{{{SERVICE}}})", "{{env}} {{service}}"))
        .unit("none")
        .mappings(words(_UNDER_WAY))
        .links([link("Board", links.BOARD), *sections("KMSRotationFailed")])
        .span(8)
        .height(5),
        stat(
            "Since a step last failed",
            "How long ago a step of a rotation failed. Red within a day; none is best.",
            {0: "red", 86400: "green"},
        )
        .with_target(now(f"time() - {failed}", "{{env}} {{service}}"))
        .unit("s")
        .no_value("none failed")
        .links([link("Board", links.BOARD), *sections("KMSRotationFailed")])
        .span(8)
        .height(5),
        lines(
            "Data keys",
            "Data keys by the version of the KMS key that wraps them (0: the local key) and by status. A version is to "
            "be disabled only when it wraps none.",
        )
        .with_target(over_time(keys, "{{env}} {{service}} version {{kek_version}} {{status}}"))
        .unit("short")
        .decimals(0)
        .links(sections("KMSRotationOverdue", "KMSKeyVersionDestroyScheduled"))
        .span(12)
        .height(8),
        bars("Failures of rotations", "Steps of rotations that failed in each interval.")
        .with_target(over_time(steps, "{{env}} {{service}} {{step}}"))
        .unit("short")
        .links([link("Board", links.BOARD), *sections("KMSRotationFailed")])
        .span(12)
        .height(8),
    ]
