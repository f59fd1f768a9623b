"""Takes Alertmanager's webhooks and delivers them, from a durable outbox."""

import sys

if "rich" not in sys.modules:  # structlog would load it, and pygments, to draw traces, which no log here has
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog  # noqa: F401

    del sys.modules["rich"]
