"""Which data keys are tried in the background: thousands of a version that KMS refuses must not use up its quota.

What KMS refused is tried again by a sample of each version at each check. Where one of a sample can be used, all others
of its version are tried at once; so a version that was enabled again is found within a few checks.
"""

from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey

SAMPLE_SIZE: Final = 8
"""Data keys of each version: some of them may be refused for a cause of their own."""


class UnwrapRetries:
    """What could not be unwrapped, as it was wrapped then."""

    def __init__(self) -> None:
        self._refused: dict[str, WrappedKey] = {}  # what was tried longest ago stands first

    def select_due(self, keys: Sequence[DataKey], unusable: Container[str]) -> list[DataKey]:
        """Those of `keys`, which are not held, to try now: samples, and what is new or changed, or costs no call."""
        by_id = {key.id: key for key in keys}
        due = [key for key in keys if key.wrapped.kek == LOCAL_KEK or not self._is_refused(key, unusable)]
        self._refused = {name: wrapped for name, wrapped in self._refused.items() if name in by_id}
        begun = {key.id for key in due}
        sampled: Counter[tuple[str, int]] = Counter()
        for name in self._refused:
            version = _get_kek_version(by_id[name])
            if name not in begun and sampled[version] < SAMPLE_SIZE:
                sampled[version] += 1
                due.append(by_id[name])
        return due

    def select_recovered(self, keys: Sequence[DataKey], attempted: Sequence[DataKey], cached: Container[str]) -> list[DataKey]:
        """Once `attempted` is done: all others of the versions of which a data key was refused, and no longer is."""
        done = {key.id for key in attempted}
        back = {_get_kek_version(key) for key in attempted if key.id in self._refused and key.id in cached}
        for key in attempted:
            self._refused.pop(key.id, None)
            if key.id not in cached:
                self._refused[key.id] = key.wrapped
        return [key for key in keys if key.id in self._refused and key.id not in done and _get_kek_version(key) in back]

    def _is_refused(self, key: DataKey, unusable: Container[str]) -> bool:
        return key.id in unusable and self._refused.get(key.id) == key.wrapped


def _get_kek_version(key: DataKey) -> tuple[str, int]:
    return key.wrapped.kek, key.wrapped.kek_version
