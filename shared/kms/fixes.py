"""The commands that fix a failure of KMS, or show its cause: a reason and a key in, shell commands out. Pure.

Each provider has one table, in its profile. Board, runbook and messages show its commands. The values may come from an
alert, which others can write: a value that does not match its pattern is in no command.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Final, NamedTuple

from shared.kms.reason import Reason

ACCOUNT_OF_EXPORTER: Final = "$EXPORTER_ACCOUNT"
ACCOUNT_OF_SERVICE: Final = "$SERVICE_ACCOUNT"
"""Variables of the runbook, for an account whose name is not known."""
_TARGET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Fix(NamedTuple):
    """A command, ready to paste."""

    title: str
    """What it does, such as `Grant the role`."""
    command: str
    """One line."""


class FixTemplate(NamedTuple):
    """A command with `{name}` for each value that a failure fills in."""

    title: str
    command: str
    unless: str = ""
    """A value that makes it superfluous."""

    @property
    def names(self) -> frozenset[str]:
        """The values that it needs."""
        return frozenset(name for _, name, _, _ in Formatter().parse(self.command) if name)


@dataclass(frozen=True, slots=True)
class FixTable:
    """The commands of one provider."""

    commands: Mapping[Reason, tuple[FixTemplate, ...]]
    """What a person runs first comes first."""
    key: re.Pattern[str] | None = None
    """The full name of a key; its named groups are values. None if no command needs a part of it."""
    values: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """What is valid for the other values."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """The value `role` by the missing permission; by the empty text where no permission is named."""

    def build(self, reason: Reason, key: str, values: Mapping[str, str]) -> Iterator[Fix]:
        """Each command whose values are all known and valid.

        Args:
            reason: why KMS failed.
            key: the full name of the key; empty if it is not known.
            values: `target`, `version`, `permission`, `account`; empty or absent if they are not known.
        """
        valid = {"reason": str(reason), **self.check(key, values)}
        for template in self.commands.get(reason, ()):
            if template.names <= valid.keys() and template.unless not in valid:
                yield Fix(template.title, template.command.format_map(valid))

    def check(self, key: str, values: Mapping[str, str]) -> dict[str, str]:
        """The values that are known and valid, quoted for a shell; arguments as of `build`."""
        patterns = {"target": _TARGET, **self.values}
        candidates = {"account": ACCOUNT_OF_EXPORTER, **{name: value for name, value in values.items() if value}}
        valid = {
            name: shlex.quote(candidates[name])
            for name, pattern in patterns.items()
            if name in candidates and pattern.fullmatch(candidates[name])
        }
        if candidates["account"] in {ACCOUNT_OF_EXPORTER, ACCOUNT_OF_SERVICE}:
            valid["account"] = candidates["account"]
        if role := self.roles.get(values.get("permission", "")):
            valid["role"] = role
        if self.key and (parts := self.key.fullmatch(key)):
            valid |= {name: shlex.quote(part) for name, part in parts.groupdict().items()}
        return valid


_MEASURE: Final = FixTemplate("Measure DNS, TCP and TLS", 'curl -sS -m 30 "$EXPORTER/probe?target={target}&debug=true"')
_COMPARE: Final = FixTemplate(
    "See whether it is one machine or all",
    'promtool query instant "$PROMETHEUS" '
    "'sum by (instance, target, operation) (increase(kms_probe_failures_total{{reason=\"{reason}\"}}[1h])) > 0'",
)
GENERIC_COMMANDS: Final[Mapping[Reason, tuple[FixTemplate, ...]]] = {
    Reason.TIMEOUT: (_MEASURE,),
    Reason.UNAVAILABLE: (_MEASURE,),
    Reason.QUOTA_EXHAUSTED: (
        FixTemplate(
            "See whether the exporter makes the calls",
            "promtool query instant \"$PROMETHEUS\" 'sum by (env, operation) (rate(kms_operations_total[5m])) * 60'",
        ),
    ),
    Reason.CRC_MISMATCH: (_COMPARE,),
    Reason.PLAINTEXT_MISMATCH: (_COMPARE,),
    Reason.INVALID_REQUEST: (_COMPARE,),
    Reason.INTERNAL: (_COMPARE,),
}
"""Of every provider."""
GENERIC_FIXES: Final = FixTable(GENERIC_COMMANDS)
