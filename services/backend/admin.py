"""The admin API, `/admin/crypto/…`: each path is one call of the keyring's Administration."""

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request

from services.backend import admin_bodies as bodies
from services.backend.admin_call import Answer, answered, asked, parsed
from services.backend.lost import LostKeys
from services.backend.request import RefusedError
from shared.auth import Access, Token, named
from shared.guard import GuardedRoute, Requires
from shared.keyring.administration import Administration, RotateRequest
from shared.secret_file import TokenFile
from shared.settings import NamedToken, Role

PATH = "/admin/crypto/"


def access_of(file: Path | None, tokens: Sequence[NamedToken]) -> Access:
    """Who may call: by bearer tokens alone, and no user of web.yml, who may be there for `/metrics` alone.

    Args:
        file: the token of an admin.
        tokens: those of others.
    """
    own = [Token("crypto-admin", Role.ADMIN, TokenFile(file))] if file else []
    off = "the admin API is off: it needs admin.token_file in the backend's configuration"
    return Access([*own, *named(tokens)], bearer_only=True, off=off)


def routes(keyring: Administration, lost: LostKeys, access: Access) -> list[GuardedRoute]:
    """The admin API's routes: a viewer reads, an admin does everything.

    Args:
        keyring: what is administered.
        lost: what may be given up of it.
        access: who may call.
    """

    async def keys(request: Request) -> object:
        page = parsed(bodies.Page.model_validate, dict(request.query_params))
        return await keyring.keys(page.after, page.limit)

    async def census(_request: Request) -> object:
        return await keyring.census()

    async def progress(request: Request) -> object:
        rotation_id = parsed(bodies.rotation_id, request.path_params["rotation_id"])
        found = await keyring.progress(None if rotation_id == "latest" else rotation_id)
        if found is None:
            latest = "no rotation was ever made" if rotation_id == "latest" else f"there is no rotation {rotation_id}"
            raise RefusedError(404, latest)
        return found

    async def rotate(request: bodies.DryRun | RotateRequest) -> object:
        if isinstance(request, bodies.DryRun):
            return await keyring.dry_run(request.type, request.target_version)
        return await keyring.rotate(request)

    async def restore(request: bodies.Restore) -> object:
        return {"changed": await keyring.restore(request.rows, request.token)}

    async def lost_keys(_request: Request) -> object:
        return await lost.all()

    async def give_up(request: bodies.GiveUp) -> object:
        return {"given_up": await lost.give_up(request.data_keys, request.records)}

    lease = asked(bodies.of(bodies.TakeLease), lambda it: keyring.lease(it.holder, it.seconds, it.token))
    release = asked(bodies.of(bodies.Release), lambda it: keyring.release(it.token))
    backup = asked(bodies.of(bodies.Page), lambda it: keyring.backup(it.after, it.limit))
    verify = asked(bodies.of(bodies.Verify), lambda it: keyring.verify(it.mode, it.after))
    retire = asked(bodies.of(bodies.Retire), lambda it: keyring.retire(it.kek_version, it.token))
    reload = asked(bodies.of(bodies.Body), lambda _: keyring.reload())
    note = asked(bodies.of(bodies.Note), lambda it: keyring.note(it.rotation_id, it.token, it.step))
    rollback = asked(bodies.of(bodies.Rollback), lambda it: keyring.rollback(it.rotation_id, it.token))

    return [
        _read(access, "keys", keys),
        _read(access, "census", census),
        _read(access, "rotations/{rotation_id}", progress),
        _act(access, "rotate", asked(bodies.ROTATION, rotate)),
        _act(access, "restore", asked(bodies.of(bodies.Restore), restore)),
        _act(access, "lease", lease),
        _act(access, "release", release),
        _act(access, "backup", backup),
        _act(access, "verify", verify),
        _act(access, "retire", retire),
        _act(access, "reload", reload),
        _act(access, "note", note),
        _act(access, "rollback", rollback),
        _read(access, "lost", lost_keys),
        _act(access, "give-up", asked(bodies.of(bodies.GiveUp), give_up)),
    ]


def _read(access: Access, path: str, answer: Answer) -> GuardedRoute:
    return GuardedRoute(PATH + path, answered(answer), Requires(Role.VIEWER, access=access))


def _act(access: Access, name: str, answer: Answer) -> GuardedRoute:
    return GuardedRoute(PATH + name, answered(answer), Requires(Role.ADMIN, action=name, access=access), ["POST"])
