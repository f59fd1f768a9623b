"""`users.info` and `usergroups.users.list`: who somebody is, and who is in a group."""

from collections.abc import Callable

from ops.demo.stand_ins.slack.arguments import Json, SlackRefusedError
from ops.demo.stand_ins.slack.workspace import Workspace


class PeopleMethods:
    """The people of the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def list_methods(self) -> dict[str, tuple[str, Callable[[Json], Json]]]:
        """Each method with the scope that it needs."""
        return {
            "users.info": ("users:read", self._describe_user),
            "usergroups.users.list": ("usergroups:read", self._list_members),
        }

    def _describe_user(self, arguments: Json) -> Json:
        person = self._workspace.people.get(str(arguments.get("user")))
        if person is None:
            raise SlackRefusedError("user_not_found")
        return {
            "user": {
                "id": person.id,
                "team_id": person.team_id,
                "name": person.name,
                "real_name": person.real_name,
                "deleted": False,
                "is_bot": False,
                "is_restricted": person.is_restricted or person.is_ultra_restricted,
                "is_ultra_restricted": person.is_ultra_restricted,
            }
        }

    def _list_members(self, arguments: Json) -> Json:
        members = self._workspace.groups.get(str(arguments.get("usergroup")))
        if members is None:
            raise SlackRefusedError("no_such_subteam")
        return {"users": list(members)}
