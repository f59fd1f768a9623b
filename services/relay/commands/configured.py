"""`--config` after a command, where many people type it; before it, it is the relay's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def add_config_option(command: Command) -> Command:
    """Hands the configuration's file to a command as its first argument."""
    option = click.option(
        "--config",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_replace_config,
        help="The relay's YAML file; it may stand before the command, too.",
    )
    return option(click.pass_obj(command))


def _replace_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.obj = path
