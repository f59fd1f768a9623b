from collections.abc import Callable

import grpc
import pytest

from ops.kms_emulator.grpc_errors import StatusError
from ops.kms_emulator.model import EmulatedState, Key

DAY = 86400.0
KEY = Key("projects/p/locations/l/keyRings/r/cryptoKeys/k", created_at=0.0)
ONE = KEY.with_new_version(b"1" * 32, 0.0).with_primary(1, 0.0)
TWO = ONE.with_new_version(b"2" * 32, 5.0)


def test_a_new_version_is_enabled_and_not_the_primary() -> None:
    assert (TWO.version(2).state, TWO.primary) == (EmulatedState.ENABLED, 1)


def test_a_change_of_the_primary_remembers_the_one_before() -> None:
    changed = TWO.with_primary(2, 9.0)
    assert (changed.primary, changed.previous_primary, changed.primary_changed) == (2, 1, 9.0)
    assert changed.with_primary(2, 20.0) == changed


def test_destruction_is_scheduled_and_comes_when_its_time_has_come() -> None:
    scheduled = TWO.with_destruction(2, 100.0)
    assert scheduled.version(2).state is EmulatedState.DESTROY_SCHEDULED
    assert scheduled.version(2).destroy_time == 100.0 + 30 * DAY
    assert scheduled.with_due_destructions(100.0 + 30 * DAY - 1) == scheduled
    destroyed = scheduled.with_due_destructions(100.0 + 30 * DAY).version(2)
    assert destroyed.state is EmulatedState.DESTROYED
    assert destroyed.material is None
    assert destroyed.destroy_time is None
    assert destroyed.destroy_event_time == 100.0 + 30 * DAY


def test_a_restored_version_is_disabled_and_keeps_its_material() -> None:
    restored = TWO.with_destruction(2, 0.0).with_restored_version(2)
    assert restored.with_due_destructions(1000 * DAY).version(2).state is EmulatedState.DISABLED
    assert restored.with_state(2, EmulatedState.ENABLED).get_usable_material(2) == b"2" * 32


def test_the_material_is_in_no_text_of_a_version() -> None:
    assert "1111" not in repr(ONE)


def _disabled(key: Key) -> Key:
    return key.with_state(1, EmulatedState.DISABLED)


def _scheduled(key: Key) -> Key:
    return key.with_destruction(1, 0.0)


def _destroyed(key: Key) -> Key:
    return key.with_destruction(1, 0.0).with_due_destructions(31 * DAY)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (_disabled, lambda key: key.get_usable_material(1)),
        (_disabled, lambda key: key.with_restored_version(1)),
        (_disabled, lambda key: key.with_primary(2, 0.0).with_primary(1, 0.0)),
        (_scheduled, lambda key: key.get_usable_material(1)),
        (_scheduled, lambda key: key.with_state(1, EmulatedState.ENABLED)),
        (_scheduled, lambda key: key.with_destruction(1, 0.0)),
        (_destroyed, lambda key: key.get_usable_material(1)),
        (_destroyed, lambda key: key.with_state(1, EmulatedState.ENABLED)),
        (_destroyed, lambda key: key.with_restored_version(1)),
        (_destroyed, lambda key: key.with_destruction(1, 0.0)),
        (lambda key: key, lambda key: key.with_restored_version(1)),
    ],
)
def test_a_transition_between_states_that_does_not_exist_is_refused(
    state: Callable[[Key], Key], change: Callable[[Key], object]
) -> None:
    key = state(TWO)
    with pytest.raises(StatusError) as refused:
        change(key)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.message.startswith(f"{KEY.name}/cryptoKeyVersions/1 ")
    assert refused.value.message.endswith(f"current state is: {key.version(1).state}.")


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_version_that_never_was_is_not_found(number: int) -> None:
    with pytest.raises(StatusError) as missing:
        TWO.version(number)
    assert missing.value.code is grpc.StatusCode.NOT_FOUND
