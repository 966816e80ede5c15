"""How the command ends."""

from __future__ import annotations

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

MEANING = "exit codes: 0 done, 1 something failed, 2 not possible so (usage, or no GPU), 130 interrupted by Ctrl-C"


class ExitError(Exception):
    """Ends the command with a code, and with a message on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
