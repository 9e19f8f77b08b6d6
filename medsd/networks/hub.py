"""The model hub, through huggingface_hub: from its local cache first, else over the network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from medsd.errors import DependencyError, SettingsError, first_line

PREFIX = "hub:"
_ANSWER_S = 5.0

T = TypeVar("T")


def split_name(setting: str) -> tuple[str, str | None]:
    """``hub:owner/name`` or ``hub:owner/name@revision`` → the repository and its revision; else a SettingsError."""
    name, _, revision = setting.removeprefix(PREFIX).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise SettingsError(f"{setting}: write it as hub:owner/name, or hub:owner/name@revision")
    return name, revision or None


def fetch_file(setting: str, names: Sequence[str]) -> Path:
    """The first of the files `names` that the repository has; errors as `from_cache_or_hub`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, revision = split_name(setting)

    def fetch(local: bool) -> Path:
        for name in names:
            try:
                return Path(hf_hub_download(repository, name, revision=revision, local_files_only=local))
            except EntryNotFoundError:
                continue
        raise FileNotFoundError(f"it has none of {', '.join(names)}")

    return from_cache_or_hub(setting, fetch)


def from_cache_or_hub(setting: str, load: Callable[[bool], T]) -> T:
    """``load(True)`` from the cache alone; where that fails and the hub answers, ``load(False)``.

    Raises:
        SettingsError: the hub answers and does not have it.
        DependencyError: not in the cache, and the hub does not answer.
    """
    try:
        return load(True)
    except (OSError, ValueError):  # huggingface_hub's own errors are children of these
        pass
    _must_answer(setting)
    try:
        return load(False)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}: the hub does not give it: {first_line(error)}") from None


def _must_answer(setting: str) -> None:
    """Check briefly that the hub answers, because its own client retries for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    way_out = "give a local file or folder, or fill the cache on a machine that reaches it (`hf download`)"
    if constants.HF_HUB_OFFLINE:
        raise DependencyError(f"{setting}: is not in the local cache, and HF_HUB_OFFLINE is set; {way_out}")
    try:
        get_session().head(constants.ENDPOINT, timeout=_ANSWER_S)
    except Exception as error:  # of whichever HTTP client the hub's package uses
        raise DependencyError(
            f"{setting}: is not in the local cache, and the hub does not answer ({type(error).__name__}); {way_out}"
        ) from None
