"""Quotas as Cloud KMS has them since February 2026: tokens a minute and region, of the project that the key is in.

A call takes one token: what it really costs is not documented. https://docs.cloud.google.com/kms/quotas
"""

from collections import Counter
from collections.abc import Mapping

from ops.kms_emulator.causes import build_refusal, get_quota_kind, name_quota
from ops.kms_emulator.store import EmulatorStore


class EmulatorQuotas:
    """What was taken in this minute of the clock. `limits` are by kind; a kind that is not there has none."""

    def __init__(self, limits: Mapping[str, int], store: EmulatorStore) -> None:
        self.limits = dict(limits)
        self._store = store
        self._minute = 0.0
        self._taken: Counter[tuple[str, ...]] = Counter()

    def take(self, operation: str, resource: str, key: str | None) -> None:
        """Take a token for a call. Raises RESOURCE_EXHAUSTED, with RetryInfo to the end of the minute."""
        kind = get_quota_kind(operation) or self._store.get_protection_level(key).partition("_")[0].lower()
        minute, seconds = divmod(self._store.clock(), 60)
        if minute != self._minute:
            self._minute = minute
            self._taken.clear()
        place = (kind, *resource.split("/")[1:4:2])
        limit = self.limits.get(kind)
        if limit is not None and self._taken[place] >= limit:
            raise build_refusal("rate_limit", operation, resource, None, 60 - seconds, **name_quota(kind, limit))
        self._taken[place] += 1
