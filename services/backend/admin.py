"""The admin API, `/admin/crypto/…`: each path is one call of the keyring's Administration."""

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request

from services.backend import admin_bodies as bodies
from services.backend.admin_call import Handler, build_endpoint, handle_body, parse_or_refuse
from services.backend.lost import LostDataKeys
from services.backend.request import RequestRefusedError
from shared.auth import AccessPolicy, Token, load_tokens
from shared.guard import ProtectedRoute, RouteRequirements
from shared.keyring.administration import Administration, RotateRequest
from shared.secret_file import TokenFile
from shared.settings import NamedToken, Role

ADMIN_PATH = "/admin/crypto/"


def build_access(file: Path | None, tokens: Sequence[NamedToken]) -> AccessPolicy:
    """Who may call: by bearer tokens alone, and no user of web.yml, who may be there for `/metrics` alone.

    Args:
        file: the token of an admin.
        tokens: those of others.
    """
    own = [Token("crypto-admin", Role.ADMIN, TokenFile(file))] if file else []
    off = "the admin API is off: it needs admin.token_file in the backend's configuration"
    return AccessPolicy([*own, *load_tokens(tokens)], bearer_only=True, disabled_reason=off)


def build_routes(keyring: Administration, lost_data_keys: LostDataKeys, access: AccessPolicy) -> list[ProtectedRoute]:
    """The admin API's routes: a viewer reads, an admin does everything.

    Args:
        keyring: what is administered.
        lost_data_keys: what may be given up of it.
        access: who may call.
    """

    async def keys(request: Request) -> object:
        page = parse_or_refuse(bodies.PageRequest.model_validate, dict(request.query_params))
        return await keyring.list_keys(page.after, page.limit)

    async def census(_request: Request) -> object:
        return await keyring.count_key_usage()

    async def progress(request: Request) -> object:
        rotation_id = parse_or_refuse(bodies.parse_rotation_id, request.path_params["rotation_id"])
        found = await keyring.get_progress(None if rotation_id == "latest" else rotation_id)
        if found is None:
            latest = "no rotation was ever made" if rotation_id == "latest" else f"there is no rotation {rotation_id}"
            raise RequestRefusedError(404, latest)
        return found

    async def rotate(request: bodies.DryRunRequest | RotateRequest) -> object:
        if isinstance(request, bodies.DryRunRequest):
            return await keyring.dry_run(request.type, request.target_version)
        return await keyring.rotate(request)

    async def restore(request: bodies.RestoreRequest) -> object:
        return {"changed": await keyring.restore(request.rows, request.token)}

    async def lost_keys(_request: Request) -> object:
        return await lost_data_keys.list_lost()

    async def give_up(request: bodies.AbandonRequest) -> object:
        return {"given_up": await lost_data_keys.abandon(request.data_keys, request.records)}

    lease = handle_body(bodies.build_format(bodies.LeaseRequest), lambda it: keyring.acquire_lease(it.holder, it.seconds, it.token))
    release = handle_body(bodies.build_format(bodies.ReleaseRequest), lambda it: keyring.release_lease(it.token))
    backup = handle_body(bodies.build_format(bodies.PageRequest), lambda it: keyring.list_backup_rows(it.after, it.limit))
    verify = handle_body(bodies.build_format(bodies.VerifyRequest), lambda it: keyring.verify(it.mode, it.after))
    retire = handle_body(bodies.build_format(bodies.RetireRequest), lambda it: keyring.retire_version(it.kek_version, it.token))
    reload = handle_body(bodies.build_format(bodies.RequestBody), lambda _: keyring.reload_instances())
    note = handle_body(bodies.build_format(bodies.JournalRequest), lambda it: keyring.add_journal_entry(it.rotation_id, it.token, it.step))
    rollback = handle_body(bodies.build_format(bodies.RollbackRequest), lambda it: keyring.rollback(it.rotation_id, it.token))

    return [
        _build_read_route(access, "keys", keys),
        _build_read_route(access, "census", census),
        _build_read_route(access, "rotations/{rotation_id}", progress),
        _build_action_route(access, "rotate", handle_body(bodies.ROTATION_FORMAT, rotate)),
        _build_action_route(access, "restore", handle_body(bodies.build_format(bodies.RestoreRequest), restore)),
        _build_action_route(access, "lease", lease),
        _build_action_route(access, "release", release),
        _build_action_route(access, "backup", backup),
        _build_action_route(access, "verify", verify),
        _build_action_route(access, "retire", retire),
        _build_action_route(access, "reload", reload),
        _build_action_route(access, "note", note),
        _build_action_route(access, "rollback", rollback),
        _build_read_route(access, "lost", lost_keys),
        _build_action_route(access, "give-up", handle_body(bodies.build_format(bodies.AbandonRequest), give_up)),
    ]


def _build_read_route(access: AccessPolicy, path: str, handler: Handler) -> ProtectedRoute:
    return ProtectedRoute(ADMIN_PATH + path, build_endpoint(handler), RouteRequirements(Role.VIEWER, access_policy=access))


def _build_action_route(access: AccessPolicy, name: str, handler: Handler) -> ProtectedRoute:
    return ProtectedRoute(ADMIN_PATH + name, build_endpoint(handler), RouteRequirements(Role.ADMIN, action=name, access_policy=access), ["POST"])
