"""Where the links of alerts and webhooks lead: to the graph that is there, and to the alerts that Alertmanager has."""

import aiohttp

from ops.demo.stand_ins.app import run_stand_ins

NOBODY = "http://127.0.0.1:1"


async def test_the_links_of_a_mail_are_followed_from_its_frame_and_read_by_no_other_page() -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    read = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    async with (
        run_stand_ins(prometheus=NOBODY, alertmanager=NOBODY) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as http,
    ):
        for path in ("/graph?g0.expr=1", "/alertmanager/"):
            for headers, status in ((followed, 502), (read, 403)):
                async with http.get(path, headers=headers) as answer:
                    assert answer.status == status, path
