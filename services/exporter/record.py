"""Where everything that was found goes: to Prometheus, to the board and to the log. Nobody else knows all three."""

from collections.abc import Sequence

from services.exporter.canary import CanaryFiles
from services.exporter.changes import ChangeLog
from services.exporter.config import Settings, Target
from services.exporter.history import History
from services.exporter.metrics import ExporterMetrics
from services.exporter.model import BackendState, KeyInspection, ProbeResult


class Results:
    """What is known of all that is watched; it outlives a reload."""

    def __init__(self) -> None:
        self.metrics = ExporterMetrics([], [])
        self.history = History()
        self.canary_files = CanaryFiles()
        self._change_log = ChangeLog()
        self._key_names: dict[tuple[str, str], str] = {}

    def configure(self, settings: Settings) -> None:
        """From now on this is watched: what is gone is forgotten, what is new is unknown, the rest goes on.

        A target that has another key than before is a new one.
        """
        keys = {(target.service, target.name): target.key for target in settings.targets}
        services = [backend.service for backend in settings.backends]
        self.canary_files.configure({(name, key) for (_, name), key in keys.items()})
        for targets in ([both for both, key in keys.items() if self._key_names.get(both) == key], list(keys)):
            self.metrics.configure(targets, services)
            self.history.configure(targets, services)
            self._change_log.configure(targets, services)
        self._key_names = keys

    def get_last_times(self, target: Target) -> tuple[float, float]:
        """When its key was probed last, and when it was looked at; unix seconds, 0 where it never was."""
        known = self.history.targets.get(target.name)
        if known is None or self._key_names.get((target.service, target.name)) != target.key:
            return 0.0, 0.0
        return known.last_result.ended_at if known.last_result else 0.0, known.inspection.inspected_at if known.inspection else 0.0

    def add_probe(self, result: ProbeResult) -> None:
        """A round trip."""
        self.metrics.add_probe(result)
        self.history.add_probe(result)
        self._change_log.log_probe(result)

    def expire_success(self, service: str, target: str) -> None:
        """The last round trip is too long ago to be a success. The board sees that by itself."""
        if self.metrics.expire_success(service, target):
            self._change_log.log_expired_success(service, target)

    def add_inspection(self, inspection: KeyInspection) -> None:
        """A look at a key."""
        self.metrics.add_inspection(inspection)
        self.history.add_inspection(inspection)
        self._change_log.log_inspection(inspection)

    def add_backend_states(self, states: Sequence[BackendState]) -> None:
        """The backend of one service, by all its replicas; one that is not among them is gone."""
        service, replicas = states[0].service, {state.replica for state in states}
        self.metrics.set_backend_states(*states)
        for known, replica in list(self.history.backends):
            if known == service and replica not in replicas:
                self.history.remove_replica(service, replica)
        for state in states:
            self.history.add_backend_state(state)
        self._change_log.log_backend(states)
