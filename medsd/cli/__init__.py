"""The command `medsd`: a short function for each verb, which imports what it needs when it runs.

Exit status: 0 done, 1 some inputs were refused and `--strict` was given, or `verify` found a difference, 2 bad usage or
input (one clear line), 130 interrupted.
"""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from medsd.cli import bundles, cases, hospital, reading, scoring, site, training
from medsd.errors import MedsdError

app = typer.Typer(
    help="Multi-label reading of chest radiographs with clinical notes. Research software, no medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cases.app, name="cases")
for _verb in (scoring.score, *reading.VERBS, *training.VERBS, *bundles.VERBS, *site.VERBS, *hospital.VERBS):
    app.command()(_verb)

_INTERRUPTED = 130
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@app.callback()
def _begin() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MedsdError("the working folder was removed; change to one that exists") from None


def main() -> None:
    """Entry point: an error that a person can act on becomes one line and exit status 2."""
    from medsd.privacy import install_log_filter
    from medsd.telemetry import use_own_caches

    use_own_caches()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("ignite", "monai", "onnxscript", "onnx_ir", "torch", "httpx", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    install_log_filter()
    try:
        status = app(standalone_mode=False)
        if status == _INTERRUPTED:  # typer makes an exit status of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status)
    except MedsdError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{where}{os.strerror(error.errno or 0)}; what was finished is kept: make room, then go on (score --resume)"
        )
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was finished is kept", _INTERRUPTED)
    except Exception as error:
        # Wrong usage: typer carries its own copy of click and exports no name for these.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        sys.exit(error.exit_code)


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"medsd: {message}", file=sys.stderr)
    sys.exit(status)
