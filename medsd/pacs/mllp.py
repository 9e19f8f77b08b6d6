"""HL7 messages sent by the Minimal Lower Layer Protocol (MLLP release 1): framed, and acknowledged one by one."""

import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Self

from medsd.errors import DataError
from medsd.listening import host_and_port
from medsd.pacs.deliver import UnreachableError

_BEGIN, _END = b"\x0b", b"\x1c\r"
_TIMEOUT_S = 30.0
_MOST = 64 << 10  # bytes of an acknowledgement
_TAKEN = ("AA", "CA")  # HL7 table 0008: accepted by the application, or committed to be


@dataclass(frozen=True)
class Hl7Destination:
    """An integration engine, as ``host:port``."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, text: str, tls: ssl.SSLContext | None = None) -> Self:
        """Read ``host:port``; raises DataError where it is none."""
        found = host_and_port(text.strip())
        if found is None:
            raise DataError(f"'{text}' is no address for HL7; write host:port, for instance engine:2575")
        return cls(*found, tls)

    def send(self, message: bytes) -> str:
        """Send one message; why it was not taken, "" where it was.

        Raises UnreachableError: nobody listens, or no acknowledgement came.
        """
        try:
            with socket.create_connection((self.host, self.port), _TIMEOUT_S) as plain:
                line = self.tls.wrap_socket(plain, server_hostname=self.host) if self.tls else plain
                with line:
                    line.sendall(_BEGIN + message + _END)
                    answer = _answer(line)
        except OSError as error:  # ssl.SSLError is one
            raise UnreachableError(type(error).__name__) from None
        return _refusal(answer, message)


def _answer(line: socket.socket) -> bytes:
    answer, until = b"", time.monotonic() + _TIMEOUT_S
    while not answer.endswith(_END):
        line.settimeout(max(until - time.monotonic(), 0.001))  # of the whole, however it trickles
        piece = line.recv(4096)
        if not piece or len(answer) > _MOST:
            raise ConnectionAbortedError
        answer += piece
    return answer.removeprefix(_BEGIN).removesuffix(_END)


def _refusal(answer: bytes, message: bytes) -> str:
    """Why an acknowledgement is none of this message: by MSA-1 and MSA-2, which has its MSH-10."""
    fields = next((each.split(b"|") for each in answer.split(b"\r") if each.startswith(b"MSA|")), [])
    code, control = (fields[n].decode("ascii", "replace") if n < len(fields) else "" for n in (1, 2))
    if control != message.split(b"\r")[0].split(b"|")[9].decode():
        return "the acknowledgement is of another message"
    return "" if code in _TAKEN else f"it answered {code}" if re.fullmatch("[A-Z]{2}", code) else "it did not accept"
