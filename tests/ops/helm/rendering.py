"""What Helm's own engine makes of the chart, as Kubernetes would be given it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from ops.helm import CHART

Object = dict[str, Any]
OWN_RUNBOOK = "https://wiki.ledger.test/kms"
OWN_IMAGES = "registry.ledger.test/keypulse"
_rendered: dict[tuple[str, Path, str], dict[str, str]] = {}
"""What was rendered of our chart: many tests look at the same."""


def rendered(values: dict[str, Any] | None = None, chart: Path = CHART, name: str = "keypulse") -> list[Object]:
    """Every object, NOTES left out. Raises helm.HelmError where the values are refused."""
    return [
        found for file, text in texts(values, chart, name).items() if file.endswith(".yaml") for found in _objects(text)
    ]


def texts(values: dict[str, Any] | None = None, chart: Path = CHART, name: str = "keypulse") -> dict[str, str]:
    """Each template's text by its path. Where the values name no runbook and no images, they are one's own."""
    own = with_own_addresses(values or {})
    return texts_as_they_are(own if chart == CHART else {"keypulse": own}, chart, name)


def with_own_addresses(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with the runbook and the images that production requires."""
    return {"runbookUrl": OWN_RUNBOOK, **values, "image": {"repository": OWN_IMAGES, **values.get("image", {})}}


def texts_as_they_are(values: dict[str, Any] | None, chart: Path = CHART, name: str = "keypulse") -> dict[str, str]:
    """Likewise, with these values and no more."""
    key = (repr(values), chart, name)
    files = _rendered.get(key)
    if files is None:
        with helm.Chart.load(chart) as loaded:
            files = loaded.render(values, name=name, namespace="ops")
    if chart == CHART:  # another one may change
        _rendered[key] = files
    return dict(files)


def render_notes(values: dict[str, Any] | None = None) -> str:
    """What `helm install` says at its end."""
    return texts(values)["keypulse/templates/NOTES.txt"]


def of_kind(kind: str, objects: list[Object]) -> dict[str, Object]:
    """The objects of a kind by name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Each pod, or template of one, with the name of what makes it."""
    for found in objects:
        match found["kind"]:
            case "Pod":
                yield found["metadata"]["name"], found
            case "Deployment":
                yield found["metadata"]["name"], found["spec"]["template"]
            case "CronJob":
                yield found["metadata"]["name"], found["spec"]["jobTemplate"]["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """All of them, those that run first included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _objects(text: str) -> Iterator[Object]:
    yield from filter(None, yaml.load_all(text, yaml.CSafeLoader))  # as safe, and ten times as fast
