"""`/`: the state of the relay now: the path of an alert as lights, open incidents, channels, the last hours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.relay.config import RelaySettings
from services.relay.configured_channels import list_configured_channels
from services.relay.console.channel_lights import LATE_SECONDS, build_channel_light
from services.relay.console.channel_views import find_next_message_time
from services.relay.console.delivery_plot import COUNT_HEIGHT, TIME_HEIGHT, WIDTH, build_plot, find_start
from services.relay.console.events import ChangeStream
from services.relay.console.pages.layout import PageRenderer
from services.relay.console.path_lights import Light
from services.relay.console.path_watch import PathWatch
from services.relay.console.recent_times import RecentTimes
from services.relay.console.status import HealthStatus, find_worst
from services.relay.outbox.channel_state.channel_overviews import ChannelOverview
from services.relay.outbox.engine.store import Store
from services.relay.outbox.engine.work_queue import StoreUnavailableError
from services.relay.outbox.overview.first_page import EMPTY_OVERVIEW, read_overview
from services.relay.outbox.overview.open_incidents import OpenIncidents
from services.relay.shared_read import SharedRead
from services.relay.text import Severity
from shared.http.authorization import ProtectedRoute

MAX_INCIDENTS: Final = 8
_MAX_AGE: Final = 1.0
"""Seconds for which one read serves all viewers."""
_FRAGMENT: Final = "now_state"
_CALM: Final = (HealthStatus.HEALTHY, HealthStatus.UNKNOWN)
_NOT_URGENT: Final = (Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, slots=True)
class ChannelCard:
    """What is shown of a channel."""

    light: Light
    overview: ChannelOverview
    kind: str
    rate: str | None
    """Its rate limit, such as `1/s`."""
    next_message_at: float | None
    """When its rate limit allows the next message, unix seconds; None if it does now."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The worst of the open incidents, the parts of the path and the channels, in a few words."""

    status: HealthStatus
    text: str
    names: Sequence[str]
    """The parts and channels that it counts."""
    problem_count: int
    """What needs somebody, for the page's title: failing parts, and incidents that nobody has acknowledged."""


class NowPages:
    """The first page.

    Args:
        store: the outbox.
        renderer: renders the template.
        settings: the configuration.
        path: the lights of the path.
        changes: says whether something has changed since the last read.
    """

    def __init__(
        self, store: Store, renderer: PageRenderer, settings: RelaySettings, path: PathWatch, changes: ChangeStream
    ) -> None:
        self._renderer = renderer
        self._path = path
        self._changes = changes
        self._channels = {channel.name: channel for channel in list_configured_channels(settings)}
        read = partial(read_overview, clock=store.clock, channels=list(settings.channels), max_incidents=MAX_INCIDENTS)
        self._overview = SharedRead(partial(store.read, read), _MAX_AGE)
        self._times = RecentTimes(store)
        self._fragment = SharedRead(self._render_fragment, _MAX_AGE)
        self._last = EMPTY_OVERVIEW
        """What was read last, which is shown as old while the outbox cannot be read."""
        self._clock = store.clock

    def build_routes(self) -> list[ProtectedRoute]:
        """The route of the page."""
        return [self._renderer.build_page_route("/", self._show)]

    async def _show(self, request: Request) -> Response:
        if request.headers.get("hx-target") == _FRAGMENT and not request.scope.get("query_string"):
            return HTMLResponse(await self._fragment.get(self._changes.version, request))
        return await self._render(request)

    async def _render_fragment(self, request: Request) -> bytes:
        """The part that is loaded again, which is the same for all viewers."""
        return bytes((await self._render(request)).body)

    async def _render(self, request: Request) -> Response:
        error = None
        try:
            self._last = await self._overview.get(self._changes.version)
            now, (steps, start) = self._last.now, await self._times.get()
        except StoreUnavailableError as raised:
            error, now = str(raised), self._clock()
            steps, start = {}, find_start(now)
        overview = self._last
        lights = self._path.build_lights(overview, now, error)
        channels = [self._build_card(each, overview.now) for each in overview.channels]
        values = {
            "error": error,
            "overview": overview,
            "lights": lights,
            "channels": sorted(channels, key=_get_sort_key),
            "headline": build_headline([*lights, *(card.light for card in channels)], overview.incidents),
            "is_path_calm": find_worst(light.verdict.status for light in lights) in _CALM,
            "plot": build_plot(steps, start),
            "plot_width": WIDTH,
            "plot_heights": {"counts": COUNT_HEIGHT, "times": TIME_HEIGHT},
            "LATE_SECONDS": LATE_SECONDS,
        }
        # htmx shows no fragment of an error.
        status = 503 if error and "hx-request" not in request.headers else 200
        return await self._renderer.render(request, "now.html.j2", values, status=status)

    def _build_card(self, channel: ChannelOverview, now: float) -> ChannelCard:
        configured = self._channels[channel.name]
        return ChannelCard(
            build_channel_light(channel, now),
            channel,
            configured.kind,
            configured.rate,
            find_next_message_time(channel, configured.rate_per_second, now),
        )


def _get_sort_key(card: ChannelCard) -> tuple[int, str]:
    return list(HealthStatus).index(card.light.verdict.status), card.light.name


def build_headline(lights: Sequence[Light], incidents: OpenIncidents) -> Headline:
    """What the page says first.

    An incident that nobody has acknowledged counts as failing; one that somebody takes care of, and one that is not
    urgent, as degraded.
    """
    worst_part = find_worst(light.verdict.status for light in lights)
    names = [light.name for light in lights if light.verdict.status is worst_part]
    if not incidents.total and worst_part is HealthStatus.HEALTHY:
        return Headline(worst_part, "Everything works", [], 0)
    if not incidents.total and worst_part is HealthStatus.UNKNOWN:
        return Headline(worst_part, f"Nothing fails, {len(names)} not known", names, 0)
    texts = [_count_incidents(incidents)] if incidents.total else []
    if worst_part in _CALM:
        names = []
    else:
        texts.append(f"{len(names)} {worst_part}")
    failing = len(names) if worst_part is HealthStatus.FAILING else 0
    status = find_worst([worst_part, _judge_incidents(incidents)])
    return Headline(status, ", ".join(texts), names, failing + incidents.unacknowledged)


def _judge_incidents(incidents: OpenIncidents) -> HealthStatus:
    if any(count for severity, count in incidents.unacknowledged_counts.items() if severity not in _NOT_URGENT):
        return HealthStatus.FAILING
    return HealthStatus.DEGRADED if incidents.total else HealthStatus.HEALTHY


def _count_incidents(incidents: OpenIncidents) -> str:
    number = incidents.unacknowledged or incidents.total
    state = "not acknowledged" if incidents.unacknowledged else "open"
    return f"{number} incident{'' if number == 1 else 's'} {state}"
