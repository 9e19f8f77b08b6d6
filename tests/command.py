"""`medsd` as its entry point runs it, in this process: one of its own would first import what this one has."""

import io
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

import pytest

from medsd.cli import main


def medsd(*arguments: object) -> CompletedProcess[str]:
    """Run ``medsd ARGUMENTS…``: its exit status, and what it said, log and all."""
    words, out, err, log = [*map(str, arguments)], io.StringIO(), io.StringIO(), logging.getLogger()
    level = log.level
    log.setLevel(logging.INFO)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["medsd", *words])
            patch.setattr(log, "handlers", [logging.StreamHandler(err)])
            with pytest.raises(SystemExit) as ended:
                main()
    finally:
        log.setLevel(level)
    return CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())
