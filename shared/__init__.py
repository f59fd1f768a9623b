"""What two services use, and nothing else."""

from importlib.metadata import version

VERSION = version("keypulse")
