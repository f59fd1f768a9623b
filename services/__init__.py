"""The services; they never import one another."""

import shared  # noqa: F401  # before anything imports structlog, see there
