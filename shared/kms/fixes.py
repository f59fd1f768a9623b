"""What is particular to one provider, as data: permissions, quotas, advice, and the commands that fix a failure.

`causes.yml` has the advice and the commands, which board, runbook and messages show. Their values may come from an
alert, which others can write: a value that does not match its pattern is in no command.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Final, NamedTuple

import yaml

from shared.config.yaml_file import FAST_LOADER
from shared.kms.reason import Cause, Reason

ACCOUNT_OF_EXPORTER: Final = "$EXPORTER_ACCOUNT"
ACCOUNT_OF_SERVICE: Final = "$SERVICE_ACCOUNT"
"""Variables of the runbook, for an account whose name is not known."""
_TARGET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Fix(NamedTuple):
    title: str
    """What it does, such as `Grant the role`."""
    command: str


class FixTemplate(NamedTuple):
    """A command with `{name}` for each value that a failure fills in."""

    title: str
    command: str
    unless: str = ""
    """A value that makes it superfluous."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for _, name, _, _ in Formatter().parse(self.command) if name)


@dataclass(frozen=True, slots=True)
class FixTable:
    commands: Mapping[Reason | Cause, tuple[FixTemplate, ...]]
    """What a person runs first comes first. A cause has its own, or those of its reason."""
    key: re.Pattern[str] | None = None
    """The full name of a key; its named groups are values. None if no command needs a part of it."""
    values: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """What is valid for the other values. Where the key is, their named groups are values too: of groups with one name
    the first counts, and those of the key come last."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """The value `role` by the missing permission; by the empty text where no permission is named."""

    def build(self, reason: Reason, cause: Cause, key: str, values: Mapping[str, str]) -> Iterator[Fix]:
        """Each command whose values are all known and valid.

        `values` are `target`, `version`, `permission`, `account`, and what the service named. What is not known is
        empty.
        """
        valid = {"reason": str(reason), **self.check(key, values)}
        for template in self.commands.get(cause, self.commands.get(reason, ())):
            if template.names <= valid.keys() and template.unless not in valid:
                yield Fix(template.title, template.command.format_map(valid))

    def check(self, key: str, values: Mapping[str, str]) -> dict[str, str]:
        """The values that are known and valid, quoted for a shell."""
        patterns = {"target": _TARGET, **self.values}
        candidates = {"account": ACCOUNT_OF_EXPORTER, **{name: value for name, value in values.items() if value}}
        valid: dict[str, str] = {}
        parts: dict[str, str] = {}
        for name, pattern in patterns.items():
            if found := pattern.fullmatch(candidates.get(name, "")):
                valid[name] = shlex.quote(found[0])
                parts = {part: text for part, text in found.groupdict().items() if text} | parts
        if candidates["account"] in {ACCOUNT_OF_EXPORTER, ACCOUNT_OF_SERVICE}:
            valid["account"] = candidates["account"]
        if role := self.roles.get(values.get("permission", "")):
            valid["role"] = role
        if self.key and (found := self.key.fullmatch(key)):
            valid |= {name: shlex.quote(part) for name, part in (found.groupdict() | parts).items()}
        return valid


Rows = Mapping[Reason | Cause, Mapping[str, Any]]
"""Of a `causes.yml`."""


def read_rows(file: Path) -> Rows:
    names: dict[str, Reason | Cause] = {str(name): name for name in (*Reason, *Cause)}
    rows = yaml.load(file.read_text(encoding="utf-8"), FAST_LOADER)  # noqa: S506  # a safe loader
    return {names[name]: row for name, row in rows.items()}


def list_advice(rows: Rows) -> dict[Reason | Cause, str]:
    return {name: row["advice"] for name, row in rows.items() if "advice" in row}


def list_commands(rows: Rows) -> dict[Reason | Cause, tuple[FixTemplate, ...]]:
    found = {name: row["commands"] for name, row in rows.items() if "commands" in row}
    return {name: tuple(FixTemplate(**each) for each in commands) for name, commands in found.items()}


_ROWS: Final = read_rows(Path(__file__).with_name("causes.yml"))
GENERIC_ADVICE: Final = list_advice(_ROWS)
GENERIC_COMMANDS: Final = list_commands(_ROWS)
GENERIC_FIXES: Final = FixTable(GENERIC_COMMANDS)


@dataclass(frozen=True, slots=True)
class KmsProfile:
    """A provider's permissions, quotas, advice and commands."""

    service_name: str
    """As its users call it, such as `Cloud KMS`."""
    probe_permissions: tuple[str, ...]
    """The permissions on a key that the exporter needs, as the provider names them; empty if it has none."""
    round_trip_permissions: tuple[str, ...] = field(default=(), kw_only=True)
    """The ones that a round trip proves when it succeeds: to encrypt, and to decrypt, in this order."""
    unwanted_permissions: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Permissions that do harm to whoever encrypts, and what they do: `doctor` warns of them."""
    reads_per_minute: float
    """How many reads of keys one exporter may make: two of them, people and programs share the quota."""
    reads_per_inspection: int
    """Reads of one key inspection: the key, its versions, its permissions, and what holds it in place of the KMS."""
    permission_calls: int = field(default=1, kw_only=True)
    """Calls of one check of the permissions."""
    calls_per_minute: Mapping[str, float]
    """The documented limit of encryptions and decryptions by protection level; of any other by the empty text."""
    advice: Mapping[Reason | Cause, str] = field(default_factory=dict)
    """What to do about a failure, where it differs from `GENERIC_ADVICE`."""
    fixes: FixTable = GENERIC_FIXES
    rotation_advice: str = "The KMS shows the rotation schedule of the key."
    """What to do where a scheduled rotation did not happen."""
    parse_version: Callable[[bytes], str | None] = lambda _ciphertext: None
    """The version that made a ciphertext; None where its format, as documented, does not tell."""
    parse_key_name: Callable[[str], tuple[str, str] | None] = lambda _text: None
    """The key's full name and the version, empty where there is none, of a name in any of the provider's spellings.

    None where a text is no name of a key.
    """
    may_be_same_key: Callable[[str, str], bool] = lambda _one, _other: False
    """Whether two full names that differ may stand for one key."""
    tool: str = ""
    """The provider's command line, such as `gcloud`; what a runbook types with it is for this provider alone."""
    has_checksums: bool = False
    """Whether answers have checksums, which a round trip compares."""
    propagation: str = "minutes"
    """How long a new primary version, or a disabled one, takes to take effect everywhere, as text."""

    def get_call_limit(self, protection_level: str) -> float:
        """Encryptions and decryptions a minute, as documented; the level is empty while it is not known."""
        return self.calls_per_minute.get(protection_level, self.calls_per_minute[""])

    def advise(self, reason: Reason, cause: Cause = Cause.NONE) -> str:
        known = {**GENERIC_ADVICE, **self.advice}
        return known.get(cause) or known[reason]

    def list_grants(self) -> list[str]:
        """What the exporter's account needs on a key: the roles that hold its permissions, or these where none does."""
        roles = self.fixes.roles
        return list(dict.fromkeys(roles.get(permission, permission) for permission in self.probe_permissions))


GENERIC_PROFILE: Final = KmsProfile(
    service_name="KMS",
    probe_permissions=(),
    reads_per_minute=60.0,
    reads_per_inspection=3,
    calls_per_minute={"": 6_000},
)
"""A provider of which nothing is known: cautious quotas, generic advice."""
