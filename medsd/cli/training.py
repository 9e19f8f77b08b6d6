"""The verbs that train: the run and its steps, comparisons, the search for hyper-parameters."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd.cli import bundles
from medsd.cli.options import Config, Set, Where, Workers, requiring
from medsd.errors import MedsdError

if TYPE_CHECKING:
    from medsd.pipeline.folder import Run


def train(config: Config, set_: Set = None) -> None:
    """Every step from the data to a bundle; resumes where it stopped.

    Example: medsd train configs/nih14.yaml --set data.root=/data/nih14
    """
    _run(config, set_, "index", again=False)


def prepare(config: Config, set_: Set = None) -> None:
    """Read the data set, split it by patient, decode its images.

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
    studies: bundles.Studies = None,
    out: Annotated[Path | None, typer.Option(help="folder for the report on a bundle")] = None,
    split: bundles.Split = None,
    against: Annotated[Path | None, typer.Option(help="another bundle, compared on the same studies")] = None,
    workers: Workers = 1,
    provider: Where = "auto",
    set_: Set = None,
) -> None:
    """Measure the test patients of a run, with intervals; or a bundle on other studies, and say what has moved.

    Example: medsd evaluate configs/phantom.yaml

    Example: medsd evaluate models/nih14 --studies configs/covid.yaml --set data.root=/data/covid --out report
    """
    if config.is_dir():
        bundles.evaluate_elsewhere(
            config, studies, out, set_ or (), split=split, against=against, provider=provider, workers=workers
        )
        return
    if any(option is not None for option in (studies, out, split, against)):
        raise MedsdError(
            f"{config} is not a bundle; --studies, --out, --split and --against go with the folder of a bundle"
        )
    _run(config, set_, "evaluate")


def export(
    config: Annotated[Path | None, typer.Argument(help="configuration; leave out with --bundle")] = None,
    set_: Set = None,
    bundle: Annotated[Path | None, typer.Option(help="a finished bundle to write in another form")] = None,
    triton: Annotated[Path | None, typer.Option(help="also as a model repository of Triton, in this folder")] = None,
    monai_bundle: Annotated[Path | None, typer.Option(help="also in MONAI's bundle form, in this folder")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="write the reference readings of medsd verify into the bundle again")
    ] = False,
) -> None:
    """Write the bundle, when ONNX agrees with PyTorch; or a finished one as Triton or MONAI take it.

    Example: medsd export configs/phantom.yaml --set bundle.version=2

    Example: medsd export --bundle models/nih14 --triton /models

    Example: medsd export --bundle models/nih14 --reference
    """
    if (config is None) == (bundle is None):
        raise typer.BadParameter("give a configuration or --bundle FOLDER, one of the two")
    if bundle is not None and not (triton or monai_bundle or reference):
        raise typer.BadParameter("--bundle needs --triton FOLDER, --monai-bundle FOLDER or --reference")
    if config is not None:
        bundle = _run(config, set_, "export").bundle
    assert bundle is not None
    bundles.write_forms(bundle, triton, monai_bundle, reference)


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

    with requiring("train", "comparing"):
        if "arms" in top_level_keys(config):
            from medsd.experiments.recipes import compare_recipes as run_comparison
        else:
            from medsd.experiments.compare.run import compare as run_comparison
    print(f"compare: done, see {run_comparison(config, set_ or ())}")


def tune(config: Config, set_: Set = None) -> None:
    """Search for hyper-parameters, measured on the validation patients: a report and the best settings; resumes.

    Example: medsd tune configs/tune/nih14.yaml --set data.root=/data/nih14
    """
    with requiring("train,tune", "tuning"):
        from medsd.experiments.tune import tune as run_search
    print(f"tune: done, see {run_search(config, set_ or ())}")


def _run(config: Path, overrides: list[str] | None, until: str, *, again: bool = True) -> "Run":
    from medsd.settings import load_settings

    settings = load_settings(config, overrides or ())
    with requiring("train", "training"):
        from medsd.pipeline.run import run_steps
    run = run_steps(settings, until, again=again)
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks
        print(f"{until}: done, see {run.bundle if until in ('export', 'index') else run.folder}")
        if until == "evaluate":
            bundles.print_retrieval(run.evaluation)
    return run


VERBS = (train, prepare, pretrain, finetune, calibrate, evaluate, export, index, compare, tune)
