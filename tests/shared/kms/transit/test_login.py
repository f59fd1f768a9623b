"""Tokens of a real OpenBao: read from a file, got by a login, renewed, and never asked for again and again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason
from shared.kms.transit.auth import Auth
from shared.kms.transit.client import TransitKey
from shared.kms.transit.errors import Answer
from shared.kms.transit.login import FIRST_PAUSE, LONGER_PAUSE, Login
from shared.kms.transit.settings import TransitKeySettings
from tests.bao import BaoError, Transit

TIMEOUT = 5.0


class Access:
    """A key and its login, whose clock the test moves."""

    def __init__(self, mounted: Transit, auth: dict[str, Any], folder: Path) -> None:
        settings = {**mounted.build_settings(folder, token="unused"), "auth": auth}
        self.now = 1_000_000.0
        self.server = mounted.bao
        self.login = Login(Auth.model_validate(auth), lambda: self.now)
        self.key = TransitKey(TransitKeySettings.model_validate(settings), login=self.login)

    async def use(self) -> Cause:
        """Encrypts; the cause of a failure, or none."""
        try:
            await self.key.encrypt(b"", b"", timeout=TIMEOUT)
        except KmsError as error:
            return error.cause
        return Cause.NONE

    async def revoke(self) -> None:
        """Its token, at the server; it does not learn of that."""
        self.server.call("POST", "auth/token/revoke", {"token": await self.login.get_token(self.key._send)})

    @property
    def lasts(self) -> float | None:
        """Seconds until the token ends."""
        return self.login.validity and self.login.validity.ends_at - self.now


Open = Callable[[dict[str, Any]], Access]


@pytest.fixture
async def access(mounted: Transit, tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def build(auth: dict[str, Any]) -> Access:
            opened = Access(mounted, auth, tmp_path)
            stack.push_async_callback(opened.key.close)
            return opened

        yield build


def write(file: Path, text: str) -> str:
    file.touch(mode=0o600)
    file.write_text(text)
    return str(file)


class Role:
    """An AppRole, and the files with which keypulse logs in."""

    def __init__(self, mounted: Transit, folder: Path, **options: Any) -> None:
        self._bao, self._name, self._folder = mounted.bao, f"role-{mounted.name}", folder
        with suppress(BaoError):  # another test was faster
            self._bao.call("POST", "sys/auth/approle", {"type": "approle"})
        role = {"token_policies": mounted.set_policy(), "token_ttl": "1h", **options}
        self._bao.call("POST", f"auth/approle/role/{self._name}", role)
        role_id = self._bao.call("GET", f"auth/approle/role/{self._name}/role-id")["data"]["role_id"]
        self.auth = {
            "approle": {"role_id_file": write(folder / "role", role_id), "secret_id_file": str(folder / "secret")}
        }

    def write_secret(self, secret: str | None = None) -> None:
        """A wrong one, or a new one that is right."""
        found = secret or self._bao.call("POST", f"auth/approle/role/{self._name}/secret-id", {})["data"]["secret_id"]
        write(self._folder / "secret", found)


async def test_a_refused_login_is_not_repeated_until_its_files_change(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    role = Role(mounted, tmp_path)
    key = access(role.auth)
    assert await key.use() is Cause.CREDENTIALS_INVALID  # there is no file yet
    role.write_secret("wrong")
    for pause in (0.0, FIRST_PAUSE - 1, 1.0, LONGER_PAUSE - 1):
        key.now += pause
        for _ in range(10):
            assert await key.use() is Cause.LOGIN_REFUSED
    role.write_secret()
    # After five refusals, the server would refuse the right one, too.
    assert await key.use() is Cause.NONE


async def test_a_login_is_refused_for_everybody_after_five_so_the_test_above_can_fail(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    role = Role(mounted, tmp_path)
    for _ in range(5):
        role.write_secret("wrong")
        assert await access(role.auth).use() is Cause.LOGIN_REFUSED
    role.write_secret()
    assert await access(role.auth).use() is Cause.LOGIN_REFUSED


@pytest.mark.parametrize("options", [{}, {"token_type": "batch"}])
async def test_a_token_of_a_login_is_renewed_or_replaced_after_half_of_its_life(
    mounted: Transit, tmp_path: Path, access: Open, options: dict[str, Any]
) -> None:
    role = Role(mounted, tmp_path, **options)
    role.write_secret()
    key = access(role.auth)
    assert await key.use() is Cause.NONE
    first = await key.login.get_token(key.key._send)
    assert key.lasts == pytest.approx(3600, abs=60)
    for pause, is_same in ((1799, True), (2, not options)):
        key.now += pause
        assert await key.use() is Cause.NONE
        assert (await key.login.get_token(key.key._send) == first) is is_same
    assert key.lasts == pytest.approx(3600, abs=60)


async def test_a_token_whose_policies_allow_no_renewal_is_replaced_by_a_login(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    role = Role(mounted, tmp_path, token_no_default_policy=True)
    role.write_secret()
    key = access(role.auth)
    assert await key.use() is Cause.NONE
    first = await key.login.get_token(key.key._send)
    for _ in range(3):
        key.now += 1801
        assert await key.use() is Cause.NONE
        assert key.lasts == pytest.approx(3600, abs=60)
    assert await key.login.get_token(key.key._send) != first


@pytest.mark.parametrize(
    ("renewals", "requests"), [(403, ["login", "renew-self", "login"]), (200, ["login", "renew-self"])]
)
async def test_a_token_that_ended_while_the_server_was_away_is_replaced_where_the_server_does_not_renew_it(
    tmp_path: Path, renewals: int, requests: list[str]
) -> None:
    """It renews one that has ended by a wrong clock of this machine alone."""
    now, is_away, made = 0.0, False, list[str]()

    async def send(_method: str, path: str, _body: Any, _token: str | None) -> Answer:
        if is_away:
            raise KmsError(Reason.UNAVAILABLE, "nobody answers")
        made.append(path.rpartition("/")[2])
        if made[-1] != "login" and renewals == 403:
            return Answer(403, b'{"errors": ["permission denied", "invalid token"]}')
        auth = {"client_token": f"token-{made.count('login')}", "lease_duration": 100, "renewable": True}
        return Answer(200, json.dumps({"auth": auth}).encode())

    files = {name: write(tmp_path / name, name) for name in ("role_id_file", "secret_id_file")}
    login = Login(Auth.model_validate({"approle": files}), lambda: now)
    assert await login.get_token(send) == "token-1"
    now, is_away = 200.0, True
    with pytest.raises(KmsError, match="nobody answers"):
        await login.get_token(send)
    is_away = False
    assert await login.get_token(send) == f"token-{requests.count('login')}"
    assert made == requests


async def test_a_token_that_grows_no_older_is_replaced_and_a_server_that_is_away_does_not_spoil_a_valid_one(
    tmp_path: Path,
) -> None:
    """The server's own clock is not the test's: it answers what a real one does at a token's greatest age."""
    now, answers = 0.0, [("first", 100), ("first", 50), ("second", 100)]
    requests: list[str] = []

    async def send(_method: str, path: str, _body: Any, _token: str | None) -> Answer:
        requests.append(path.rpartition("/")[2])
        if not answers:
            raise KmsError(Reason.UNAVAILABLE, "nobody answers")
        token, lease = answers.pop(0)
        auth = {"client_token": token, "lease_duration": lease, "renewable": True}
        return Answer(200, json.dumps({"auth": auth}).encode())

    files = {name: write(tmp_path / name, name) for name in ("role_id_file", "secret_id_file")}
    login = Login(Auth.model_validate({"approle": files}), lambda: now)
    assert await login.get_token(send) == "first"
    now = 50.0
    assert await login.get_token(send) == "second"
    assert requests == ["login", "renew-self", "login"]
    for at, count in ((100.0, 4), (129.0, 4), (130.0, 5)):
        now = at
        assert await login.get_token(send) == "second"
        assert len(requests) == count
    now = 160.0
    with pytest.raises(KmsError, match="nobody answers"):
        await login.get_token(send)


@pytest.mark.parametrize(("renew", "path"), [(True, "auth/token/renew-self"), (False, "auth/token/lookup-self")])
async def test_a_token_of_a_file_is_renewed_and_where_the_settings_say_else_its_end_is_looked_up(
    mounted: Transit, tmp_path: Path, access: Open, renew: bool, path: str
) -> None:
    file = write(tmp_path / "token", mounted.create_token())
    key, requests = access({"token_file": file, "renew": renew}), list[str]()
    send = key.key._send

    async def note(method: str, path: str, body: Any, token: str | None) -> Answer:
        requests.append(path)
        return await send(method, path, body, token)

    assert key.login.validity is None
    await key.login.get_token(note)
    for _ in range(2):
        key.now += 1900
        await key.login.get_token(note)
        assert key.lasts == pytest.approx(3600, abs=60)
    assert requests == ["auth/token/lookup-self", path, path]


async def test_a_token_of_a_file_that_another_program_renews_is_used_as_long_as_the_server_takes_it(
    tmp_path: Path,
) -> None:
    """Its policies allow no renewal. The other program renews it once, and at last nobody knows its end."""
    now, lookups = 0.0, [(100, 100), (50, 100), (100, 100), None, None]
    requests: list[str] = []

    async def send(_method: str, path: str, _body: Any, _token: str | None) -> Answer:
        requests.append(path.rpartition("/")[2])
        found = None if requests[-1] == "renew-self" else lookups.pop(0)
        if found is None:
            return Answer(403, b'{"errors": ["permission denied"]}')
        return Answer(
            200, json.dumps({"data": {"ttl": found[0], "creation_ttl": found[1], "renewable": True}}).encode()
        )

    login = Login(Auth.model_validate({"token_file": write(tmp_path / "token", "s.token")}), lambda: now)
    asked = []
    for at in (0.0, 50.0, 79.0, 80.0, 130.0, 180.0):
        now, requests[:] = at, []
        assert await login.get_token(send) == "s.token"
        asked.append((at, [*requests], login.validity and login.validity.ends_at))
    both = ["renew-self", "lookup-self"]
    assert asked == [
        (0.0, ["lookup-self"], 100.0),
        (50.0, both, 100.0),
        (79.0, [], 100.0),
        (80.0, both, 180.0),
        (130.0, both, 180.0),
        (180.0, both, 180.0),
    ]


async def test_a_token_that_no_header_can_have_is_told_and_not_sent(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    key = access({"token_file": write(tmp_path / "token", "s.one\x00two")})
    assert await key.use() is Cause.CREDENTIALS_INVALID


async def test_a_token_whose_policies_hide_its_end_or_that_has_none_is_used_without(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    for number, token in enumerate((mounted.create_token(no_default_policy=True), mounted.bao.token)):
        key = access({"token_file": write(tmp_path / str(number), token)})
        assert await key.use() is Cause.NONE
        assert key.login.validity is None


async def test_a_revoked_token_is_replaced_by_a_login_in_the_same_call_but_not_again_at_once(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    role = Role(mounted, tmp_path)
    role.write_secret()
    key = access(role.auth)
    for pause, cause in ((60.0, Cause.NONE), (1.0, Cause.TOKEN_EXPIRED), (60.0, Cause.NONE)):
        assert await key.use() in {Cause.NONE, Cause.TOKEN_EXPIRED}
        await key.revoke()
        key.now += pause
        assert await key.use() is cause


async def test_a_revoked_token_is_replaced_although_the_clock_was_ahead_at_its_login(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    role = Role(mounted, tmp_path)
    role.write_secret()
    key = access(role.auth)
    assert await key.use() is Cause.NONE
    await key.revoke()
    key.now -= 7200
    assert await key.use() is Cause.NONE


async def test_many_calls_share_one_login(mounted: Transit, tmp_path: Path, access: Open) -> None:
    role = Role(mounted, tmp_path, secret_id_num_uses=1)
    role.write_secret()
    key = access(role.auth)
    assert await asyncio.gather(*(key.use() for _ in range(20))) == [Cause.NONE] * 20


async def test_a_pod_logs_in_by_its_token(mounted: Transit, tmp_path: Path, access: Open) -> None:
    """A mount of the kind `jwt` takes the same request as one of the kind `kubernetes`, which needs a cluster."""
    signer = ECKey.generate_key("P-256")
    mount, role = f"pods-{mounted.name}", {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["bao"]}
    mounted.bao.call("POST", f"sys/auth/{mount}", {"type": "jwt"})
    mounted.bao.call(
        "POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [signer.as_pem(private=False).decode()]}
    )
    mounted.bao.call("POST", f"auth/{mount}/role/keypulse", {**role, "token_policies": [mounted.set_policy()]})
    claims = {"sub": "exporter", "aud": "bao", "exp": int(time.time()) + 600, "iat": int(time.time())}
    file = write(tmp_path / "jwt", jwt.encode({"alg": "ES256"}, claims, signer))
    assert await access({"kubernetes": {"role": "keypulse", "jwt_file": file, "mount": mount}}).use() is Cause.NONE
    wrong = access({"kubernetes": {"role": "another", "jwt_file": file, "mount": mount}})
    assert await wrong.use() is Cause.LOGIN_REFUSED


def test_keys_with_one_access_share_its_token_whose_end_is_a_metric(mounted: Transit, tmp_path: Path) -> None:
    settings = mounted.build_settings(tmp_path)
    one, other = (TransitKeySettings.model_validate({**settings, "key": key}) for key in ("ledger", "payments"))
    assert one.connect()._login is other.connect()._login  # type: ignore[attr-defined]
    assert set(one.list_credentials()) == {"Transit token"}


async def test_a_token_that_may_only_decrypt_tries_once_to_read_the_key_for_its_type(
    mounted: Transit, tmp_path: Path, access: Open
) -> None:
    found = mounted.change("encrypt/ledger", plaintext="", associated_data="")["data"]["ciphertext"].encode()
    token = mounted.bao.create_token(mounted.set_policy(keys=["deny"], encrypt=["deny"]))
    key, requests = access({"token_file": write(tmp_path / "token", token)}).key, list[str]()
    send = key._send

    async def count(method: str, path: str, body: Any, token: str | None) -> Answer:
        requests.append(path.removeprefix(f"{mounted.name}/"))
        return await send(method, path, body, token)

    key._send = count  # type: ignore[method-assign]
    for _ in range(3):
        await key.decrypt(found, b"", timeout=TIMEOUT)
    assert requests == ["auth/token/lookup-self", "keys/ledger", *["decrypt/ledger"] * 3]
