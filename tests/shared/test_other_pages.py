"""Who sends a request that changes something: a program, our own page, or somebody else's."""

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from shared.auth import USER
from shared.other_pages import not_by_another_name, not_for_other_pages


async def change(_request: Request) -> Response:
    return PlainTextResponse("changed")


async def status(*, open_to_this_machine: bool, **headers: str) -> int:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/", "query_string": b"", "headers": raw}
    answer = await not_for_other_pages(change, open_to_this_machine=open_to_this_machine)(Request(scope))
    return answer.status_code


@pytest.mark.parametrize("host", ["127.0.0.1:9912", "localhost:9912", "[::1]:9912", "localhost"])
async def test_a_program_on_this_machine_may(host: str) -> None:
    assert await status(open_to_this_machine=True, host=host) == 200


@pytest.mark.parametrize("host", ["relay.example.org", "127.0.0.1.example.org:9912", "[::1", ""])
async def test_without_credentials_a_name_that_somebody_pointed_here_may_not(host: str) -> None:
    assert await status(open_to_this_machine=True, host=host) == 403
    assert await status(open_to_this_machine=False, host=host) == 200


async def test_a_page_of_our_own_may_and_another_may_not() -> None:
    host = "127.0.0.1:9912"
    for headers, code in (
        ({"origin": f"http://{host}", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://127.0.0.1:9913"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
    ):
        for open_to_this_machine in (True, False):
            assert await status(open_to_this_machine=open_to_this_machine, host=host, **headers) == code


@pytest.mark.parametrize(
    ("host", "open_to_this_machine", "code"),
    [
        ("127.0.0.1:9912", True, 200),
        ("localhost", True, 200),
        ("relay.example.org", True, 403),
        ("relay.example.org", False, 200),
    ],
)
async def test_without_credentials_nothing_is_shown_by_a_name_that_somebody_pointed_here(
    host: str, open_to_this_machine: bool, code: int
) -> None:
    answer = not_by_another_name(change, open_to_this_machine=open_to_this_machine)
    scope = {"type": "http", "scheme": "http", "path": "/", "headers": [(b"host", host.encode())]}
    assert (await answer(Request(scope))).status_code == code
    assert (await answer(Request(scope | {"scheme": "https"}))).status_code == 200
    assert (await answer(Request(scope | {USER: "operator"}))).status_code == 200
