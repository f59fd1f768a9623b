"""Where everything that was found goes: to Prometheus, to the board and to the log. Nobody else knows all three."""

from collections.abc import Sequence

from services.exporter.canary import CanaryFiles
from services.exporter.changes import Changes
from services.exporter.config import Settings, Target
from services.exporter.history import History
from services.exporter.metrics import ExporterMetrics
from services.exporter.model import BackendState, KeySnapshot, ProbeResult


class Record:
    """What is known of all that is watched; it outlives a reload."""

    def __init__(self) -> None:
        self.metrics = ExporterMetrics([], [])
        self.history = History()
        self.canaries = CanaryFiles()
        self._changes = Changes()
        self._keys: dict[tuple[str, str], str] = {}

    def watch(self, settings: Settings) -> None:
        """From now on this is watched: what is gone is forgotten, what is new is unknown, the rest goes on.

        A target that has another key than before is a new one.
        """
        keys = {(target.service, target.name): target.key for target in settings.targets}
        services = [backend.service for backend in settings.backends]
        self.canaries.keep({(name, key) for (_, name), key in keys.items()})
        for targets in ([both for both, key in keys.items() if self._keys.get(both) == key], list(keys)):
            self.metrics.watch(targets, services)
            self.history.keep(targets, services)
            self._changes.watch(targets, services)
        self._keys = keys

    def last(self, target: Target) -> tuple[float, float]:
        """When its key was probed last, and when it was looked at; unix seconds, 0 where it never was."""
        known = self.history.targets.get(target.name)
        if known is None or self._keys.get((target.service, target.name)) != target.key:
            return 0.0, 0.0
        return known.last.at if known.last else 0.0, known.snapshot.at if known.snapshot else 0.0

    def probe(self, result: ProbeResult) -> None:
        """A round trip."""
        self.metrics.observe(result)
        self.history.probe(result)
        self._changes.probe(result)

    def overdue(self, service: str, target: str) -> None:
        """The last round trip is too long ago to be a success. The board sees that by itself."""
        if self.metrics.overdue(service, target):
            self._changes.overdue(service, target)

    def lifecycle(self, snapshot: KeySnapshot) -> None:
        """A look at a key."""
        self.metrics.lifecycle(snapshot)
        self.history.lifecycle(snapshot)
        self._changes.lifecycle(snapshot)

    def backend(self, states: Sequence[BackendState]) -> None:
        """The backend of one service, by all its replicas; one that is not among them is gone."""
        service, replicas = states[0].service, {state.replica for state in states}
        self.metrics.show(*states)
        for known, replica in list(self.history.backends):
            if known == service and replica not in replicas:
                self.history.forget(service, replica)
        for state in states:
            self.history.backend(state)
        self._changes.backend(states)
