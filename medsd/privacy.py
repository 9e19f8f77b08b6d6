"""Identities stay outside: keyed hashes in place of identifiers, and a log filter that takes names out of log lines.

Start at `KeyedHasher.from_environment` for tables and indexes, and at `install_log_filter` for programs that log.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from medsd.errors import SettingsError

KEY_VARIABLE = "MEDSD_KEY"
_MIN_KEY_BYTES = 16
_HASH_DIGITS = 16
_REDACTED = "[redacted]"
# DICOM PN: components joined by carets (PS3.5 6.2), as in a message that quotes an element.
_PERSON_NAME = re.compile(r"[^\s^=\\|,;:'\"()\[\]{}]+(?:\^+[^\s^=\\|,;:'\"()\[\]{}]+)+\^*")
_MAX_REGISTERED = 4096


class KeyedHasher:
    """HMAC-SHA-256 of identifiers (RFC 2104), 16 hexadecimal digits, one domain each for studies and patients.

    The same identifier gives the same key on every machine that holds the same secret, and without the secret nobody
    can try identifiers out. 64 bits keep a million studies apart with a chance of error of 3 in 10⁸.

    Args:
        key: the secret, at least 16 bytes.

    Raises:
        SettingsError: the secret is too short to protect anything.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _MIN_KEY_BYTES:
            raise SettingsError(
                f"the key for identifiers has {len(key)} bytes; give {KEY_VARIABLE} or the key file at least "
                f"{_MIN_KEY_BYTES}"
            )
        self._key = key

    def __repr__(self) -> str:
        return "KeyedHasher(…)"

    @classmethod
    def from_environment(cls, folder: Path | None = None) -> KeyedHasher:
        """The hasher of this user: secret from the variable MEDSD_KEY, else from the file ``key`` in `folder`.

        Args:
            folder: the user's configuration folder of medsd by default; the file is created at random, readable by
                its owner only, when it is absent.

        Raises:
            SettingsError: the file cannot be read or written.
        """
        if secret := os.environ.get(KEY_VARIABLE, ""):
            return cls(secret.encode())
        path = (folder or config_folder()) / "key"
        try:
            return cls(_read_or_create(path))
        except OSError as error:
            raise SettingsError(
                f"{path}: the key for identifiers cannot be read or made ({error.strerror}); set {KEY_VARIABLE} or "
                "make the folder writable"
            ) from None

    def study_key(self, uid: str) -> str:
        """16 hexadecimal digits for a Study Instance UID; "" for an empty one."""
        return self._digest("study", uid)

    def patient_key(self, patient_id: str) -> str:
        """16 hexadecimal digits for a Patient ID; "" for an empty one, so that unknown patients do not become one."""
        return self._digest("patient", patient_id)

    def _digest(self, domain: str, identifier: str) -> str:
        plain = identifier.strip(" \0")
        if not plain:
            return ""
        message = f"medsd/{domain}\0{plain}".encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def public_hasher(bundle_name: str) -> KeyedHasher:
    """The hasher of a bundle made from public data: its key is its name, so whoever holds the data set can find the
    original of a case. It hides nothing; a bundle says so (`public` in bundle.json).
    """
    return KeyedHasher(hashlib.sha256(f"medsd/public\0{bundle_name}".encode()).digest())


def config_folder() -> Path:
    """Where this user's settings of medsd live: XDG_CONFIG_HOME, APPDATA on Windows, else ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA")
    return (Path(base) if base else Path.home() / ".config") / "medsd"


def _read_or_create(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, draft = tempfile.mkstemp(dir=path.parent)  # mkstemp creates with mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
            os.link(draft, path)  # fails where another process was first; then its key holds
        except FileExistsError:
            pass
        finally:
            Path(draft).unlink()
    return path.read_bytes().strip()


class IdentityFilter(logging.Filter):
    """Takes identities out of log records: values that were registered, and whatever looks like a DICOM name."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, None] = {}
        self._lock = threading.Lock()

    def register(self, values: Iterable[str]) -> None:
        """Remember identifying values (names, numbers, dates); the latest 4,096 are kept.

        A name in DICOM form is also remembered by its parts. Values of fewer than three characters are left out: they
        would blot out half of every line.
        """
        parts = [part for value in values for part in (value.strip(), *re.split(r"[\^=\\]", value))]
        with self._lock:
            for part in parts:
                if len(part.strip()) >= 3:
                    self._values.pop(part.strip().casefold(), None)
                    self._values[part.strip().casefold()] = None
            while len(self._values) > _MAX_REGISTERED:
                del self._values[next(iter(self._values))]

    def redact(self, text: str) -> str:
        """`text` with every identity replaced."""
        text = _PERSON_NAME.sub(_REDACTED, text)
        with self._lock:
            values = [value for value in self._values if value in text.casefold()]
        for value in sorted(values, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", _REDACTED, text, flags=re.IGNORECASE)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the message and the traceback of `record`; never drops one."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a wrong format string: logging itself reports it
            message = str(record.msg)
        record.msg, record.args = self.redact(message), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.redact(record.exc_text)
        return True


_identities = IdentityFilter()
_installed = False


def register_identities(values: Iterable[str]) -> None:
    """Remember `values` for the filter of `install_log_filter`."""
    _identities.register(values)


def install_log_filter() -> IdentityFilter:
    """Redact every log record of this process from now on; calling it again changes nothing.

    A filter on a logger does not see its children's records, and one on a handler misses handlers that come later, so
    the filter sits where records are made.
    """
    global _installed
    if not _installed:
        make_record = logging.getLogRecordFactory()

        def make_redacted(*args: object, **kwargs: object) -> logging.LogRecord:
            record = make_record(*args, **kwargs)
            _identities.filter(record)
            return record

        logging.setLogRecordFactory(make_redacted)
        _installed = True
    return _identities
