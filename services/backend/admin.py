"""The admin API, `/admin/crypto/…`: each path is one call of the keyring's Administration."""

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from services.backend import admin_bodies as bodies
from services.backend.admin_call import asked, guarded, parsed
from services.backend.lost import LostKeys
from services.backend.request import RefusedError
from shared.keyring.administration import Administration, RotateRequest
from shared.secret_file import SecretFile

PATH = "/admin/crypto/"


def routes(keyring: Administration, lost: LostKeys, token: SecretFile | None) -> list[BaseRoute]:
    """The admin API's routes.

    Args:
        keyring: what is administered.
        lost: what may be given up of it.
        token: what a caller needs; without one nobody gets in.
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

    lease = asked(bodies.TakeLease.model_validate, lambda it: keyring.lease(it.holder, it.seconds, it.token))
    release = asked(bodies.Release.model_validate, lambda it: keyring.release(it.token))
    backup = asked(bodies.Page.model_validate, lambda it: keyring.backup(it.after, it.limit))
    verify = asked(bodies.Verify.model_validate, lambda it: keyring.verify(it.mode, it.after))
    retire = asked(bodies.Retire.model_validate, lambda it: keyring.retire(it.kek_version, it.token))
    reload = asked(bodies.Body.model_validate, lambda _: keyring.reload())
    note = asked(bodies.Note.model_validate, lambda it: keyring.note(it.rotation_id, it.token, it.step))
    rollback = asked(bodies.Rollback.model_validate, lambda it: keyring.rollback(it.rotation_id, it.token))
    return [
        Route("/admin/crypto/keys", guarded(keys, token)),
        Route("/admin/crypto/census", guarded(census, token)),
        Route("/admin/crypto/rotations/{rotation_id}", guarded(progress, token)),
        Route("/admin/crypto/rotate", guarded(asked(bodies.rotation, rotate), token), methods=["POST"]),
        Route("/admin/crypto/restore", guarded(asked(bodies.Restore.model_validate, restore), token), methods=["POST"]),
        Route("/admin/crypto/lease", guarded(lease, token), methods=["POST"]),
        Route("/admin/crypto/release", guarded(release, token), methods=["POST"]),
        Route("/admin/crypto/backup", guarded(backup, token), methods=["POST"]),
        Route("/admin/crypto/verify", guarded(verify, token), methods=["POST"]),
        Route("/admin/crypto/retire", guarded(retire, token), methods=["POST"]),
        Route("/admin/crypto/reload", guarded(reload, token), methods=["POST"]),
        Route("/admin/crypto/note", guarded(note, token), methods=["POST"]),
        Route("/admin/crypto/rollback", guarded(rollback, token), methods=["POST"]),
        Route("/admin/crypto/lost", guarded(lost_keys, token)),
        Route("/admin/crypto/give-up", guarded(asked(bodies.GiveUp.model_validate, give_up), token), methods=["POST"]),
    ]
