"""Writes every payload on every channel, as it is sent and as a person sees it: `python -m tests.relay.golden.build`.

`CASE/CHANNEL.json` (`.eml`, `.txt`) is the payload, `CASE/CHANNEL.pretty.txt` what `render --format pretty` shows. Read
the difference before you commit it.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from services.relay.model import Message
from services.relay.preview.render import format_pretty
from shared.config.settings import Address
from tests.relay.channels.examples import OWN_KINDS, PAYLOADS, SECRET, detailed, example, message, settings, titled

FOLDER: Final = Path(__file__).parent
CHANNELS: Final = OWN_KINDS
_SUFFIXES: Final = {"email": "eml", "apprise": "txt"}


def list_cases() -> Mapping[str, Message]:
    """Each recorded webhook as the first message of its incident; then one with a cause, and one with everything."""
    recorded = {file.stem: message(file.stem) for file in sorted(PAYLOADS.glob("*.json"))}
    return {
        **recorded,
        "12-cause-firing": titled(message("01-firing-1")),
        "13-cause-resolved": titled(message("03-resolved-1")),
        "14-everything": detailed(message("07-firing-3"), ""),
    }


def build_files(channel: str) -> Iterator[tuple[Path, str]]:
    """The files of one channel with their content."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(SECRET)
        opened = settings(example(channel, secret, Address("127.0.0.1", 9))).connect(5)
        kind = channel.partition("_")[0]
        for name, case in list_cases().items():
            payload = opened.render_payload(case)
            if kind != "apprise":  # whose payload is what a person sees
                yield FOLDER / name / f"{channel}.pretty.txt", format_pretty(kind, payload).rstrip() + "\n"
            yield FOLDER / name / f"{channel}.{_SUFFIXES.get(kind, 'json')}", _format_payload(kind, payload)


def _format_payload(kind: str, payload: str) -> str:
    """JSON indented, so that a difference is readable; anything else as it is, with newlines."""
    if kind in _SUFFIXES:
        return payload.replace("\r\n", "\n").rstrip() + "\n"
    try:
        values = [json.loads(line) for line in payload.splitlines()]
    except ValueError:
        return f"{payload.rstrip()}\n"
    return "".join(json.dumps(value, indent=1, ensure_ascii=False) + "\n" for value in values)


def main() -> None:
    """Write all of them."""
    for channel in CHANNELS:
        for file, content in build_files(channel):
            file.parent.mkdir(exist_ok=True)
            file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
