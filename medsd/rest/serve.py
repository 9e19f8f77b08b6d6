"""Serving a bundle over HTTP until the process is told to end: what `medsd serve` runs."""

from __future__ import annotations

import gc
import logging
import signal
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from medsd.connection import Connection
from medsd.errors import SettingsError
from medsd.listening import address_of, bound_socket, is_loopback
from medsd.privacy import install_log_filter
from medsd.rest.app import build_app
from medsd.rest.bodies import RequestLimits
from medsd.rest.engine import Engine
from medsd.rest.guard import RestGuard

log = logging.getLogger(__name__)

_SHORTEST = 16  # characters of a token
_FLUSH_S = 30  # what requests get to end by themselves at a shutdown


@dataclass(frozen=True)
class HttpListening:
    """Where the server listens, and to whom.

    Attributes:
        tokens: one of them must be shown; anybody may ask where it is empty, on a loopback address or behind client
            certificates alone.
        tls: makes it HTTPS, with client certificates where the context asks for them.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = field(default=(), repr=False)
    tls: ssl.SSLContext | None = None

    def check(self) -> None:
        """Refuse a port that anybody in the network could ask.

        Raises:
            SettingsError: another address than a loopback one, and neither tokens nor client certificates.
        """
        known = self.tokens or (self.tls is not None and self.tls.verify_mode == ssl.CERT_REQUIRED)
        if not is_loopback(self.host) and not known:
            raise SettingsError(
                f"{self.host} can be reached from the network: name the tokens of those who may ask with --token-file, "
                "or ask for client certificates with --tls-client-ca"
            )


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens in a file, one on each line; no line is quoted.

    Raises:
        SettingsError: it cannot be read, or a token is short or no visible ASCII.
    """
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the tokens cannot be read ({type(error).__name__})") from None
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens or any(len(token) < _SHORTEST or " " in token for token in tokens):
        raise SettingsError(f"{path}: write one token on each line, of {_SHORTEST} characters or more without spaces")
    return tokens


def server_of(engine: Engine, listening: HttpListening, limits: RequestLimits) -> uvicorn.Server:
    """A server that is not started."""
    app = build_app(engine, limits, tokens=bool(listening.tokens))
    loopback = is_loopback(listening.host)
    guard = RestGuard(app, tokens=listening.tokens, loopback=loopback, most=limits.requests, status=engine.status)
    context = listening.tls
    config = uvicorn.Config(
        guard,
        http=Connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_FLUSH_S,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    return uvicorn.Server(config)


def serve(engine: Engine, listening: HttpListening, limits: RequestLimits) -> None:
    """Serve until SIGTERM or Ctrl+C; then finish what is under way and return. Prints the address.

    Raises:
        SettingsError: the port cannot be had, or anybody could reach it; DependencyError: as `Engine`.
    """
    install_log_filter()
    listening.check()
    with bound_socket(listening.host, listening.port) as listener, engine:
        server = server_of(engine, listening, limits)

        def end(*_: object) -> None:  # uvicorn ends by these signals, too, and then raises them once more
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        listener.listen()  # from now on, requests wait for the server
        port, tls = listener.getsockname()[1], listening.tls is not None
        if not tls and not is_loopback(listening.host):
            log.warning(
                "images and tokens travel unencrypted: give --tls-cert and --tls-key, or keep a proxy before it"
            )
        gc.freeze()  # a collection that walks through all that was loaded would hold up every request
        print(f"medsd serve: {engine.bundle.label} on {address_of(listening.host, port, tls=tls)}", flush=True)
        server.run(sockets=[listener])
