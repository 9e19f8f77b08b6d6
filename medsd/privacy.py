"""Keyed hashes in place of identifiers (`KeyedHasher`); names taken out of logs (`install_log_filter`) and notes
(`scrub_note`)."""

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Self

from medsd.errors import SettingsError
from medsd.text import fold, normalise_text

KEY_VARIABLE = "MEDSD_KEY"
_MIN_KEY_BYTES = 16
_HASH_DIGITS = 16
_REDACTED = "[redacted]"
BLANK = "___"  # what stands in a note for what was taken out, as in MIMIC-CXR
_SHORTEST = 3  # characters; shorter values would redact half of every line
_DATE_FORMS = (
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%d %B %Y", "%B %d, %Y", "%d %b %Y",
)  # fmt: skip
# DICOM PN: components joined by carets (PS3.5 6.2), as in a message that quotes an element.
_PART = r"[^\s^=\\|,;:'\"()\[\]{}]"
# Begins at a word's start, here and in the patterns below: else a long word costs the square of its length.
_PERSON_NAME = re.compile(rf"(?<!{_PART}){_PART}+(?:\^+{_PART}+)+\^*")
_MAX_REGISTERED = 4096

# What looks like an identity in a clinical note.
_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w'’-]*"  # a word that begins with a capital letter
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_TITLES = "Mrs?|Ms|Miss|Mx|Dr|Prof|Herrn?|Frau|Fr|Hr|Sir|Dame|Mme|Mlle|Sra?|Sister|Nurse"
_NAME_LABELS = "name|patient|pt|surname|signed(?: by)?|dictated by|reported by|referred by"
_NUMBER_LABELS = "mrn|pid|id|nhs|ssn|accession|acc|case|record|hospital|patient"
_NOTE_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
        r"(?:https?://|www\.)\S+",
        rf"\b(?:{_TITLES})\b\.?\s+(?:{_CAPITAL}\s?){{1,3}}",
        rf"(?i:\b(?:{_NAME_LABELS})\s*[:=]\s*){_CAPITAL}(?:,?\s{_CAPITAL})*",
        rf"(?i:\b(?:{_NUMBER_LABELS})(?:\s*(?:no|number|nr|#|id))?\.?\s*[:=#]?\s*)(?=[\w-]*\d{{3}})[\w-]+",
        r"(?<![\w.])\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})\b",
        r"(?<![\w.])\d{4}([./-])\d{1,2}\1\d{1,2}\b",
        rf"(?i:\b\d{{1,2}}(?:st|nd|rd|th)?\.?\s+{_MONTH},?\s+\d{{4}}\b)",
        rf"(?i:\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}\b)",
        r"(?<![\w.])\+?\(?\d{2,5}\)?(?:[ /-]\d{2,}){2,}\b",  # telephone
        r"(?<![\w-])[\w-]*\d{6,}[\w-]*",
    )
)


class KeyedHasher:
    """HMAC-SHA-256 of identifiers (RFC 2104), 16 hexadecimal digits, a domain each for studies, patients and instances.

    All machines with the same secret give the same key; without the secret nobody can try identifiers out. 64 bits
    keep a million studies apart with a chance of error of 3 in 10⁸.

    `key` is the secret, at least 16 bytes; `public` the name of a bundle whose cases have public keys
    (`public_hasher`), which `study_keys` and `patient_keys` then give, too. Raises SettingsError: the secret is too
    short to protect anything.
    """

    def __init__(self, key: bytes, public: str = "") -> None:
        if len(key) < _MIN_KEY_BYTES:
            raise SettingsError(
                f"the key for identifiers has {len(key)} bytes; give {KEY_VARIABLE} or the key file at least "
                f"{_MIN_KEY_BYTES}"
            )
        self._key = key
        self._public = public_hasher(public) if public else None

    def __repr__(self) -> str:
        return "KeyedHasher(…)"

    @classmethod
    def from_environment(cls, folder: Path | None = None, *, public: str = "") -> Self:
        """The hasher of this user: its secret is in the variable MEDSD_KEY, else in the file ``key`` of `folder`.

        The folder is by default `config_folder`. An absent file is made at random, readable by its owner only; raises
        SettingsError if it cannot be read or written.
        """
        if secret := os.environ.get(KEY_VARIABLE, ""):
            return cls(secret.encode(), public)
        path = (folder or config_folder()) / "key"
        try:
            return cls(_read_or_create(path), public)
        except OSError as error:
            raise SettingsError(
                f"{path}: the key for identifiers cannot be read or made ({error.strerror}); set {KEY_VARIABLE} or "
                "make the folder writable"
            ) from None

    def study_key(self, uid: str) -> str:
        """16 hexadecimal digits for a Study Instance UID; "" for an empty one."""
        return self._digest("study", uid)

    def patient_key(self, identifier: str) -> str:
        """16 hexadecimal digits for a Patient ID in any spelling (`patient_id`); "" for an empty one."""
        return self._digest("patient", patient_id(identifier))

    def instance_key(self, uid: str) -> str:
        """16 hexadecimal digits for a SOP Instance UID, which names one image; "" for an empty one."""
        return self._digest("instance", uid)

    def study_keys(self, uid: str) -> tuple[str, ...]:
        """Every key under which a study may be a case: its own, and the one that a public bundle gives it."""
        return tuple(hasher.study_key(uid) for hasher in (self, self._public) if hasher)

    def patient_keys(self, patient_id: str) -> tuple[str, ...]:
        """Every key under which a patient may have cases, as `study_keys`."""
        return tuple(hasher.patient_key(patient_id) for hasher in (self, self._public) if hasher)

    def digest(self, domain: str, identifier: str) -> bytes:
        """32 bytes for an identifier within `domain`, for what needs more than a key: new UIDs, shifts of dates."""
        message = f"medsd/{domain}\0".encode() + identifier.strip(" \0").encode()
        return hmac.new(self._key, message, hashlib.sha256).digest()

    def _digest(self, domain: str, identifier: str) -> str:
        return self.digest(domain, identifier).hex()[:_HASH_DIGITS] if identifier.strip(" \0") else ""


def patient_id(identifier: str) -> str:
    """One spelling of a patient's identifier, without padding (PS3.5 6.2) and, of a number, leading zeros and ``.0``:
    tables that went through a spreadsheet have 12 or 12.0 for 00012.
    """
    text = identifier.strip().strip("\0").strip()
    number = re.fullmatch(r"0*([0-9]+)(?:\.0*)?", text)
    return number[1] if number else text


def public_hasher(bundle_name: str) -> KeyedHasher:
    """The hasher of a bundle's own cases where its data are public (`public` in bundle.json). It hides nothing.

    Its key is the bundle's name, so that whoever holds the data set can find the original of a case. A
    user's own images are never keyed by it.
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
        """Remember identifying values (names, numbers, dates) in all their `spellings`; the latest 4,096 are kept."""
        forms = [fold(form)[0] for value in values for form in spellings(value)]
        with self._lock:
            for form in forms:
                self._values.pop(form, None)
                self._values[form] = None
            while len(self._values) > _MAX_REGISTERED:
                del self._values[next(iter(self._values))]

    def redact(self, text: str) -> str:
        """`text` with every identity replaced."""
        text = _PERSON_NAME.sub(_REDACTED, text)
        with self._lock:
            forms = list(self._values)
        return _without(text, forms, _REDACTED)

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


def spellings(value: str) -> list[str]:
    """The ways in which an identity may be written, in lower case: the whole first, then its parts.

    A name in DICOM form (PS3.5 6.2) also stands by its components and their words, a number without zeros before it,
    and a date in the ways people write dates. Parts of fewer than three letters are left out, unless they are
    ideographic, and words of fewer than four.

    >>> spellings("00471")
    ['00471', '471']
    """
    whole = normalise_text(value).strip(" \0").casefold()
    forms = [whole, *(part.strip() for part in re.split(r"[\^=\\]", whole))]
    if "^" in whole:  # of "Van der Berg" or "García Márquez" a note may have one word
        forms += [word for part in forms[1:] if " " in part for word in part.split() if len(word) > _SHORTEST]
    forms += [form.replace("-", "") for form in forms if "-" in form]  # a line may end at the hyphen
    if whole.isdigit():
        forms.append(whole.lstrip("0"))
    if re.fullmatch(r"\d{8}", whole):
        with contextlib.suppress(ValueError):  # eight digits that are no date
            day = datetime.strptime(whole, "%Y%m%d")
            written = [day.strftime(form).casefold() for form in _DATE_FORMS]
            forms += written + [re.sub(r"(?<!\d)0(?=\d)", "", date) for date in written]
    forms = [form for form in forms if len(form) >= _SHORTEST or (len(form) == 2 and not form.isascii())]
    return [form for form in dict.fromkeys(forms) if len(fold(form)[0].strip()) > 1]  # "AAA" is compared as "a"


def scrub_note(note: str, identities: Iterable[str] = ()) -> str:
    """A note in the spelling of `medsd.text.normalise_text`, with ``___`` in place of what identifies somebody.

    Removed are the given identities (names, numbers, dates, addresses of the patient and of who treated her) in all
    spellings, whatever their case, accents and hyphens (`medsd.text.fold`), and what looks like an identity: names
    after a title ("Mrs …", "Dr. …") or a label ("Name: …"), record and telephone numbers, dates, mail and web
    addresses, names in DICOM form. Other names are not recognised.
    """
    forms = {fold(form)[0] for value in identities for form in spellings(value)}
    note = _PERSON_NAME.sub(BLANK, _without(normalise_text(note), forms, BLANK))
    for pattern in _NOTE_PATTERNS:
        note = pattern.sub(lambda found: BLANK + " " * found[0].endswith(" "), note)
    return note


def _without(text: str, forms: Iterable[str], blank: str) -> str:
    """`text` with `blank` for each of `forms` (folded) that stands by itself.

    Ideographs and other letters beyond ASCII count wherever they stand: not every script has spaces between words.
    """
    folded, places = fold(text)
    present = sorted((form for form in forms if form in folded), key=len, reverse=True)
    if not present:
        return text
    whole = (rf"(?<![^\W_]){re.escape(form)}(?![^\W_])" if form.isascii() else re.escape(form) for form in present)
    left, end = "", 0
    for found in re.finditer(f"(?=({'|'.join(whole)}))", folded):  # overlapping ones, too
        start, stop = places[found.start(1)], places[found.end(1)]
        if start >= end:
            left += text[end:start] + blank
        end = max(end, stop)
    return left + text[end:]


_identities = IdentityFilter()
_installed = False


def register_identities(values: Iterable[str]) -> None:
    """Remember `values` for the filter of `install_log_filter`."""
    _identities.register(values)


def install_log_filter() -> IdentityFilter:
    """Redact every log record, warning and last traceback of this process from now on; a second call changes nothing.

    A logger's filter does not see its children's records, and a handler's misses later handlers, so the filter sits
    where records are made.
    """
    global _installed
    if not _installed:
        make_record = logging.getLogRecordFactory()

        def make_redacted(*args: object, **kwargs: object) -> logging.LogRecord:
            record = make_record(*args, **kwargs)
            _identities.filter(record)
            return record

        logging.setLogRecordFactory(make_redacted)
        # What Python itself writes to stderr: warnings, and the traceback of an exception that was not caught.
        format_warning = warnings.formatwarning
        warnings.formatwarning = lambda *args, **kwargs: _identities.redact(format_warning(*args, **kwargs))
        sys.excepthook = lambda *error: print(
            _identities.redact("".join(traceback.format_exception(*error))), end="", file=sys.stderr
        )
        _installed = True
    return _identities
