"""What a browser gets, and what it is told not to do with it."""

from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import aiohttp
import aiosmtplib
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins

DOCUMENT = """# Runbooks & more

## KMSCryptoModeNotKMS
<script>alert(1)</script> [click](javascript:alert(1)) [fine](https://example.org)

### Diagnosis
### Diagnosis
## `kms_probe` fails: why?

| a | b |
|---|---|
| 1 | 2 |
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    docs = tmp_path / "docs"
    (docs / "adr").mkdir(parents=True)
    (docs / "KMS_OPERATIONS.md").write_text(DOCUMENT)
    (docs / "adr" / "0001.md").write_text("no title")
    (docs / "secret.txt").write_text("secret")
    (tmp_path / "outside.md").write_text("secret")
    (docs / "link.md").symlink_to(tmp_path / "outside.md")
    async with (
        run_stand_ins(docs=docs) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as session,
    ):
        yield session


async def test_the_page_lets_in_nothing_but_its_own_files(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


async def test_a_mail_is_shown_in_a_sandbox_without_scripts(stand_ins: StandIns, http: aiohttp.ClientSession) -> None:
    mail = EmailMessage()
    mail["From"], mail["Message-ID"] = "alerts@example.org", "<1@example.org>"
    mail.set_content("text")
    mail.add_alternative("<head></head><b>ledger</b>", subtype="html")
    await aiosmtplib.send(
        mail, hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False, recipients=["a@example.org"]
    )
    async with http.get("/mail/1") as answer:
        assert (await answer.text()).strip() == '<head><base target="_blank"></head><b>ledger</b>'
        policy = answer.headers["Content-Security-Policy"]
    assert policy.endswith("sandbox allow-popups allow-popups-to-escape-sandbox")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


async def test_a_document_is_rendered_with_githubs_anchors_and_without_its_html(site: aiohttp.ClientSession) -> None:
    async with site.get("/docs/KMS_OPERATIONS.md") as answer:
        page = await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<title>Runbooks &amp; more</title>" in page
    for anchor in ("runbooks--more", "kmscryptomodenotkms", "diagnosis", "diagnosis-1", "kms_probe-fails-why"):
        assert f' id="{anchor}"' in page
    assert "<script>alert" not in page
    assert 'href="javascript' not in page
    assert '<a href="https://example.org">fine</a>' in page
    assert "<td>1</td>" in page


@pytest.mark.parametrize("name", ["secret.txt", "..%2Foutside.md", "link.md", "none.md", "adr", "%00.md"])
async def test_nothing_but_the_documents_of_the_folder_is_served(site: aiohttp.ClientSession, name: str) -> None:
    async with site.get(f"/docs/{name}") as answer:
        assert answer.status == 404
        assert "secret" not in await answer.text()
