"""Visitors: the secret token of each, the sessions of their pages, and the check of passwords.

Nothing here knows HTTP or Gradio. `medsd.apps.web.guard` applies it to every request.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from medsd.errors import MedsdError

LIFETIME_S = 12 * 3600.0  # of a token: a working day
MOST_VISITORS = 1024  # tokens at once, some 300 bytes each
MOST_SESSIONS = 64  # open pages of one visitor
WRONG_PASSWORD_DELAY_S = 1.0
FREE_GUESSES = 30  # wrong passwords for one user from one address; then one every `GUESS_EVERY_S`
GUESS_EVERY_S = 2.0
MOST_GUESSERS = 4096  # pairs of address and user whose wrong passwords are remembered
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)

Clock = Callable[[], float]


@dataclass(eq=False)
class Visitor:
    """The holder of one token."""

    user: str  # who signed in; "" where no login is asked for
    ends: float  # when the token expires, by the clock of `Visitors`
    # The same for all tokens of one user, before and after signing out; begins `key`.
    person: str = field(default_factory=lambda: secrets.token_hex(8))
    key: str = field(init=False)  # begins the name of each of its sessions within Gradio; it is not secret
    sessions: dict[str, None] = field(default_factory=dict)  # of its pages, the newest last

    def __post_init__(self) -> None:
        self.key = f"{self.person}-{secrets.token_hex(8)}"


class Visitors:
    """The table of tokens. A token ends `lifetime_s` after it was given out, or when its visitor signs out.

    When there would be more than `most`, a visitor without a page goes first, then the oldest.
    """

    def __init__(
        self, *, lifetime_s: float = LIFETIME_S, most: int = MOST_VISITORS, clock: Clock = time.monotonic
    ) -> None:
        self.lifetime_s = lifetime_s
        self._most = most
        self._clock = clock
        self._by_token: dict[str, Visitor] = {}
        self._owners: dict[str, Visitor] = {}  # of sessions
        self._people: dict[str, str] = {}  # `Visitor.person` of each user who ever signed in

    def __len__(self) -> int:
        return len(self._by_token)

    def admit(self, user: str = "") -> str:
        """A new visitor's token: 256 random bits."""
        now = self._clock()
        for expired in [token for token, visitor in self._by_token.items() if visitor.ends <= now]:
            self.dismiss(expired)
        if len(self._by_token) >= self._most:
            tokens = self._by_token.items()
            self.dismiss(next((token for token, visitor in tokens if not visitor.sessions), next(iter(self._by_token))))
        token = secrets.token_urlsafe(32)
        person = secrets.token_hex(8)
        if user:
            person = self._people.setdefault(user, person)
        self._by_token[token] = Visitor(user, now + self.lifetime_s, person)
        return token

    def holder(self, token: str) -> Visitor | None:
        """The visitor with this token; None where it is unknown or has expired."""
        visitor = self._by_token.get(token)
        if visitor is not None and visitor.ends <= self._clock():
            self.dismiss(token)
            return None
        return visitor

    def dismiss(self, token: str) -> None:
        """Forget a token and the sessions of its holder."""
        visitor = self._by_token.pop(token, None)
        for session in visitor.sessions if visitor else ():
            del self._owners[session]

    def claim(self, visitor: Visitor, session: object) -> str | None:
        """The name within Gradio of a session that a page drew; None where it is another visitor's, or no name.

        Whoever names it first owns it. Names within Gradio differ between visitors, so a session that was forgotten
        here can never be another's later.
        """
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            return None
        if self._owners.setdefault(session, visitor) is not visitor:
            return None
        visitor.sessions.pop(session, None)
        visitor.sessions[session] = None
        if len(visitor.sessions) > MOST_SESSIONS:
            oldest = next(iter(visitor.sessions))
            del visitor.sessions[oldest], self._owners[oldest]
        return self.name(visitor, session)

    @staticmethod
    def name(visitor: Visitor, session: object) -> str | None:
        """The name within Gradio of a session of this visitor; None where it is not one."""
        return f"{visitor.key}-{session}" if isinstance(session, str) and session in visitor.sessions else None


class TooManyGuessesError(MedsdError):
    """Too many wrong passwords came from one address for one user; no password is looked at for a while."""


class Logins:
    """The check of passwords: the same work for known and unknown users, and a bounded rate of guesses.

    A right password is answered at once, a wrong one after `WRONG_PASSWORD_DELAY_S`. After `FREE_GUESSES` wrong ones
    for a user from one address, that pair may try one every `GUESS_EVERY_S`.
    """

    def __init__(
        self,
        passwords: Mapping[str, str],
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._salt = secrets.token_bytes(32)
        self._digests = {user: self._digest(password) for user, password in passwords.items()}
        self._nobody = secrets.token_bytes(32)  # the digest of no password
        self._clock = clock
        self._sleep = sleep
        self._free_at: dict[bytes, float] = {}  # when all guesses of a pair are free again

    async def check(self, user: str, password: str, address: str) -> bool:
        """Whether this is the password of this user; raises TooManyGuessesError if too many were wrong lately."""
        pair = hashlib.sha256(f"{address}\0{user}".encode(errors="replace")).digest()
        now = self._clock()
        free_at = max(self._free_at.get(pair, now), now)
        if free_at - now > (FREE_GUESSES - 1) * GUESS_EVERY_S:
            raise TooManyGuessesError("Too many wrong passwords. Wait some seconds, then try again.")
        expected = self._digests.get(user, self._nobody)
        if hmac.compare_digest(self._digest(password), expected):
            return True
        self._free_at[pair] = free_at + GUESS_EVERY_S
        if len(self._free_at) > MOST_GUESSERS:  # guesses at other users do not make a much guessed one forgotten
            del self._free_at[min(self._free_at, key=self._free_at.__getitem__)]
        await self._sleep(WRONG_PASSWORD_DELAY_S)
        return False

    def _digest(self, password: str) -> bytes:
        """32 bytes whatever the length of the password, so that comparing them takes the same time."""
        return hmac.digest(self._salt, password.encode(errors="replace"), "sha256")
