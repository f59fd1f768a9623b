"""The admin API, `/admin/crypto/…`: each path is one call of the keyring's Administration."""

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from services.backend import admin_bodies as bodies
from services.backend.admin_call import asked, guarded, parsed
from services.backend.request import RefusedError
from shared.keyring.administration import Administration, RotateRequest
from shared.secret_file import SecretFile

PATH = "/admin/crypto/"


def routes(keyring: Administration, token: SecretFile | None) -> list[BaseRoute]:
    """The admin API's routes.

    Args:
        keyring: what is administered.
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

    lease = asked(bodies.of(bodies.TakeLease), lambda it: keyring.lease(it.holder, it.seconds, it.token))
    release = asked(bodies.of(bodies.Release), lambda it: keyring.release(it.token))
    backup = asked(bodies.of(bodies.Page), lambda it: keyring.backup(it.after, it.limit))
    verify = asked(bodies.of(bodies.Verify), lambda it: keyring.verify(it.mode, it.after))
    retire = asked(bodies.of(bodies.Retire), lambda it: keyring.retire(it.kek_version, it.token))
    reload = asked(bodies.of(bodies.Body), lambda _: keyring.reload())
    note = asked(bodies.of(bodies.Note), lambda it: keyring.note(it.rotation_id, it.token, it.step))
    rollback = asked(bodies.of(bodies.Rollback), lambda it: keyring.rollback(it.rotation_id, it.token))
    return [
        Route("/admin/crypto/keys", guarded(keys, token)),
        Route("/admin/crypto/census", guarded(census, token)),
        Route("/admin/crypto/rotations/{rotation_id}", guarded(progress, token)),
        Route("/admin/crypto/rotate", guarded(asked(bodies.ROTATION, rotate), token), methods=["POST"]),
        Route("/admin/crypto/restore", guarded(asked(bodies.of(bodies.Restore), restore), token), methods=["POST"]),
        Route("/admin/crypto/lease", guarded(lease, token), methods=["POST"]),
        Route("/admin/crypto/release", guarded(release, token), methods=["POST"]),
        Route("/admin/crypto/backup", guarded(backup, token), methods=["POST"]),
        Route("/admin/crypto/verify", guarded(verify, token), methods=["POST"]),
        Route("/admin/crypto/retire", guarded(retire, token), methods=["POST"]),
        Route("/admin/crypto/reload", guarded(reload, token), methods=["POST"]),
        Route("/admin/crypto/note", guarded(note, token), methods=["POST"]),
        Route("/admin/crypto/rollback", guarded(rollback, token), methods=["POST"]),
    ]
