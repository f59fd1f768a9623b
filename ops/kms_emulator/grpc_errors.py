"""The emulator's error: a gRPC status, as the real service would answer it."""

import grpc


class StatusError(Exception):
    """Ends a call with `code` and `message`; `grpc_service` turns it into the response."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message: str) -> StatusError:
    """The request itself is wrong."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def failed_precondition(message: str) -> StatusError:
    """The request is right, the state of the resource forbids it."""
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)


def not_found(kind: str, name: str) -> StatusError:
    """`kind` is the resource's type, such as `CryptoKey`."""
    return StatusError(grpc.StatusCode.NOT_FOUND, f"{kind} {name} not found.")


def already_exists(kind: str, name: str) -> StatusError:
    """`kind` is the resource's type, such as `KeyRing`."""
    return StatusError(grpc.StatusCode.ALREADY_EXISTS, f"{kind} {name} already exists.")


def unimplemented(message: str) -> StatusError:
    """The real service does this, the emulator does not."""
    return StatusError(grpc.StatusCode.UNIMPLEMENTED, message)
