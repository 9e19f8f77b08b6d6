"""Score radiographs into a table: `python -m medsd.apps.score_dicom BUNDLE PATH… --out results.csv`.

A thin script over `medsd.scoring.batch.score`, for schedulers and shell loops that want no more than that; `medsd
score` does the same and more.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from medsd.errors import MedsdError
from medsd.inference.providers import PrecisionChoice, ProviderChoice

_EXAMPLE = "example: python -m medsd.apps.score_dicom models/nih14 images/ 'more/*.dcm' --out results.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with `argv`, by default the arguments of the process; returns the exit status.

    It is 0 when done, 1 if inputs were refused and --strict is set, 2 for bad usage or input, 130 when interrupted.
    """
    arguments = vars(_parser().parse_args(argv))
    gate, overrides, strict, as_json = (arguments.pop(name) for name in ("gate", "set", "strict", "json"))
    from medsd.privacy import install_log_filter
    from medsd.scoring.batch import score
    from medsd.scoring.request import ScoringRequest
    from medsd.settings import load_gate

    install_log_filter()
    try:
        summary = score(ScoringRequest(**arguments, policy=load_gate(gate, overrides or ())))
    except MedsdError as error:
        print(f"score_dicom: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"score_dicom: {error.strerror}; what was finished is kept, --resume goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("score_dicom: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    print(json.dumps(summary.as_dict()) if as_json else summary.line())
    return 1 if strict and summary.refused else 0


def _parser() -> argparse.ArgumentParser:
    """The arguments; but for the last lines they are those of `medsd.scoring.batch.score` by name."""
    parser = argparse.ArgumentParser(prog="score_dicom", description="Score radiographs into a table.", epilog=_EXAMPLE)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of the bundle")
    add("inputs", metavar="paths", type=Path, nargs="+", help="files, folders, patterns, ZIP archives, @lists, or -")
    add("--out", type=Path, required=True, help="the table: .csv, .parquet or .jsonl")
    add("--notes", type=Path, help="CSV with the columns path (or file name) and note")
    add("--workers", type=_positive, default=2, help="processes that decode (default 2)")
    add("--batch-size", type=_positive, default=8, help="images in one run of the model (default 8)")
    add("--coverage", type=float, help="conformal calls that hold the truth in this share of cases, such as 0.9")
    add("--resume", action="store_true", help="keep the rows that an earlier run finished")
    add("--provider", choices=get_args(ProviderChoice), default="auto", help="where the model runs")
    add("--precision", choices=get_args(PrecisionChoice), default="auto", help="number format of the model")
    add("--require-gpu", action="store_true", help="fail rather than run on the CPU")
    add("--quiet", dest="progress", action="store_false", help="no progress")
    add("--gate", type=Path, help="what the gate refuses: configs/gate/default.yaml, changed")
    add("--set", action="append", help="override the gate: --set gate.view=warn")
    add("--strict", action="store_true", help="exit with 1 when an input was refused")
    add("--json", action="store_true", help="print the summary as JSON")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
