"""Templates, static files and security headers of web pages.

`templates/macros.html.j2` has the lights and times of every page; `assets/` the colours, the frame and the script that
keeps ages current.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from shared import VERSION
from shared.http.authentication import Endpoint
from shared.web import time_format

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED_ASSETS: Final = Path(__file__).parent / "assets"
_SHARED_TEMPLATES: Final = Path(__file__).parent / "templates"
_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


class StaticFiles:
    """The styles, scripts and pictures of folders, read once. A later folder replaces a name of an earlier one.

    Args:
        folders: read with all below them; a file is served by its own name.
    """

    def __init__(self, *folders: Path) -> None:
        self._files = {
            path.name: _read_file(path)
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.suffix in _MEDIA_TYPES
        }

    async def serve(self, request: Request) -> Response:
        """The file that the path parameter `name` names. A browser asks each time whether it has changed."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("there is no such file\n", status_code=404, headers=SECURITY_HEADERS)
        headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": found.etag}
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)


def _read_file(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def create_templates(folders: Sequence[Path], filters: Mapping[str, Any], values: Mapping[str, Any]) -> "Environment":
    """The templates of folders, with the shared ones. Everything is escaped; a name that is not there is an error.

    Args:
        folders: of the service's own templates.
        filters: of its own, beside those of times.
        values: of its own, in every template.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # 3 MB until a page is shown

    templates = Environment(
        loader=FileSystemLoader([*folders, _SHARED_TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        age=time_format.format_age,
        rough_duration=time_format.format_rough_duration,
        time=time_format.format_utc_time,
        short_time=time_format.format_utc_minute,
        moment=time_format.format_moment,
        step_duration=time_format.format_step_duration,
        rfc3339=time_format.format_rfc3339,
        clock=time_format.format_clock,
        day=time_format.format_day,
        latency=time_format.format_latency,
        scale=time_format.format_scale,
        **filters,
    )
    templates.globals.update(version=VERSION, macros=templates.get_template("macros.html.j2").module, **values)
    return templates


def add_security_headers(page: Endpoint) -> Endpoint:
    """`page`, with the headers that say what a browser may do with it; a header of its own stays."""

    async def answer(request: Request) -> Response:
        response = await page(request)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return answer
