"""What medsd says when something cannot be done.

    MedsdError                      caught once, at the command line: one line on stderr, exit status 2
    ├── SettingsError               a configuration names a key or a value that does not exist
    ├── DataError                   a manifest, a data set folder, a note or an output file
    ├── ImageError                  one image or DICOM file; carries a reason code, becomes a row in a batch
    ├── BundleError                 a bundle that is missing, changed, too new, or refused at export
    └── DependencyError             a package or a device that this step needs and that is not here

Every message names the file or the field, says what is wrong, and what to do. A patient's name, number or date of
birth never stands in one: file names that a caller hands in are shown, header values that identify are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: Exception) -> str:
    """What an error of another package says, in one line; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class MedsdError(Exception):
    """Base of the errors that a person can act on."""


class SettingsError(MedsdError):
    """A configuration file or an override that does not fit the settings models."""


class DataError(MedsdError):
    """A manifest, a data set folder, a table or an output that cannot be used as it is."""


class ImageError(MedsdError):
    """One image that cannot be read or must not be scored.

    `reason` is a stable code in snake case, one of `medsd.dicom.policy.REASONS`, such as ``"not_dicom"``; `message` is
    the sentence for the person who meets it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BundleError(MedsdError):
    """A bundle that is missing, altered, newer than this medsd, or that failed its parity check."""


class DependencyError(MedsdError):
    """Something that is not installed or not present on this machine; the message names the extra that brings it."""


@contextmanager
def explained(
    what: str, *kinds: type[Exception], then: str = "", raises: type[MedsdError] = DataError
) -> Iterator[None]:
    """Raise one of our errors for those of `kinds`: `what` is wrong, why in brackets, and `then` what to do.

    Of `OSError` alone the system says why; else it is the kind of the error, as its words may quote what was read.
    """
    try:
        yield
    except kinds as error:
        why = getattr(error, "strerror", None) if kinds == (OSError,) else None
        raise raises(f"{what} ({why or type(error).__name__}){then}") from None
