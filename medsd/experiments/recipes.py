"""Whole recipes side by side: the same data, splits, seeds and amount of training, another way of using it.

Every arm, a few settings laid over a base configuration, is trained with every seed. Recipes are chosen on the
validation patients; the test patients are for the one comparison at the end.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.special import expit

from medsd.errors import DataError, SettingsError
from medsd.experiments import engine
from medsd.experiments.settings import RecipesSettings
from medsd.experiments.statistics import compare_pairs, patient_intervals, seed_mean
from medsd.metrics import metrics
from medsd.metrics.intervals import Resamples, bootstrap
from medsd.metrics.metrics import FloatArray, enough, macro
from medsd.metrics.retrieval import Cases, score_queries
from medsd.pipeline.folder import Run
from medsd.pipeline.run import fingerprint_of, run_steps
from medsd.settings import Settings, load_settings
from medsd.studies.manifest import Manifest

log = logging.getLogger(__name__)

TITLES = {
    "auroc": "macro AUROC",
    "average_precision": "macro average precision",
    "micro_f1": "micro-F1",
    "ndcg": "nDCG@10",
}


def compare_recipes(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Train every arm with every seed, resuming where an earlier call stopped, and write the report.

    Overrides (``a.b=c``) whose keys the comparison does not have, as data.root, are laid over all arms.

    Returns:
        The report, <output>/<name>/<name>.md; the figures stand beside it in <name>.results.json.

    Raises:
        SettingsError: the configuration, or an arm laid over the base, does not fit.
        MedsdError: a training failed.
    """
    settings, everyone = engine.load_experiment(RecipesSettings, config, overrides)
    runs = {
        (arm, seed): settings_of(config, settings, everyone, arm, seed)
        for arm in settings.arms
        for seed in settings.seeds
    }
    _prepare(list(runs.values()))
    keys = {each.name: key for key, each in runs.items()}
    for number, (run, _) in enumerate(engine.train_all(_train, list(runs.values()), settings.workers), start=1):
        arm, seed = keys[run.name]
        log.info("%s: %d of %d trained (%s, seed %d)", settings.name, number, len(runs), arm, seed)
    trained = {key: read_trained(Run(each), settings.measured_on, settings.reading) for key, each in runs.items()}
    minimum_positives = next(iter(runs.values())).evaluation.minimum_positives
    return write_report(settings, trained, minimum_positives, engine.exact_command(config, overrides))


def settings_of(config: Path, settings: RecipesSettings, everyone: Sequence[str], arm: str, seed: int) -> Settings:
    """The settings of one arm with one seed; `everyone` is laid over the base for all arms."""
    place = [f"name={arm}-seed{seed}", f"output={json.dumps(str(settings.folder))}", f"seed={seed}"]
    laid = [*settings.common, *everyone, *settings.arms[arm], *place, "training.threads=1", "training.workers=0"]
    try:
        return load_settings(config.parent / settings.base, laid)
    except SettingsError as error:
        raise SettingsError(f"{config}: arm '{arm}': {error}") from None


def _prepare(runs: Sequence[Settings]) -> None:
    """Read the images once for all trainings that read the same ones in the same way."""
    made: dict[str, Run] = {}
    for each in runs:
        name = f"prepare-{fingerprint_of(each, 'prepare')[:12]}"
        if name not in made:
            made[name] = run_steps(each.model_copy(update={"name": name}), until="prepare")
        engine.lend(made[name], Run(each), "prepare")


def _train(settings: Settings) -> None:
    run = run_steps(settings, until="finetune")
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)  # large, and no figure needs it


@dataclass(frozen=True)
class Trained:
    """What one training says of the patients that are measured."""

    logits: npt.NDArray[np.float32]  # (N, F)
    ndcg: npt.NDArray[np.float64]  # (N,) of each study among the training studies, NaN if nothing is relevant
    labels: npt.NDArray[np.float32]  # (N, F), the same in every training
    patients: npt.NDArray[np.str_]  # (N,)
    seconds: float  # of both stages
    threshold: float = 0.5  # one for all findings, where micro-F1 is highest on the validation patients

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(N, F), not calibrated."""
        return expit(self.logits.astype(np.float64))

    def figures(self, minimum_positives: int) -> dict[str, float]:
        """The metrics, by name; findings with fewer positives or negatives are not in the macro figures."""
        probs, thresholds = self.probabilities, np.full(self.labels.shape[1], self.threshold)
        return {
            "auroc": macro(metrics.auroc(self.labels, probs, minimum_positives=minimum_positives)),
            "average_precision": macro(
                metrics.average_precision(self.labels, probs, minimum_positives=minimum_positives)
            ),
            "micro_f1": float(metrics.calls(self.labels, probs, thresholds)["micro_f1"][0]),
            "ndcg": float(self.ndcg[counted].mean()) if (counted := ~np.isnan(self.ndcg)).any() else float("nan"),
        }


def read_trained(run: Run, part: str, reading: str = "all") -> Trained:
    """What a fine-tuned run says of the patients of `part`, train, validation or test."""
    manifest, outputs = Manifest.read(run.manifest), load_file(run.outputs)
    # A model of one modality has no outputs of a part.
    logits = outputs.get(f"logits_{reading}", outputs["logits"])
    embeddings = outputs.get(f"embeddings_{reading}", outputs["embeddings"])
    train, rows, chosen = manifest.rows("train"), manifest.rows(part), manifest.rows("validation")

    def cases(which: npt.NDArray[np.int64]) -> Cases:
        return Cases(embeddings[which], manifest.labels[which], manifest.patients[which])

    history = json.loads((run.folder / "history.json").read_text(encoding="utf-8"))
    # A finding that was not taught would add chance to every mean.
    labels = np.where(enough(manifest.labels[train], 1), manifest.labels, np.float32(np.nan))
    return Trained(
        logits[rows],
        score_queries(cases(rows), cases(train)).ndcg,
        labels[rows],
        manifest.patients[rows],
        sum(stage["seconds"] for stage in history.values()),
        best_threshold(labels[chosen], logits[chosen]),
    )


def best_threshold(labels: npt.NDArray[np.floating], logits: npt.NDArray[np.floating]) -> float:
    """The probability that, as the one threshold of all findings, gives the highest micro-F1 on labels (N, F)."""
    known = ~np.isnan(labels)
    target, probs = labels[known] == 1, expit(logits[known].astype(np.float64))
    order = np.argsort(-probs, kind="stable")
    right, called = np.cumsum(target[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(probs[order]) != 0, True)  # equal probabilities are called together
    f1 = np.where(last, 2 * right / np.maximum(called + target.sum(), 1), -1.0)
    return float(probs[order][int(f1.argmax())])


def patient_difference(
    first: Sequence[Trained], second: Sequence[Trained], minimum_positives: int, resamples: int, confidence: float
) -> dict[str, dict[str, Any]]:
    """How much better `first` is than `second` over resampled patients, each the mean over its seeds."""
    labels, patients = first[0].labels.astype(np.float64), first[0].patients
    told, drawn = enough(labels, minimum_positives), Resamples.draw(patients, resamples)

    def macro_auroc(one: Trained, weights: FloatArray) -> FloatArray:
        return metrics.weighted_aurocs(labels[:, told], one.logits[:, told].astype(np.float64), weights).mean(axis=1)

    def micro_f1(one: Trained, weights: FloatArray) -> FloatArray:
        thresholds = np.full(labels.shape[1], one.threshold)
        return metrics.weighted_calls(labels, one.probabilities, weights, thresholds)["micro_f1"][:, 0]

    def interval(figure: Callable[[Trained, FloatArray], FloatArray]) -> dict[str, Any]:
        def lead(weights: FloatArray) -> FloatArray:
            means = [np.mean([figure(one, weights) for one in trained], axis=0) for trained in (first, second)]
            return (means[0] - means[1])[:, None]

        return bootstrap(lead, drawn, confidence)[0].model_dump()

    gain = np.mean([one.ndcg for one in first], axis=0) - np.mean([one.ndcg for one in second], axis=0)
    counted = ~np.isnan(gain)
    (ndcg,) = patient_intervals(gain[counted, None], patients[counted], resamples, confidence)
    return {
        "auroc": interval(macro_auroc),
        "micro_f1": interval(micro_f1),
        "ndcg": {"value": ndcg.mean, "low": ndcg.low, "high": ndcg.high},
    }


def write_report(
    settings: RecipesSettings, trained: dict[tuple[str, int], Trained], minimum_positives: int, command: str
) -> Path:
    """Write <name>.md and <name>.results.json into the comparison's folder; returns the Markdown file.

    Raises DataError: no finding has enough positives and negatives to tell anything.
    """
    one = next(iter(trained.values()))
    told = int(enough(one.labels, minimum_positives).sum())
    if not told:
        raise DataError(
            f"{settings.name}: no finding has {minimum_positives} positives and negatives among the "
            f"{settings.measured_on} patients; take more data, or lower evaluation.minimum_positives"
        )
    reference, rivals = settings.reference, [arm for arm in settings.arms if arm != settings.reference]
    of_arm = {arm: [trained[arm, seed] for seed in settings.seeds] for arm in settings.arms}
    figures = {arm: [each.figures(minimum_positives) for each in of_arm[arm]] for arm in settings.arms}
    values = {arm: {name: [each[name] for each in figures[arm]] for name in TITLES} for arm in settings.arms}
    over_seeds = {}
    for name in TITLES:
        pairs = [(values[reference][name], values[arm][name]) for arm in rivals]
        found = compare_pairs(pairs, settings.confidence)
        over_seeds[name] = {
            arm: {**asdict(each.difference), "p": each.p, "p_holm": each.p_holm}
            for arm, each in zip(rivals, found, strict=True)
        }
    tree = {
        "command": command,
        "settings": settings.model_dump(mode="json", exclude={"output", "workers"}),
        "measured": {
            "studies": len(one.labels),
            "patients": len(np.unique(one.patients)),
            "findings": told,
            "minimum_positives": minimum_positives,
        },
        "values": values,
        "seconds": {arm: [each.seconds for each in of_arm[arm]] for arm in settings.arms},
        "over_seeds": over_seeds,
        "over_patients": {
            arm: patient_difference(
                of_arm[reference], of_arm[arm], minimum_positives, settings.bootstrap, settings.confidence
            )
            for arm in rivals
        },
        "means": {
            name: {arm: asdict(seed_mean(values[arm][name], settings.confidence)) for arm in settings.arms}
            for name in TITLES
        },
    }
    return engine.write_report("recipes.md.j2", settings.folder / settings.name, tree, titles=TITLES)
