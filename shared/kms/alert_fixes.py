"""The annotations of an alert → the commands that fix it. Pure: it needs no provider's library.

The rules in ops/prometheus/rules fill in the annotations whose names begin with `kms_`.
"""

from collections.abc import Mapping
from typing import Final

from shared.kms.fixes import Fix
from shared.kms.reason import Cause, Reason
from shared.kms.registry import get_profile, providers

_REASONS: Final = {str(reason): reason for reason in Reason}
_CAUSES: Final = {str(cause): cause for cause in Cause}
_LABELS: Final = ("target", "version", "permission")


def list_fixes(annotations: Mapping[str, str], labels: Mapping[str, str]) -> tuple[Fix, ...]:
    """The commands for an alert; none if it has no `kms_reason`, or a value in it is not valid.

    The annotations are `kms_cause`, empty where it is not known, `kms_provider`, `kms_key` (the key's full name),
    `kms_account`, `kms_target`, `kms_version` and `kms_permission`; the labels `target`, `version` and `permission`,
    where no annotation names another.
    """
    reason = _REASONS.get(annotations.get("kms_reason", ""))
    if reason is None:
        return ()
    cause = _CAUSES.get(annotations.get("kms_cause", ""), Cause.NONE)
    profile = get_profile(annotations.get("kms_provider", ""))
    return tuple(profile.fixes.build(reason, cause, annotations.get("kms_key", ""), _read_values(annotations, labels)))


def list_values(annotations: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    """What fills in such commands, where it is valid: `target`, `version`, `account`, the parts of the key."""
    profile = get_profile(annotations.get("kms_provider", ""))
    return profile.fixes.check(annotations.get("kms_key", ""), _read_values(annotations, labels))


def list_foreign_tools(annotations: Mapping[str, str]) -> frozenset[str]:
    """The command lines of other providers than the alert's; none where it names no provider."""
    own = get_profile(annotations.get("kms_provider", "")).tool
    return frozenset(each.profile.tool for each in providers.values()) - {own, ""} if own else frozenset()


def _read_values(annotations: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    values = {name: annotations.get(f"kms_{name}") or labels.get(name, "") for name in _LABELS}
    return {**values, "account": annotations.get("kms_account", "")}
