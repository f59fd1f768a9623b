"""An error for a person in two sentences: what is wrong, and what to do."""


def join_hint(error: str, hint: str) -> str:
    """Both sentences in one line, as everything shows them that has no field for the hint."""
    return f"{error}; {hint}" if hint else error


class HintedError(Exception):
    """What is wrong, and what to do about it. Neither sentence may contain a secret.

    Args:
        error: what is wrong.
        hint: what to do about it, or what was expected; empty where `error` says it all.
    """

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(join_hint(error, hint))
        self.error = error
        self.hint = hint
