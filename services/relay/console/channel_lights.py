"""How a channel stands, as a light: up or down, why, and what to do. Pure."""

from typing import Final

from services.relay.channel_check import advise_on
from services.relay.console.path_lights import Light, Verdict
from services.relay.console.status import HealthStatus
from services.relay.outbox.channel_state.channel_overviews import BreakerState, ChannelOverview
from services.relay.send_error import SendReason
from shared.web.time_format import format_rough_duration

LATE_SECONDS: Final = 300.0
"""How long a delivery may wait before its channel counts as degraded; the alert RelayOutboxStuck comes later."""
_REASONS: Final = {
    SendReason.TIMEOUT: "no answer in time",
    SendReason.CONNECTION: "no connection",
    SendReason.RATE_LIMITED: "too many messages for its provider",
    SendReason.SERVER_ERROR: "an error of its provider",
    SendReason.REJECTED: "its provider rejected the message",
    SendReason.UNAUTHORIZED: "its credentials are refused",
    SendReason.MISCONFIGURED: "its destination does not exist, or the relay may not write there",
    SendReason.INTERNAL: "a defect of the relay",
}


def build_channel_light(channel: ChannelOverview, now: float) -> Light:
    """One channel."""
    at, proof = channel.last_success.finished_at if channel.last_success else None, "last success"
    test = channel.last_test
    if test is not None and test.problem is None and not _was_delivered_after(channel, test.started_at):
        at, proof = test.started_at, "last test arrived"
    return Light(
        channel.name,
        _judge_sending(channel, now) or _judge_others(channel, now),
        proof,
        at,
        f"/channels/{channel.name}",
    )


def _judge_sending(channel: ChannelOverview, now: float) -> Verdict | None:
    """What keeps it from sending; None if nothing does."""
    why = _describe_reason(channel.reason)
    failures = "the last attempt failed" if channel.failures == 1 else f"{channel.failures} attempts in a row failed"
    if channel.is_down:
        return Verdict(HealthStatus.FAILING, f"Down: {why}.", _advise(channel.reason))
    if channel.breaker is not BreakerState.CLOSED:
        return Verdict(HealthStatus.FAILING, f"Paused: {failures}: {why}.", _advise(channel.reason))
    if channel.retry_after_until is not None:
        left = format_rough_duration(max(channel.retry_after_until - now, 1.0))
        return Verdict(HealthStatus.DEGRADED, f"Its provider asked to wait; {left} left.")
    if channel.failures:
        return Verdict(HealthStatus.DEGRADED, f"{failures.capitalize()}: {why}.", _advise(channel.reason))
    return None


def _judge_others(channel: ChannelOverview, now: float) -> Verdict:
    check, test = channel.last_check, channel.last_test
    if test is not None and test.problem is not None and not _was_delivered_after(channel, test.started_at):
        return Verdict(HealthStatus.DEGRADED, f"Its test failed: {test.problem}.", _capitalise(test.hint or ""))
    if check is not None and check.problem is not None and not _was_delivered_after(channel, check.started_at):
        return Verdict(HealthStatus.DEGRADED, f"Its check failed: {check.problem}.", _capitalise(check.hint or ""))
    if channel.dead:
        return Verdict(HealthStatus.DEGRADED, _describe_dead_letters(channel), "Correct the cause, then retry them.")
    if channel.oldest_accepted_at is not None and now - channel.oldest_accepted_at > LATE_SECONDS:
        return Verdict(HealthStatus.DEGRADED, "A delivery is late.", "See what waits, and why its attempts failed.")
    if channel.last_success is None and check is None and test is None:
        return Verdict(HealthStatus.UNKNOWN, "Nothing was sent yet.", "Send a test message.")
    return Verdict(HealthStatus.HEALTHY, "Up.")


def _describe_dead_letters(channel: ChannelOverview) -> str:
    """What was given up, whatever was delivered since: nobody was told of it, as RelayDeadLetters says, too."""
    dead = f"{channel.dead} dead letter{'' if channel.dead == 1 else 's'}"
    failure = channel.last_failure
    return f"{dead}; the last failure: {_describe_reason(failure.reason)}." if failure else f"{dead}."


def _was_delivered_after(channel: ChannelOverview, at: float) -> bool:
    success = channel.last_success
    return success is not None and success.finished_at is not None and success.finished_at > at


def _describe_reason(reason: str | None) -> str:
    return _REASONS[SendReason(reason)] if reason in _REASONS else reason or "the reason is not known"


def _advise(reason: str | None) -> str:
    return _capitalise(advise_on(reason))


def _capitalise(hint: str) -> str:
    return f"{hint[0].upper()}{hint[1:]}." if hint else ""
