"""Score radiographs into a table: `python -m medsd.apps.score_dicom BUNDLE PATH… --out results.csv`.

A thin script over `medsd.scoring.batch.score`, for schedulers and shell loops that want no more than that; `medsd
score` does the same and more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from medsd.errors import MedsdError
from medsd.inference.providers import PrecisionChoice, ProviderChoice

_EXAMPLE = (
    "example: python -m medsd.apps.score_dicom models/nih14 films/ 'more/*.dcm' --out results.parquet --workers 4"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        exit status: 0 done, 1 some inputs were refused and --strict is set, 2 for bad usage or input, 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    from medsd.privacy import install_log_filter
    from medsd.scoring.batch import score
    from medsd.settings import load_gate

    install_log_filter()
    try:
        summary = score(
            arguments.bundle,
            arguments.paths,
            arguments.out,
            notes=arguments.notes,
            workers=arguments.workers,
            batch_size=arguments.batch_size,
            resume=arguments.resume,
            provider=arguments.provider,
            precision=arguments.precision,
            require_gpu=arguments.require_gpu,
            policy=load_gate(arguments.gate, arguments.set or ()),
            coverage=arguments.coverage,
            progress=not arguments.quiet,
        )
    except MedsdError as error:
        print(f"score_dicom: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"score_dicom: {error.strerror}; what was finished is kept, --resume goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("score_dicom: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    print(json.dumps(summary.as_dict()) if arguments.json else summary.line())
    return 1 if arguments.strict and summary.refused else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="score_dicom", description="Score radiographs into a table.", epilog=_EXAMPLE)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("paths", type=Path, nargs="+", help="files, folders, patterns, ZIP archives, @lists, or -")
    parser.add_argument("--out", type=Path, required=True, help="the table: .csv, .parquet or .jsonl")
    parser.add_argument("--notes", type=Path, help="CSV with the columns path (or file name) and note")
    parser.add_argument("--workers", type=_positive, default=2, help="processes that decode (default 2)")
    parser.add_argument("--batch-size", type=_positive, default=8, help="films in one run of the model (default 8)")
    parser.add_argument("--coverage", type=float, help="conformal calls that hold the truth of this share, e.g. 0.9")
    parser.add_argument("--resume", action="store_true", help="keep the rows that an earlier run finished")
    parser.add_argument("--provider", choices=get_args(ProviderChoice), default="auto", help="where the model runs")
    parser.add_argument("--precision", choices=get_args(PrecisionChoice), default="auto", help="its numbers")
    parser.add_argument("--require-gpu", action="store_true", help="fail rather than run on the CPU")
    parser.add_argument("--gate", type=Path, help="what the gate refuses: configs/gate/default.yaml, changed")
    parser.add_argument("--set", action="append", help="override the gate: --set gate.view=warn")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when an input was refused")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
