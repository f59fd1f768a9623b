"""`python -m tests.browser.mail_pictures` makes those of docs/images anew: mails, as a mail program shows them.

With a folder as its argument it writes each scene there, wide and for a phone, light and dark.
"""

import asyncio
import email.policy
import math
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from email.headerregistry import Address
from pathlib import Path
from typing import Final, Literal
from zoneinfo import ZoneInfo

from playwright.async_api import Browser, Page, ViewportSize

from services.relay.channels.email.mail import build_mail
from services.relay.delivery.charts import ChartLine, ChartSpec, ChartThreshold
from services.relay.model import IncidentContext, Message, RelatedIncident, Status
from services.relay.preview.render import render_page
from tests.browser.conftest import run_chromium
from tests.browser.lasting_page import lasting_page
from tests.browser.slack_scenes import AT, EXCERPT, REFUSED, TITLE, build_refused
from tests.relay.channels.examples import (
    FIX_ANNOTATIONS,
    INCIDENT,
    NASTY,
    annotated,
    change,
    critical,
    detailed,
    message,
    with_text,
)

IMAGES: Final = Path(__file__).parents[2] / "docs/images"
COMMITTED: Final = ("firing", "resolved", "twenty", *REFUSED)
SIZES: Final = {"wide": ViewportSize(width=900, height=600), "phone": ViewportSize(width=360, height=600)}
_SENDER: Final = Address("keypulse", "alerts", "example.org")
_END: Final = AT + timedelta(minutes=12)


def list_scenes() -> Mapping[str, Message]:
    """A mail with everything in it, its end, a long group, and one that means no good."""
    related = (RelatedIncident("1", "KMSRotationOverdue · production / backend", AT - timedelta(hours=3)),)
    context = IncidentContext(
        started_at=AT,
        episodes_in_7_days=3,
        related=related,
        related_count=1,
        previous_at=AT + timedelta(minutes=2),
        previous_alerts={"another": Status.FIRING},
        acknowledged_by="alice",
        acknowledged_at=AT + timedelta(minutes=4),
    )
    described = "9 of the last 10 probes failed. New records cannot be written once the cached data key expires."
    firing = annotated(
        message(accepted_at=_END, context=context, contacts={"service owner": "#ledger-team"}, incident_url=INCIDENT),
        title=TITLE,
        summary="KMS refuses to encrypt with ledger-kek",
        description=described,
        **FIX_ANNOTATIONS,
    )
    (alert,) = firing.event.alerts
    over = replace(firing.event, status=Status.RESOLVED, alerts=(replace(alert, status=Status.RESOLVED, ends_at=_END),))
    berlin = ZoneInfo("Europe/Berlin")
    values = {alert.fingerprint: "0.9 (fires if > 0.1)"}
    open_yet = change(
        firing,
        context=context._replace(acknowledged_by="", acknowledged_at=None),
        acknowledge_url="https://relay.example.org/acknowledge/incident?episode=1&signature=x",
    )
    return {
        "firing": replace(open_yet, chart=_draw(), excerpt=EXCERPT, zone=berlin, current_values=values),
        "resolved": replace(firing, event=over, zone=berlin),
        "twenty": _build_long_group(),
        "hostile": critical(detailed(change(with_text(NASTY[3]), remark=NASTY[3]), NASTY[3])),
        **{cause: build_refused(cause) for cause in REFUSED},
    }


def _draw() -> bytes:
    """The share of failed probes, as the relay would draw it."""
    end = _END.timestamp()
    times = [end - 3600 + 30 * n for n in range(121)]
    values = [0.9 / (1 + math.exp((AT.timestamp() - time - 60) / 40)) for time in times]
    line = ChartLine("", list(zip(times, values, strict=True)))
    threshold = ChartThreshold("fires if > 0.1", [(times[0], 0.1), (end, 0.1)])
    from services.relay.delivery.drawing import draw_chart  # takes long, and few need it

    return draw_chart(
        ChartSpec(
            title=TITLE,
            zone="Europe/Berlin",
            start=times[0],
            end=end,
            lines=[line],
            more_lines=0,
            thresholds=[threshold],
            firing_from=AT.timestamp(),
            firing_to=None,
        )
    )


def _build_long_group() -> Message:
    base = message("05-firing-3")
    first = base.event.alerts[0]
    alerts = tuple(
        replace(
            first,
            fingerprint=f"{n}",
            labels={**first.labels, "instance": f"backend-{n}:8000", "zone": f"europe-west{n % 3 + 1}-b"},
            annotations={**first.annotations, "title": "backend (production) cannot decrypt some records"},
            starts_at=AT + timedelta(seconds=37 * n),
            status=Status.RESOLVED if n > 16 else Status.FIRING,
            ends_at=_END if n > 16 else None,
        )
        for n in range(20)
    )
    event = replace(base.event, alerts=alerts, truncated_alerts=7)
    return replace(base, event=event, links=base.links[:1] * 20)


@asynccontextmanager
async def open_mail(
    browser: Browser, of: Message, size: str, scheme: Literal["light", "dark"] = "light"
) -> AsyncIterator[Page]:
    """The HTML part of the mail that is sent."""
    sent = build_mail(of, _SENDER, ["oncall@example.org"]).as_bytes(policy=email.policy.SMTP).decode("ascii")
    async with lasting_page(browser, [], [], **SIZES[size], scheme=scheme) as page:
        await page.set_content(render_page("email", sent))
        yield page


async def take(folder: Path, *, every: bool) -> None:
    """Writes mail-SCENE.png as a light, wide window shows it; or each of `every` scene, width and scheme."""
    scenes = list_scenes()
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark") if every else ("light",)
    async with run_chromium() as browser:
        for name in scenes if every else COMMITTED:
            for size in SIZES if every else ("wide",):
                for scheme in schemes:
                    ending = f"-{size}-{scheme}" if every else ""
                    async with open_mail(browser, scenes[name], size, scheme) as page:
                        await page.screenshot(path=folder / f"mail-{name}{ending}.png", full_page=True)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]) if sys.argv[1:] else IMAGES, every=bool(sys.argv[1:])))
