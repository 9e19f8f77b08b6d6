"""Where a server listens: its address, its port, and TLS."""

import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from medsd.errors import DataError, SettingsError

File = Path | str


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_and_port(text: str) -> tuple[str, int] | None:
    """``host:port`` as two values, brackets of an IPv6 address taken off; None where it is none."""
    found = re.fullmatch(r"\[?([^\[\]@/]+?)\]?:(\d{1,5})", text)
    return (found[1], int(found[2])) if found and 0 < int(found[2]) < 65536 else None


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on an address of this machine that does not listen yet; port 0 takes any free one.

    Raises SettingsError: the port is in use, or `host` is not here.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError:
        raise SettingsError(f"host {host}: no such address; use 127.0.0.1, or an address of this machine") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise port_in_use(host, port) from None
    return bound


def free_port(host: str, port: int) -> int:
    """`port` if it can be listened on, or any free one for 0; errors as `bound_socket`."""
    with bound_socket(host, port) as probe:
        return int(probe.getsockname()[1])


def port_in_use(host: str, port: int) -> SettingsError:
    """The error of a port that cannot be had."""
    return SettingsError(
        f"port {port} on {host} is in use or not allowed; choose another with --port (0: any free one)"
    )


def address_of(host: str, port: int, *, tls: bool = False) -> str:
    """The URL of what listens there."""
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/"


def server_context(certificate: File, key: File, authority: File | None) -> ssl.SSLContext:
    """TLS 1.2 or newer for a port; with `authority`, clients must show a certificate of it.

    Raises DataError: a file cannot be read.
    """
    return _loaded(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), (certificate, key), authority)


def client_context(certificate: File | None, key: File | None, authority: File | None) -> ssl.SSLContext:
    """TLS 1.2 or newer for a call: the other side must be of `authority`, by default of the system's.

    Raises DataError: a file cannot be read.
    """
    shown = (certificate, key) if certificate and key else ()
    return _loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH), shown, authority)


def _loaded(context: ssl.SSLContext, shown: Sequence[File], authority: File | None) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if shown:
            context.load_cert_chain(shown[0], shown[1])
        if authority:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise DataError(
            f"the certificates for TLS cannot be loaded: {error.strerror or type(error).__name__}"
        ) from None
    return context
