"""An error for a person in two sentences: what is wrong, and what to do. Whoever shows it joins them."""


class HintedError(Exception):
    """What is wrong, and what to do about it. Neither sentence may contain a secret.

    Args:
        error: what is wrong.
        hint: what to do about it, or what was expected; empty where `error` says it all.
    """

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(f"{error}; {hint}" if hint else error)
        self.error = error
        self.hint = hint
