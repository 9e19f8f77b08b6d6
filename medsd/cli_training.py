"""The verbs of `medsd` that train: the run and its steps, comparisons, the search for hyper-parameters.

Those that a bundle alone is enough for stand in `medsd.cli_bundles`.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd import cli_bundles
from medsd.errors import DependencyError, MedsdError

if TYPE_CHECKING:
    from medsd.pipeline.folder import Run


class Provider(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    openvino = "openvino"


Config = Annotated[Path, typer.Argument(help="configuration, for instance configs/nih14.yaml")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a setting: --set data.root=FOLDER")]
Where = Annotated[Provider, typer.Option(help="where the model runs")]


def train(config: Config, set_: Set = None) -> None:
    """Every step from the data to a bundle; resumes where it stopped.

    Example: medsd train configs/nih14.yaml --set data.root=/data/nih14
    """
    _run(config, set_, "index", again=False)


def prepare(config: Config, set_: Set = None) -> None:
    """Read the data set, split it by patient, decode its films.

    Example: medsd prepare configs/nih14.yaml --set data.root=/data/nih14
    """
    _run(config, set_, "prepare")


def pretrain(config: Config, set_: Set = None) -> None:
    """Pretrain the encoders with the SD loss (after the steps before it).

    Example: medsd pretrain configs/phantom.yaml --set training.pretrain.epochs=20
    """
    _run(config, set_, "pretrain", again=False)


def finetune(config: Config, set_: Set = None) -> None:
    """Fine-tune the classifier (after the steps before it).

    Example: medsd finetune configs/phantom.yaml
    """
    _run(config, set_, "finetune", again=False)


def calibrate(config: Config, set_: Set = None) -> None:
    """Choose calibration and operating points on the validation patients.

    Example: medsd calibrate configs/phantom.yaml
    """
    _run(config, set_, "calibrate")


def evaluate(
    config: Annotated[Path, typer.Argument(help="configuration of a run; or the folder of a bundle, with --studies")],
    studies: cli_bundles.Studies = None,
    out: Annotated[Path | None, typer.Option(help="folder for the report on a bundle")] = None,
    split: cli_bundles.Split = None,
    workers: cli_bundles.Workers = 1,
    provider: Where = Provider.auto,
    set_: Set = None,
) -> None:
    """Measure the test patients of a run, with intervals; or a bundle on other studies, and say what has moved.

    Example: medsd evaluate configs/phantom.yaml

    Example: medsd evaluate models/nih14 --studies configs/covid.yaml --set data.root=/data/covid --out report
    """
    if cli_bundles.is_bundle(config):
        cli_bundles.evaluate_elsewhere(
            config, studies, out, set_ or (), split=split, provider=provider.value, workers=workers
        )
        return
    if studies is not None or out is not None or split is not None:
        raise MedsdError(f"{config} is no bundle; --studies, --out and --split belong to the folder of a bundle")
    _run(config, set_, "evaluate")


def export(
    config: Annotated[Path | None, typer.Argument(help="configuration; leave out with --bundle")] = None,
    set_: Set = None,
    bundle: Annotated[Path | None, typer.Option(help="a finished bundle to write in another form")] = None,
    triton: Annotated[Path | None, typer.Option(help="also as a model repository of Triton, in this folder")] = None,
    monai_bundle: Annotated[Path | None, typer.Option(help="also in MONAI's bundle form, in this folder")] = None,
) -> None:
    """Write the bundle, when ONNX agrees with PyTorch; or a finished one as Triton or MONAI take it.

    Example: medsd export configs/phantom.yaml --set bundle.version=2

    Example: medsd export --bundle models/nih14 --triton /models
    """
    if (config is None) == (bundle is None):
        raise typer.BadParameter("give a configuration or --bundle FOLDER, one of the two")
    if bundle is not None and not (triton or monai_bundle):
        raise typer.BadParameter("--bundle needs --triton FOLDER or --monai-bundle FOLDER")
    if config is not None:
        bundle = _run(config, set_, "export").bundle
    from medsd.bundle.layout import Bundle

    if triton or monai_bundle:
        opened = Bundle.open(bundle or "")
        if triton:
            from medsd.export.triton import write_repository

            print(f"triton: {write_repository(opened, triton)}")
        if monai_bundle:
            try:
                from medsd.export.monai_bundle import write_monai_bundle
            except ModuleNotFoundError as error:
                raise DependencyError(
                    f"MONAI's form needs {error.name}; install it with: pip install 'medsd[train]'"
                ) from None
            print(f"monai bundle: {write_monai_bundle(opened, monai_bundle)}")


def index(config: Config, set_: Set = None) -> None:
    """Fill the bundle's index with the training cases.

    Example: medsd index configs/phantom.yaml
    """
    _run(config, set_, "index")


def compare(config: Config, set_: Set = None) -> None:
    """Losses, or whole recipes, side by side under equal conditions: a report with intervals and tests; resumes.

    Example: medsd compare configs/compare/yeast.yaml --set root=/data/mulan
    """
    from medsd.strict import top_level_keys

    try:
        if "arms" in top_level_keys(config):
            from medsd.experiments.recipes import compare_recipes as run_comparison
        else:
            from medsd.experiments.compare.run import compare as run_comparison
    except ModuleNotFoundError as error:
        raise DependencyError(f"comparing needs {error.name}; install it with: pip install 'medsd[train]'") from None
    print(f"compare: done, see {run_comparison(config, set_ or ())}")


def tune(config: Config, set_: Set = None) -> None:
    """Search for hyper-parameters, measured on the validation patients: a report and the best settings; resumes.

    Example: medsd tune configs/tune/nih14.yaml --set data.root=/data/nih14
    """
    try:
        from medsd.experiments.tune import tune as run_search
    except ModuleNotFoundError as error:
        raise DependencyError(f"tuning needs {error.name}; install it with: pip install 'medsd[train,tune]'") from None
    print(f"tune: done, see {run_search(config, set_ or ())}")


def _run(config: Path, overrides: list[str] | None, until: str, *, again: bool = True) -> Run:
    from medsd.settings import load_settings

    settings = load_settings(config, overrides or ())
    try:
        from medsd.pipeline.run import run_steps
    except ModuleNotFoundError as error:
        raise DependencyError(f"training needs {error.name}; install it with: pip install 'medsd[train]'") from None
    run = run_steps(settings, until, again=again)
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks
        print(f"{until}: done, see {run.bundle if until in ('export', 'index') else run.folder}")
        if until == "evaluate":
            cli_bundles.print_retrieval(run.evaluation)
    return run


VERBS = (
    train,
    prepare,
    pretrain,
    finetune,
    calibrate,
    evaluate,
    cli_bundles.recalibrate,
    cli_bundles.card,
    export,
    index,
    compare,
    tune,
)
