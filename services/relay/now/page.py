"""`/`: the state of the relay now: the path of an alert as lights, open incidents, channels, the last hours as a plot.

How many deliveries ended in each step of the plot, and how long they took from acceptance to receipt, the database
sorts and counts. All viewers share it: what is over is read once, and the rest every few seconds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, literal_column, select
from starlette.requests import Request

from services.relay.channel_health.pages import find_next_message_time, list_configured_channels
from services.relay.config import RelaySettings
from services.relay.console.frame import ChangeStream, Console, HealthStatus, SharedRead, View, find_worst
from services.relay.now.lights import LATE_SECONDS, Light, PathWatch, build_channel_light
from services.relay.now.overview import EMPTY_OVERVIEW, ChannelOverview, OpenIncidents, read_overview
from services.relay.outbox.database import read_clock
from services.relay.outbox.store import Store, StoreUnavailableError
from services.relay.outbox.tables import channels, deliveries
from services.relay.report.queries import IS_DEAD, IS_DELIVERED, TIME_TO_DELIVER, select_quantiles
from services.relay.text import Severity
from shared.sql.rows import RowQuery
from shared.web.log_scale import LogScale, Tick


class DeliveryTimes(NamedTuple):
    """Of one step. The seconds are from the acceptance of the oldest event in a message to its receipt."""

    start: float
    """Unix seconds, a multiple of the step's length."""
    delivered: int = 0
    dead: int = 0
    """Deliveries that were given up."""
    p50: float | None = None
    """Seconds; None where nothing was delivered."""
    p95: float | None = None
    worst: float | None = None


class _StepRow(NamedTuple):
    """The deliveries of one step that got a receipt."""

    step: int
    time_count: int
    p50: float
    p95: float
    worst: float


class _DeadRow(NamedTuple):
    step: int
    dead: int


_of = deliveries.c
_millis = bindparam("millis", type_=BigInteger, literal_execute=True)
_step = (cast(_of.finished_at * 1000, BigInteger) // _millis).label("step")
_DELIVERED: Final = RowQuery(
    _StepRow,
    select_quantiles(
        select(_step, TIME_TO_DELIVER.label("seconds")).where(
            IS_DELIVERED, _of.channel.in_(select(channels.c.name)), _of.finished_at >= bindparam("since")
        ),
        "step",
    ),
)
_DEAD: Final = RowQuery(_DeadRow, select(_step, func.count().label("dead")).group_by(literal_column("step"))).where(
    IS_DEAD, _of.finished_at >= bindparam("since")
)


def read_delivery_times(connection: Connection, since: float, step_seconds: int) -> dict[float, DeliveryTimes]:
    """The steps in which a delivery ended, by their start; for `Store.read`.

    Args:
        connection: to read with.
        since: unix seconds, the start of a step.
        step_seconds: the length of a step.
    """
    values = {"since": since, "millis": step_seconds * 1000}
    found = {}
    for row in _DELIVERED.fetch_all(connection, values):
        start, times = float(row.step * step_seconds), (max(each, 0.0) for each in (row.p50, row.p95, row.worst))
        found[start] = DeliveryTimes(start, row.time_count, 0, *times)
    for dead in _DEAD.fetch_all(connection, values):
        start = float(dead.step * step_seconds)
        found[start] = found.get(start, DeliveryTimes(start))._replace(dead=dead.dead)
    return found


STEP_SECONDS: Final = 300
STEPS: Final = 72
"""Six hours."""
WIDTH: Final = 720
COUNT_HEIGHT: Final = 60
TIME_HEIGHT: Final = 120
MIN_SECONDS: Final = 0.01
"""Seconds; shorter times are drawn at this one."""
_STEP_WIDTH: Final = WIDTH / STEPS
_GAP: Final = 1.0


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class DeliveryPlot:
    """What is drawn: counts above, in units of WIDTH x COUNT_HEIGHT; times below, WIDTH x TIME_HEIGHT."""

    delivered: Sequence[Bar]
    dead: Sequence[Bar]
    """Above the delivered ones."""
    max_count: int
    """The height of the counts."""
    p50: str
    """The `d` of an SVG path, a level for each step; empty if nothing was delivered."""
    p95: str
    worst: str
    ticks: Sequence[Tick]
    """Of the times; empty if nothing was delivered."""
    steps: Sequence[DeliveryTimes]
    """Those with a delivery, the newest first; for the table."""
    delivered_total: int
    dead_total: int
    worst_seconds: float | None


def find_start(now: float) -> float:
    """When the first step of the plot starts, unix seconds."""
    return (math.floor(now / STEP_SECONDS) - STEPS + 1) * float(STEP_SECONDS)


def build_plot(steps: Mapping[float, DeliveryTimes], start: float) -> DeliveryPlot | None:
    """The plot of the steps from `start` on; None if no delivery ended in them."""
    visible = [step for _, step in sorted(steps.items()) if step.delivered or step.dead]
    if not visible:
        return None
    most = max(step.delivered + step.dead for step in visible)
    timed = [step for step in visible if step.p50 is not None]
    scale = LogScale(
        min((step.p50 or 0.0 for step in timed), default=1.0),
        max((step.worst or 0.0 for step in timed), default=1.0),
        TIME_HEIGHT,
        MIN_SECONDS,
    )

    def path(values: Iterable[tuple[float, float | None]]) -> str:
        return _build_path([(x, scale.compute_y(value)) for x, value in values if value is not None])

    def find_x(step: DeliveryTimes) -> float:
        return round((step.start - start) / STEP_SECONDS * _STEP_WIDTH, 2)

    return DeliveryPlot(
        delivered=[_build_bar(find_x(step), 0, step.delivered, most) for step in visible if step.delivered],
        dead=[_build_bar(find_x(step), step.delivered, step.dead, most) for step in visible if step.dead],
        max_count=most,
        p50=path((find_x(step), step.p50) for step in timed),
        p95=path((find_x(step), step.p95) for step in timed),
        worst=path((find_x(step), step.worst) for step in timed),
        ticks=scale.ticks if timed else (),
        steps=list(reversed(visible)),
        delivered_total=sum(step.delivered for step in visible),
        dead_total=sum(step.dead for step in visible),
        worst_seconds=max((step.worst for step in timed if step.worst is not None), default=None),
    )


def _build_bar(x: float, below: int, count: int, most: int) -> Bar:
    """One of a count that stands on another; a few are never too low to be seen."""
    height = max(COUNT_HEIGHT * count / most, 1.5)
    top = max(COUNT_HEIGHT - COUNT_HEIGHT * below / most - height, 0.0)
    return Bar(x, round(top, 2), round(_STEP_WIDTH - _GAP, 2), round(height, 2))


def _build_path(levels: Sequence[tuple[float, float]]) -> str:
    """A level for each step, joined where the next one follows at once."""
    parts: list[str] = []
    previous: float | None = None
    for x, y in levels:
        joined = previous is not None and abs(x - previous - _STEP_WIDTH) < 0.01
        parts.append(f"{'L' if joined else 'M'}{x:g} {y:.1f}h{_STEP_WIDTH:g}")
        previous = x
    return "".join(parts)


_MAX_TIMES_AGE: Final = 5.0
_SETTLE_SECONDS: Final = 60.0
"""After which nothing is added to a step: a transaction with an earlier time has ended by then."""


class RecentTimes:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._steps: Mapping[float, DeliveryTimes] = {}
        self._settled_until = 0.0
        """The start of the first step that is read again."""
        self._shared = SharedRead(self._read, _MAX_TIMES_AGE)

    async def get(self) -> tuple[Mapping[float, DeliveryTimes], float]:
        """The steps by their start, and the start of the first. Raises StoreUnavailableError."""
        return await self._shared.get()

    async def _read(self) -> tuple[Mapping[float, DeliveryTimes], float]:
        settled_until = self._settled_until

        def read(connection: Connection) -> tuple[float, dict[float, DeliveryTimes]]:
            now = read_clock(connection, self._store.clock)
            return now, read_delivery_times(connection, max(find_start(now), settled_until), STEP_SECONDS)

        now, found = await self._store.read(read)
        start = find_start(now)
        earlier = {at: step for at, step in self._steps.items() if start <= at < settled_until}
        self._steps = {**earlier, **found}
        self._settled_until = math.floor((now - _SETTLE_SECONDS) / STEP_SECONDS) * float(STEP_SECONDS)
        return self._steps, start


MAX_INCIDENTS: Final = 8
_MAX_AGE: Final = 1.0
"""Seconds for which one read serves all viewers."""
_CALM: Final = (HealthStatus.HEALTHY, HealthStatus.UNKNOWN)
_NOT_URGENT: Final = (Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, slots=True)
class ChannelCard:
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
    def __init__(self, store: Store, settings: RelaySettings, path: PathWatch, changes: ChangeStream) -> None:
        self._path = path
        self._changes = changes
        self._channels = {channel.name: channel for channel in list_configured_channels(settings)}
        read = partial(
            read_overview,
            clock=store.clock,
            channels=list(settings.channels),
            max_incidents=MAX_INCIDENTS,
            proof_every=settings.proof.every,
        )
        self._overview = SharedRead(partial(store.read, read), _MAX_AGE)
        self._times = RecentTimes(store)
        self._last = EMPTY_OVERVIEW
        """What was read last, which is shown as old while the outbox cannot be read."""
        self._clock = store.clock

    def add_routes(self, console: Console) -> None:
        console.page("/", self._show, "now.html.j2", title="Now", shared_fragment="now_state")

    async def _show(self, request: Request) -> View:
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
        return View(values, status)

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
