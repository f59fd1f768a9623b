"""Whatever was there before, and wherever a run was cut off: it ends in the same state, and others' settings stay."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.audit.apply import apply_changes
from ops.audit.google_api import GoogleApi
from ops.audit.google_parts import read_part
from ops.audit.plan import DesiredState, diff_change, plan_changes
from tests.iterations import LONG
from tests.ops.audit.initial_states import BUCKET, FOREIGN_BINDING, PROJECT, half_done
from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.server import Stand

pytestmark = pytest.mark.played

DESIRED = DesiredState(
    PROJECT, frozenset({"serviceAccount:exporter@x"}), bigquery=True, bucket=BUCKET, location="europe-west3"
)
READS = {"get", "getIamPolicy"}


class CutOffError(Exception):
    """The run was killed."""


class CutOff:
    """Calls until it is cut off, before or after Google has done what it was asked for."""

    def __init__(self, google: GoogleApi, after: int, *, late: bool) -> None:
        self._google = google
        self._left = after
        self._late = late

    def call(self, name: str, /, **parameters: Any) -> Any:
        self._left -= 1
        if self._left < 0 and not self._late:
            raise CutOffError
        answer = self._google.call(name, **parameters)
        if self._left < 0:
            raise CutOffError
        return answer


def end(world: LoggingWorld) -> Any:
    """All that exists, without what counts versions."""
    parts = (world.enabled, world.policies, world.datasets, world.sinks, world.buckets, world.bucket_policies)
    return _plain(deepcopy(parts))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in {"etag", "metageneration"}}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def done(google: GoogleApi | CutOff) -> None:
    for change in apply_changes(google, DESIRED, lambda _: None):
        assert diff_change(change), "a change that nobody would see"


@settings(
    max_examples=40 if LONG else 20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(world=half_done(), cuts=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=3))
def test_from_any_half_done_state_a_run_ends_in_the_same_state(
    world: LoggingWorld, cuts: list[tuple[int, bool]], stand: Stand, google: GoogleApi
) -> None:
    untouched, others = (
        deepcopy(world),
        [c for c in world.policies[PROJECT]["auditConfigs"] if "kms" not in c["service"]],
    )
    exclusions = dict.fromkeys(f"projects/{PROJECT}/sinks/kms-audit-{kind}" for kind in ("bigquery", "storage"))
    exclusions |= {name: sink["exclusions"] for name, sink in world.sinks.items()}
    stand.handle = untouched.answer
    done(google)
    stand.handle = world.answer
    for after, late in cuts:
        try:
            done(CutOff(google, after, late=late))
        except CutOffError:
            continue
    done(google)
    assert end(world) == end(untouched)

    stand.requests.clear()
    assert plan_changes({part: read_part(google, part, DESIRED) for part in DESIRED.list_parts}, DESIRED) == []
    done(google)
    assert {name.rpartition(".")[2] for name in stand.names()} == READS
    policy = world.policies[PROJECT]
    assert FOREIGN_BINDING in policy["bindings"]
    assert [config for config in policy["auditConfigs"] if "kms" not in config["service"]] == others
    assert {name: sink.get("exclusions") for name, sink in world.sinks.items()} == exclusions
