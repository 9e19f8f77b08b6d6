"""Uploaded files: each request owns its copy, under a random name, and all together stay within a quota.

No part of a file's own name is a path here, so no error message or log line can tell it.
"""

import contextlib
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

from gradio.route_utils import GradioMultiPartParser, GradioUploadFile
from gradio.routes import file_upload_statuses
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from medsd.apps.web.visitors import Visitor

MOST_FILES = 500  # of one drop
LARGEST_FILE = 256 * 1024**2  # bytes
KEPT_S = 1800.0  # an upload that was not read is deleted then


class UploadRefusedError(Exception):
    """An upload that is not taken, with the HTTP status of the answer (RFC 9110, RFC 4918)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Kept(NamedTuple):
    owner: Visitor
    name: str  # as the visitor calls the file
    since: float


class Uploads:
    """The uploads of a running app, in a folder of their own. Call `close` at its end.

    `quota` bounds the bytes on disk over all visitors, batches at work included.
    """

    def __init__(self, folder: Path, *, quota: int) -> None:
        self.quota = quota
        self.home = Path(tempfile.mkdtemp(prefix="uploads-", dir=folder)).resolve()
        self._kept: dict[str, _Kept] = {}
        self._stored = 0  # bytes in `home` when they were last added up, and all that came since
        self._lock = threading.Lock()  # files are taken by threads

    async def receive(self, request: Request, visitor: Visitor, progress: str | None = None) -> list[str]:
        """Store the files of a multipart form (RFC 7578); the paths are what the page names them by.

        `progress` is the name under which the page asks how far it has come. Raises UploadRefusedError: too large, too
        many, no room, or no form; starlette's ClientDisconnect: the visitor left, and nothing of the request is kept.
        """
        self.sweep()
        declared = request.headers.get("content-length", "0")
        self._reserve(int(declared) if declared.isdigit() else 0, keep=False)
        with tempfile.TemporaryDirectory(prefix="arriving-", dir=self.home, ignore_cleanup_errors=True) as folder:
            try:
                parser = GradioMultiPartParser(
                    request.headers,
                    self._metered(request),
                    max_files=MOST_FILES,
                    max_fields=0,
                    upload_dir=folder,
                    max_file_size=LARGEST_FILE,
                    upload_id=progress,
                    upload_progress=file_upload_statuses if progress else None,
                )
                form = await parser.parse()
            except (MultiPartException, KeyError, ValueError) as error:  # without a content type, with a wrong one
                raise _refusal(str(getattr(error, "message", ""))) from None
            finally:
                if progress:
                    file_upload_statuses.set_done(progress)
            files = [file for file in form.getlist("files") if isinstance(file, GradioUploadFile)]
            return [self._keep(file, visitor) for file in files]

    def owns(self, visitor: Visitor, path: object) -> bool:
        """Whether `path` is a regular file that this visitor uploaded and that was not read yet."""
        kept = self._kept.get(path) if isinstance(path, str) else None
        return kept is not None and kept.owner is visitor and is_regular(Path(str(path)))

    def name(self, path: str) -> str:
        """How the visitor calls an upload; "" for any other path."""
        kept = self._kept.get(path)
        return kept.name if kept else ""

    def sweep(self) -> None:
        """Delete uploads that were not read for `KEPT_S`, and the empty files that Gradio leaves for each upload."""
        now = time.monotonic()
        for path, kept in list(self._kept.items()):
            if now - kept.since > KEPT_S:
                Path(path).unlink(missing_ok=True)
            if not Path(path).exists():
                self._kept.pop(path, None)
        for left in self.home.parent.iterdir():
            with contextlib.suppress(OSError):
                if left.is_file() and not (about := left.stat()).st_size and time.time() - about.st_mtime > KEPT_S:
                    left.unlink()

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.home, ignore_errors=True)

    def _keep(self, file: GradioUploadFile, visitor: Visitor) -> str:
        file.file.close()
        target = self.home / secrets.token_hex(16)
        Path(str(file.file.name)).replace(target)
        self._kept[str(target)] = _Kept(visitor, Path((file.filename or "").replace("\\", "/")).name, time.monotonic())
        return str(target)

    async def _metered(self, request: Request) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            self._reserve(len(chunk))
            yield chunk

    def _reserve(self, size: int, *, keep: bool = True) -> None:
        """Count `size` more bytes. What was deleted since is noticed when there seems to be no room."""
        with self._lock:
            if self._stored + size > self.quota:
                self._stored = 0
                for path in self.home.rglob("*"):
                    with contextlib.suppress(OSError):  # gone meanwhile
                        self._stored += path.lstat().st_size
            if self._stored + size > self.quota:
                raise UploadRefusedError(
                    507,
                    f"The {self.quota / 1e9:g} GB that this server keeps for uploads are in use. Try again when other "
                    "readings have ended, or send fewer files.",
                )
            self._stored += size if keep else 0


def _refusal(said: str) -> UploadRefusedError:
    """What the form parser said, in words for the person who dropped the files."""
    if said.startswith("File size exceeded"):
        return UploadRefusedError(413, f"A file has more than {LARGEST_FILE // 1024**2} MB, the most that is taken.")
    if said.startswith("Too many files"):
        return UploadRefusedError(413, f"This page takes {MOST_FILES} files at a time. Drop fewer.")
    return UploadRefusedError(400, "This is not an upload of files.")


def is_regular(path: Path) -> bool:
    """Whether there is a file at `path` itself: no folder, no link, no device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
