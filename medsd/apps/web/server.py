"""Serving the app: safe options first, Gradio last. `serve` is what `medsd app` calls.

Everything that can be wrong with the request (address, login, port, bundle) is checked before Gradio is imported,
which takes seconds. Without a login nothing but this machine is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsd.apps.web.reading import Reader
from medsd.bundle.layout import Bundle
from medsd.dicom.policy import GatePolicy
from medsd.errors import SettingsError
from medsd.listening import address_of, free_port, is_loopback, port_in_use
from medsd.privacy import install_log_filter
from medsd.telemetry import use_own_caches, work_offline

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

    from medsd.apps.web.uploads import Uploads
    from medsd.inference.predict import Predictor
    from medsd.inference.prediction import Prediction
    from medsd.inference.providers import PrecisionChoice
    from medsd.preprocessing.decode import Decoder
    from medsd.preprocessing.helper import Helper

log = logging.getLogger(__name__)

LOGIN_VARIABLE = "MEDSD_APP_LOGIN"  # user:password, where a file is not at hand
QUOTA_GB = 8.0  # of uploads on disk over all visitors: two of the largest batches
SWEEP_S = 60.0  # between two searches for uploads that were never read
SESSIONS = 32  # readings kept at once, up to some 50 MB each; the oldest go first


def serve(
    bundle_folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    images: Path | None = None,
    auth: Path | None = None,
    feedback: Path | None = None,
    quota_gb: float = QUOTA_GB,
    open_browser: bool = False,
    policy: GatePolicy | None = None,
    precision: PrecisionChoice = "auto",
) -> None:
    """Serve the app until it is interrupted; prints the address as soon as it answers.

    Args:
        host: an address of this machine; any but a loopback one needs a login.
        port: a free port; 0 takes any.
        images: a folder with pictures of the cases, for bundles that ship none.
        auth: a file with ``user:password`` on each line; else the environment variable `LOGIN_VARIABLE` is looked at.
        feedback: a folder that keeps what readers say of the calls, with the images; None: nothing is kept.
        quota_gb: what the uploads of all visitors may take on disk at once, in GB (10⁹ bytes).
        policy, precision: as for `Predictor`.

    Raises:
        BundleError: the bundle or its case index is missing or cannot be used.
        DataError: there is no folder `images`, or `feedback` cannot be made.
        SettingsError: the port is in use, the address needs a login, or the login file is not one.
    """
    install_log_filter()
    logins = read_logins(auth)
    if not is_loopback(host) and not logins:
        raise SettingsError(
            f"host {host} can be reached from other machines: give a login with --auth FILE (user:password a line) "
            f"or {LOGIN_VARIABLE}=user:password, or stay with 127.0.0.1"
        )
    port = free_port(host, port)
    bundle = Bundle.open(bundle_folder)
    reader = open_reader(bundle, images=images, feedback=feedback, policy=policy, precision=precision)
    served = launch(reader, host=host, port=port, logins=logins, quota_gb=quota_gb)
    # Full collections come when a quarter of all objects is new. Without those that stay for ever, it comes often: the
    # images of a reading are in cycles of Gradio's, 0.4 MB and more each.
    gc.collect()
    gc.freeze()
    print(f"medsd app: {reader.bundle.label} on {served.local_url}   (stop with Ctrl+C)", flush=True)
    if open_browser:
        webbrowser.open(served.local_url)
    with contextlib.suppress(ValueError):  # only a main thread may do this
        # Ended by a service manager, the app cleans up as it does after Ctrl+C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    served.block_thread()


def open_reader(
    bundle: Bundle,
    *,
    images: Path | None = None,
    feedback: Path | None = None,
    policy: GatePolicy | None = None,
    precision: PrecisionChoice = "auto",
) -> Reader:
    """Everything that a page needs of a bundle; arguments and errors as for `serve`."""
    from medsd.apps.web.feedback import FeedbackFolder
    from medsd.cases.index import CaseIndex
    from medsd.cases.manage import hasher_of
    from medsd.cases.pictures import PictureFolder
    from medsd.inference.predict import Predictor
    from medsd.preprocessing.decode import Decoder

    hasher = hasher_of(bundle)
    # Uploads are strangers' files: a process of their own can be stopped, and may go down, without the page.
    decoder = Decoder(bundle.description.pixels, policy or GatePolicy(), hasher, keep_image=True)
    decode = decoder.helper()
    predictor = Predictor(bundle, precision=precision, hasher=hasher, policy=policy, decode=decode)
    has_cases = bundle.cases_path.is_dir()
    return Reader(
        bundle,
        predictor,
        CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256) if has_cases else None,
        PictureFolder(images, hasher) if images else None,
        predictor.session.provider,
        predictor.session.precision,
        _scorer(predictor, decoder) if bundle.description.image else None,
        FeedbackFolder(feedback, hasher) if feedback else None,
        decode if bundle.description.image else None,
    )


def _scorer(predictor: Predictor, decoder: Decoder) -> Callable[[Path, str], Prediction]:
    """Reads a file of a batch into the row that `medsd score` would make of it: with this user's keys, and alone."""
    from medsd.inference.predict import Study
    from medsd.scoring.batch import read_safely

    @cache
    def decode() -> Helper:  # a process of its own, so that a long batch does not keep single images waiting
        return replace(decoder, keep_image=False).helper()

    def score(path: Path, name: str) -> Prediction:
        image = decode()(path, name)
        said = read_safely(predictor, [Study(image)])[0]
        # What the model sees is picture enough for a row.
        return said if image.pixels is None else replace(said, image=(image.pixels / 255).astype(np.float32))

    return score


class Served:
    """A running app: `server` answers on `local_url` from a thread; `stop` ends the streams of its open pages."""

    def __init__(self, server: uvicorn.Server, local_url: str, stop: Callable[[], None]) -> None:
        self.local_url = local_url
        self._stop = stop
        self._server = server
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        while not server.started and self.running:
            time.sleep(0.01)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def block_thread(self) -> None:
        """Wait until the app is interrupted, then close it."""
        with contextlib.suppress(KeyboardInterrupt):
            while self.running:
                time.sleep(0.1)
        self.close()

    def close(self) -> None:
        """Stop answering, and delete what was uploaded."""
        self._stop()
        self._server.should_exit = True
        self._thread.join(timeout=10)


def launch(
    reader: Reader,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    logins: Mapping[str, str] | None = None,
    quota_gb: float = QUOTA_GB,
) -> Served:
    """Start the server in the background; `Served.close` stops it. Arguments are as in `serve`."""
    prepare_environment()
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from medsd.apps.web.guard import Guard
    from medsd.apps.web.uploads import Uploads
    from medsd.apps.web.visitors import Logins, Visitors
    from medsd.connection import Connection

    uploads = Uploads(Path(os.environ["GRADIO_TEMP_DIR"]), quota=int(quota_gb * 1e9))
    page, app, stop = _gradio_app(reader, uploads, bool(logins))
    known = Logins(logins) if logins else None
    app = Guard(app, page._queue, page.fns, Visitors(), uploads, cookie=f"medsd-{port}", logins=known)
    if is_loopback(host):
        # Another site's name that resolves to this machine (DNS rebinding) is turned away.
        app = TrustedHostMiddleware(app, allowed_hosts=["localhost", "127.0.0.1", host, f"[{host}]", "[::1]", "::1"])
    config = uvicorn.Config(app, host, port, http=Connection, log_level="warning", timeout_graceful_shutdown=2)
    served = Served(uvicorn.Server(config), address_of(host, port), stop)
    if not served.running:
        uploads.close()
        raise port_in_use(host, port)
    return served


def _gradio_app(reader: Reader, uploads: Uploads, login: bool) -> tuple[gr.Blocks, Any, Callable[[], None]]:
    """The page, what answers for it (`Guard` must stand before it), and what ends its streams."""
    import gradio as gr
    from fastapi import FastAPI
    from gradio import queueing, routes

    from medsd.apps.web.app import STYLES, build_page, theme
    from medsd.apps.web.guard import VISITOR
    from medsd.apps.web.uploads import LARGEST_FILE

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_S)
                uploads.sweep()
                _return_memory()

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        uploads.close()

    queueing.traceback = routes.traceback = _Places
    page = build_page(reader, uploads)
    page.queue(max_size=256, default_concurrency_limit=2)
    page.state_session_capacity = SESSIONS
    closed: dict[str, Any] = dict.fromkeys(("docs_url", "redoc_url", "openapi_url"))
    off = dict.fromkeys(("run_history", "show_error", "enable_monitoring", "ssr_mode", "pwa", "mcp_server"), False)
    app = gr.mount_gradio_app(
        FastAPI(lifespan=lifespan, **closed),
        page,
        path="/",
        auth_dependency=(lambda request: request.scope[VISITOR].user) if login else None,
        app_kwargs=closed,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        **off,
        theme=theme(),
        css_paths=STYLES,
    )

    def stop() -> None:
        page.is_running = False
        page._queue.close()
        app.routes[-1].app.stop_event.set()

    return page, app, stop


class _Places:
    """Logs the kind of an error and where it arose; Gradio would print its message, which may quote a file name."""

    @staticmethod
    def print_exc() -> None:
        error = sys.exc_info()[1]
        places = "".join(traceback.format_tb(error.__traceback__)) if error else ""
        log.error("a request failed: %s\n%s", type(error).__name__, places)


def _return_memory() -> None:
    """Give the system back what is free. The C library keeps it between the blocks that live longer."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def prepare_environment() -> None:
    """What Gradio reads from the environment at import: no hub, uploads in a folder of our own."""
    work_offline()
    use_own_caches()
    # Gradio keeps what is known of each event, and makes a table of all of them after each: that many at most.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    global _uploads
    if _uploads is None:
        # Readable by this user only, and gone when the process ends.
        place = os.environ.get("GRADIO_TEMP_DIR")
        _uploads = tempfile.TemporaryDirectory(prefix="medsd-app-", dir=place, ignore_cleanup_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = _uploads.name


_uploads: tempfile.TemporaryDirectory[str] | None = None


def read_logins(path: Path | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Users and their passwords, from a file or from the environment; empty when there is neither.

    Raises SettingsError: the file cannot be read, or a line is not ``user:password``. No line is quoted.
    """
    if path is None:
        text, origin = environment.get(LOGIN_VARIABLE, ""), LOGIN_VARIABLE
    else:
        origin = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: the login file cannot be read ({type(error).__name__})") from None
    logins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, separator, password = line.strip().partition(":")
        if not separator or not user.strip() or len(password) < 8:
            raise SettingsError(f"{origin}, line {number}: write user:password; a password has 8 characters or more")
        logins[user.strip()] = password
    if path is not None and not logins:
        raise SettingsError(f"{path}: the login file is empty; write user:password on a line")
    return logins
