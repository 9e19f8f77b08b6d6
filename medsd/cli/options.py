"""What several verbs share: options, how a result is printed, and what a missing package leads to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from medsd.errors import DependencyError

if TYPE_CHECKING:
    from medsd.dicom.policy import GatePolicy

# As in `medsd.inference.providers`, whose import takes seconds.
Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
Precision = Literal["auto", "float32", "float16", "int8"]

Config = Annotated[Path, typer.Argument(help="configuration, for instance configs/nih14.yaml")]
BundleFolder = Annotated[Path, typer.Argument(help="folder of a bundle, for instance models/nih14")]
Inputs = Annotated[list[Path], typer.Argument(help="files, folders, patterns, or text lists of paths")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a setting: --set data.root=FOLDER")]
Gate = Annotated[Path | None, typer.Option(help="what the gate refuses: configs/gate/default.yaml, changed")]
GateSet = Annotated[list[str] | None, typer.Option("--set", help="override the gate: --set gate.view=warn")]
Where = Annotated[Provider, typer.Option(help="where the model runs")]
Digits = Annotated[
    Precision, typer.Option(help="the number format the model computes in; auto: float16 on a GPU, else float32")
]
Coverage = Annotated[
    float | None,
    typer.Option(help="conformal calls that hold the truth in this share of cases, such as 0.9; else operating points"),
]
Workers = Annotated[int, typer.Option(min=1, help="processes that decode; 1 is this process, without limits")]
Elsewhere = Annotated[str | None, typer.Option("--index", help="the index, where it is not in the bundle")]
NotesTable = Annotated[Path | None, typer.Option(help="CSV with the columns path (or file name) and note")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


class Reportable(Protocol):
    """What a verb did, for programs and for people."""

    def as_dict(self) -> dict[str, Any]: ...

    def line(self) -> str: ...


def print_summary(summary: Reportable, as_json: bool) -> None:
    """One line for a person, or JSON for a program."""
    print(json.dumps(summary.as_dict()) if as_json else summary.line())


def read_gate(path: Path | None, overrides: list[str] | None) -> "GatePolicy":
    """The policy of --gate and --set."""
    from medsd.settings import load_gate

    return load_gate(path, overrides or ())


@contextmanager
def requiring(extra: str, what: str) -> Iterator[None]:
    """Turn a missing package into one line that says how to install it.

    Raises DependencyError: a package of `extra`, which `what` needs, is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # a package is there and failed: not for us to say which to install
            raise
        raise DependencyError(f"{what} needs {error.name}; install it with: pip install 'medsd[{extra}]'") from None
