"""`RefusedError`: the answer to a request that goes no further."""

from collections.abc import Mapping


class RefusedError(Exception):
    """An HTTP status (RFC 9110) and one sentence for the person who asked; never with anything of what was sent."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers
