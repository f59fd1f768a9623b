"""Alertmanager's webhook, version 4 → Event. The wire's shapes stop here; fields that we do not know are ignored.

The fields: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config. Grafana sends a superset.
"""

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field, NonNegativeInt, ValidationError

from services.relay.model import Alert, Event, Status


class MalformedError(Exception):
    """Not such a webhook; the message says where and what was expected, and repeats nothing of its content."""


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time before the year 1 or after 9999") from None


def _text(value: object) -> object:
    if not isinstance(value, str):  # pydantic would take a number for unix seconds, and a page would say 1970
        raise ValueError("a time as RFC 3339 text")  # noqa: TRY004 - pydantic reports ValueError
    return value


# Without `fail_fast`, a body of 4 MB that holds nothing but mistakes would become gigabytes of errors.
Labels = Annotated[
    dict[str, str],
    Field(fail_fast=True),
    BeforeValidator(lambda value: {} if value is None else value),  # Go's nil map: null
]
Moment = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_to_utc)]


class _Alert(BaseModel):
    status: Status
    labels: Labels
    annotations: Labels = {}
    starts_at: Moment = Field(alias="startsAt")
    ends_at: Moment | None = Field(None, alias="endsAt")
    generator_url: str = Field("", alias="generatorURL")
    fingerprint: str = Field(min_length=1)

    def told(self) -> Alert:
        return Alert(
            status=self.status,
            labels=self.labels,
            annotations=self.annotations,
            starts_at=self.starts_at,
            ends_at=self.ends_at if self.status is Status.RESOLVED else None,  # a firing alert's is zeroed: year 1
            generator_url=self.generator_url,
            fingerprint=self.fingerprint,
        )


class _Webhook(BaseModel):
    version: Literal["4"]
    receiver: str = Field(min_length=1)
    group_key: str = Field(alias="groupKey", min_length=1)
    status: Status
    alerts: list[_Alert] = Field(min_length=1, fail_fast=True)
    group_labels: Labels = Field({}, alias="groupLabels")
    common_labels: Labels = Field({}, alias="commonLabels")
    common_annotations: Labels = Field({}, alias="commonAnnotations")
    external_url: str = Field("", alias="externalURL")
    truncated_alerts: NonNegativeInt = Field(0, alias="truncatedAlerts")


_FIELDS: Final = {field.alias or name for model in (_Webhook, _Alert) for name, field in model.model_fields.items()}


def read(body: bytes, source: str) -> Event:
    """A webhook's body → its event.

    Args:
        body: JSON in UTF-8.
        source: which of several independent Alertmanagers sent it.

    Raises:
        MalformedError: it is not one.
    """
    try:
        webhook = _Webhook.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # The key of a label is the sender's own text.
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _FIELDS) or "the body"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise MalformedError(f"{place}: {first['msg']}{more}") from None
    return Event(
        source=source,
        receiver=webhook.receiver,
        group_key=webhook.group_key,
        status=webhook.status,
        alerts=tuple(alert.told() for alert in webhook.alerts),
        group_labels=webhook.group_labels,
        common_labels=webhook.common_labels,
        common_annotations=webhook.common_annotations,
        external_url=webhook.external_url,
        truncated_alerts=webhook.truncated_alerts,
    )
