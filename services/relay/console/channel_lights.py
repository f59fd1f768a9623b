"""How a channel stands, as a light: up or down, why, and what to do. Pure."""

from typing import Final

from services.relay.channels.diagnosis import find_hint
from services.relay.console.path_lights import Light
from services.relay.console.status import HealthStatus
from services.relay.outbox.channel_overviews import BreakerState, ChannelOverview
from services.relay.send_error import SendReason
from shared.web.time_format import format_duration

LATE_SECONDS: Final = 300.0
"""How long a delivery may wait before its channel's light is amber; the alert RelayOutboxStuck comes later."""
_REASONS: Final = {
    SendReason.TIMEOUT: "no answer in time",
    SendReason.CONNECTION: "no connection",
    SendReason.RATE_LIMITED: "too many messages for the provider",
    SendReason.SERVER_ERROR: "an error of the provider",
    SendReason.REJECTED: "the message was rejected",
    SendReason.UNAUTHORIZED: "the credentials are refused",
    SendReason.MISCONFIGURED: "the destination does not exist, or may not be written to",
    SendReason.INTERNAL: "a defect of the relay",
}


def build_channel_light(channel: ChannelOverview, now: float) -> Light:
    """One channel."""
    at = channel.last_success.finished_at if channel.last_success else None

    def light(status: HealthStatus, text: str, hint: str = "") -> Light:
        return Light(channel.name, status, text, "last success", at, hint, f"/channels#{channel.name}")

    why = _describe_reason(channel.reason)
    if channel.is_down:
        hint = "The relay tries again by itself; sooner with a test on its page."
        return light(HealthStatus.FAILING, f"Down: {why}.", f"{_advise(channel.reason)} {hint}")
    if channel.breaker is not BreakerState.CLOSED:
        state = "Paused" if channel.breaker is BreakerState.OPEN else "The next delivery tries"
        text = f"{state}: {channel.failures} attempts in a row failed, the last one for {channel.reason}: {why}."
        return light(HealthStatus.FAILING, text, _advise(channel.reason))
    if channel.retry_after_until is not None:
        seconds = format_duration(max(channel.retry_after_until - now, 1.0))
        return light(HealthStatus.DEGRADED, f"Its provider asked to wait; {seconds} are left.")
    if channel.last_check is not None and channel.last_check.is_ok is False:
        return light(HealthStatus.DEGRADED, f"Its check failed: {channel.last_check.problem}.", channel.last_check.hint or "")
    if channel.failures:
        text = f"{channel.failures} attempts in a row failed: {why}."
        return light(HealthStatus.DEGRADED, text, _advise(channel.reason))
    if channel.oldest_accepted_at is not None and now - channel.oldest_accepted_at > LATE_SECONDS:
        return light(HealthStatus.DEGRADED, "Up, and a delivery is late.", "See what waits, and its attempts.")
    if channel.last_success is None and channel.last_check is None:
        return light(HealthStatus.UNKNOWN, "Nothing was sent yet.", "Send a test on its page.")
    return light(HealthStatus.HEALTHY, "Up.")


def _describe_reason(reason: str | None) -> str:
    return _REASONS.get(SendReason(reason), reason) if reason in list(SendReason) else reason or "not known"


def _advise(reason: str | None) -> str:
    hint = find_hint(SendReason(reason)) if reason in list(SendReason) else ""
    return f"{hint[:1].upper()}{hint[1:]}." if hint else ""
