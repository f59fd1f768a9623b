"""How keypulse gets its token of Transit: what a person may set of it."""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from shared.config.settings import SecretPath, Section

SEGMENT: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
PathText = Annotated[str, Field(pattern=rf"^{SEGMENT}(/{SEGMENT}){{0,9}}$")]
"""Of a mount or a namespace: parts between slashes."""


class AppRole(Section):
    """A login by AppRole."""

    role_id_file: SecretPath
    secret_id_file: SecretPath
    mount: PathText = "approle"


class Kubernetes(Section):
    """A login by the token of a pod's service account."""

    role: Annotated[str, Field(min_length=1)]
    jwt_file: SecretPath = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    mount: PathText = "kubernetes"


class Auth(Section):
    """Where the token comes from: exactly one of the three."""

    token_file: SecretPath | None = None
    """Contains a token; read again when it changes."""
    approle: AppRole | None = None
    kubernetes: Kubernetes | None = None
    renew: bool = True
    """Whether a token that can be renewed is."""

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if sum(each is not None for each in (self.token_file, self.approle, self.kubernetes)) != 1:
            raise ValueError("expected exactly one of `token_file`, `approle` and `kubernetes`")
        return self
