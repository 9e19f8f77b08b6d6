"""Few labels: pseudo-labels against labels alone, and suggested studies against random ones, on frozen features.

Run `python -m tests.bench.bench_labels --root FOLDER` (FOLDER has nih_cxr/, or is NIH's own folder); some minutes on
two cores. Writes `labels.md` and `labels.results.json` into --out. What is compared is decided on validation patients
from the few named candidates below; the test patients are looked at once. Every choice, draw and training is seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.experiments.compare import training
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.radiographs import read_radiographs
from medsd.experiments.compare.settings import BudgetSettings, CompareSettings, LossVariant, Trial
from medsd.experiments.statistics import Comparison, compare_pairs, seed_mean
from medsd.labelling.suggest import Pool, Weights, suggest
from medsd.metrics.intervals import Interval, Resamples, bootstrap
from medsd.metrics.metrics import auroc, enough, macro, weighted_auroc
from medsd.training.pseudo_labels import pseudo_labelled

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Probs = npt.NDArray[np.float32]

CONFIDENCE, RESAMPLES, FEW = 0.95, 2000, 10
FEW_VALIDATION = 5
LABELLED = 0.1  # share of the training patients whose films are all labelled, for the pseudo-labels
BUDGETS = (0.05, 0.10, 0.15, 0.20)  # films labelled, one a patient, as a share of the training patients
DIMENSIONS = 128  # principal components of the features, of the training films without their labels
STEPS = 100  # of the SD pretraining and as many of the fine-tuning after it
PRETRAIN, FINETUNE = Trial(0.003, 0.01, 0.2), Trial(0.003, 0.01, None)
BUDGET = BudgetSettings(hidden=128, embedding=64, projection=32, dropout=0.5, corruption=0.3, views=2, batch_size=64)

Rule = Callable[[Probs, Floats], Floats]
CAP: Mapping[str, tuple[float, float]] = {"CAP, η 1 and 1": (1.0, 1.0), "CAP, η 0.5 and 0.5": (0.5, 0.5)}
FIXED: Mapping[str, tuple[float, float]] = {"fixed, 0.5 and 0.05": (0.5, 0.05), "fixed, 0.95 and 0.05": (0.95, 0.05)}
ROUNDS = (1, 2)
# How studies are chosen, and whether the diversity is that of the learned space or of the frozen features.
CHOICES: Mapping[str, tuple[Weights, bool]] = {
    "uncertainty × diversity × rarity, drawn": (Weights(), True),
    "uncertainty² × diversity of the features, drawn": (Weights(uncertainty=2, rarity=0, finding_power=1), False),
    "uncertainty, greedy": (Weights(diversity=0, rarity=0, draw="greedy"), True),
}


@dataclass(frozen=True)
class Bench:
    """The films of one stage: labelled ones come from `train`, figures from `held`.

    Attributes:
        inputs: (N, V, DIMENSIONS); data: the set behind it.
        train, held: rows.
    """

    inputs: Floats
    data: LabelledSet
    train: Rows
    held: Rows

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """The patient of each film."""
        return self.data.patients

    def fit(self, rows: Rows, labels: Floats, seed: int, steps: int = STEPS) -> training.Network:
        """SD pretraining, then cross-entropy, on films `rows` with `labels` (n, F): `steps` each, whatever n."""
        epochs = max(1, round(steps / math.ceil(len(rows) / BUDGET.batch_size)))
        budget, inputs = BUDGET.model_copy(update={"epochs": epochs}), self.inputs[rows]
        first = training.train(LossVariant(loss="sd"), PRETRAIN, inputs, labels, budget, seed)
        return training.train(LossVariant(loss="bce"), FINETUNE, inputs, labels, budget, seed, start=first)

    def probs(self, network: training.Network, rows: Rows) -> Probs:
        """(n, F), the mean over the views of each film."""
        views = [self.inputs[rows][:, [view]] for view in range(self.inputs.shape[1])]
        return np.mean([training.head_probabilities(network, training.embed(network, view)) for view in views], axis=0)

    def places(self, network: training.Network | None, rows: Rows) -> npt.NDArray[np.float64]:
        """(n, E) of unit length, in the learned space of the network, or where the features are."""
        found = (self.inputs[rows, 0] if network is None else training.embed(network, self.inputs[rows])).astype(float)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def prepare(data: LabelledSet, train: Rows, held: Rows) -> Bench:
    """Features reduced to the principal components of the training films; the means and scales are theirs, too."""
    inputs = data.inputs(train)
    flat = inputs[train].reshape(-1, inputs.shape[2])
    _, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    reduced = inputs @ axes[:, : -DIMENSIONS - 1 : -1]
    return Bench((reduced / reduced[train].std((0, 1)).mean()).astype(np.float32), data, train, held)


def pseudo_label_runs(bench: Bench, seed: int, rules: Mapping[str, Rule], rounds: int) -> dict[str, Probs]:
    """Labels alone, and each rule after each round, by name: probabilities of the held films."""
    rng, names = np.random.default_rng(seed), np.unique(bench.patients[bench.train])
    drawn = rng.choice(names, round(LABELLED * len(names)), replace=False)
    labelled = bench.train[np.isin(bench.patients[bench.train], drawn)]
    known = np.full_like(bench.data.labels, np.nan)
    known[labelled] = bench.data.labels[labelled]
    teacher = bench.fit(labelled, known[labelled], seed)
    found = {"labels alone": bench.probs(teacher, bench.held)}
    for number in range(1, rounds + 1):
        longer = bench.fit(labelled, known[labelled], seed, STEPS * (number + 1))
        found[f"labels alone, steps of {number + 1}"] = bench.probs(longer, bench.held)
    for name, rule in rules.items():
        network = teacher
        for number in range(1, rounds + 1):
            taught = rule(bench.probs(network, bench.train), known[bench.train])
            network = bench.fit(bench.train, taught, seed + 1000 * number)
            found[f"{name}, round {number}"] = bench.probs(network, bench.held)
    return found


def active_runs(bench: Bench, seed: int, choices: Mapping[str, tuple[Weights, bool]]) -> dict[str, Probs]:
    """Random choice, and each of `choices`, at each budget, by name: probabilities of the held films."""
    found = {}
    for name, choice in {"random": None, **choices}.items():
        for budget, probs in zip(BUDGETS, _active(bench, seed, choice), strict=True):
            found[f"{name} @{budget:.2f}"] = probs
    return found


def _active(bench: Bench, seed: int, choice: tuple[Weights, bool] | None) -> list[Probs]:
    rng, patients = np.random.default_rng(seed), len(np.unique(bench.patients[bench.train]))
    labelled, found = _random(bench, bench.train, round(BUDGETS[0] * patients), rng), []
    for budget in (*BUDGETS[1:], None):
        network = bench.fit(labelled, bench.data.labels[labelled], seed)
        found.append(bench.probs(network, bench.held))
        if budget is None:
            break
        count = round(budget * patients) - len(labelled)
        open_ = bench.train[~np.isin(bench.patients[bench.train], bench.patients[labelled])]
        chosen = (
            _random(bench, open_, count, rng)
            if choice is None
            else _suggested(bench, network, labelled, open_, count, seed, *choice)
        )
        labelled = np.concatenate([labelled, chosen])
    return found


def _random(bench: Bench, rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """One film each of `count` patients, the films in random order."""
    order = rng.permutation(rows)
    _, first = np.unique(bench.patients[order], return_index=True)
    return order[np.sort(first)][:count]


def _suggested(
    bench: Bench,
    network: training.Network,
    labelled: Rows,
    open_: Rows,
    count: int,
    seed: int,
    weights: Weights,
    learned: bool,
) -> Rows:
    known = bench.data.labels[labelled].astype(np.float64)
    space = network if learned else None
    pool = Pool(
        bench.probs(network, open_).astype(np.float64),
        bench.places(space, open_),
        bench.patients[open_],
        known,
        bench.places(space, labelled),
    )
    return open_[[each.row for each in suggest(pool, count, seed=seed, weights=weights)]]


# -- many seeds, in two processes --------------------------------------------------------------------------------------

_BENCH: Bench | None = None


def _set_up(bench: Bench) -> None:
    import torch

    global _BENCH
    torch.set_num_threads(1)
    _BENCH = bench


def _rules(names: Sequence[str]) -> dict[str, Rule]:
    def cap(positive: float, negative: float) -> Rule:
        return lambda probs, known: pseudo_labelled(probs, known, positive=positive, negative=negative)

    def fixed(present: float, absent: float) -> Rule:
        return lambda probs, known: np.select(
            [~np.isnan(known), probs >= present, probs <= absent], [known, 1, 0], np.nan
        )

    return {name: cap(*CAP[name]) if name in CAP else fixed(*FIXED[name]) for name in names}


def _one(seed: int, rules: tuple[str, ...], rounds: int, choices: tuple[str, ...]) -> dict[str, Probs]:
    assert _BENCH is not None
    found = pseudo_label_runs(_BENCH, seed, _rules(rules), rounds)
    return found | active_runs(_BENCH, seed, {name: CHOICES[name] for name in choices})


def run_seeds(
    bench: Bench, seeds: Sequence[int], rules: Sequence[str], rounds: int, choices: Sequence[str], workers: int
) -> dict[str, list[Probs]]:
    """By arm, the probabilities of the held films for each seed."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _set_up, (bench,)) as processes:
        waiting = [processes.submit(_one, seed, tuple(rules), rounds, tuple(choices)) for seed in seeds]
        each = []
        for seed, future in zip(seeds, waiting, strict=True):
            each.append(future.result())
            print(f"seed {seed}: done", flush=True)
    return {name: [found[name] for found in each] for name in each[0]}


def areas(bench: Bench, arms: Mapping[str, Sequence[Probs]], minimum_positives: int) -> dict[str, list[float]]:
    """Macro AUROC of each arm and seed on the held films."""
    truth = bench.data.labels[bench.held]
    return {
        name: [macro(auroc(truth, probs, minimum_positives=minimum_positives)) for probs in seeds]
        for name, seeds in arms.items()
    }


def over_patients(bench: Bench, first: Sequence[Probs], second: Sequence[Probs]) -> Interval:
    """Bootstrap of the test patients of the difference in macro AUROC, each the mean over its seeds."""
    truth = bench.data.labels[bench.held].astype(np.float64)
    told = np.flatnonzero(enough(truth, FEW))

    def mean_area(seeds: Sequence[Probs], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.mean(
            [weighted_auroc(truth[:, f], probs[:, f].astype(np.float64), weights) for probs in seeds for f in told],
            axis=0,
        )

    return bootstrap(
        lambda weights: (mean_area(first, weights) - mean_area(second, weights))[:, None],
        Resamples.draw(bench.patients[bench.held], RESAMPLES),
        CONFIDENCE,
    )[0]


# -- what is chosen, and the report ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """What won on validation: a rule of each kind with its rounds, and a choice of studies."""

    cap: tuple[str, int]
    fixed: tuple[str, int]
    choice: str


def choose(figures: Mapping[str, Sequence[float]]) -> Chosen:
    """The candidates with the best mean macro AUROC on validation; of `CHOICES` at the largest budget."""

    def best(names: Mapping[str, Any]) -> tuple[str, int]:
        pairs = [(name, number) for name in names for number in ROUNDS]
        return max(pairs, key=lambda pair: float(np.mean(figures[f"{pair[0]}, round {pair[1]}"])))

    last = f"@{BUDGETS[-1]:.2f}"
    return Chosen(best(CAP), best(FIXED), max(CHOICES, key=lambda name: float(np.mean(figures[f"{name} {last}"]))))


def comparisons(bench: Bench, arms: Mapping[str, Sequence[Probs]], chosen: Chosen) -> dict[str, Any]:
    """Each arm of interest minus its baselines, over the seeds (Holm within a family) and over the patients."""
    figures = areas(bench, arms, FEW)
    cap = f"{chosen.cap[0]}, round {chosen.cap[1]}"
    families = [
        (
            cap,
            [
                "labels alone",
                f"labels alone, steps of {chosen.cap[1] + 1}",
                f"{chosen.fixed[0]}, round {chosen.fixed[1]}",
            ],
        )
    ]
    families += [(f"{chosen.choice} @{budget:.2f}", [f"random @{budget:.2f}"]) for budget in BUDGETS[1:]]
    found = {}
    for arm, rivals in families:
        tests = compare_pairs([(figures[arm], figures[rival]) for rival in rivals], CONFIDENCE)
        for rival, test in zip(rivals, tests, strict=True):
            found[f"{arm} − {rival}"] = {"seeds": test, "patients": over_patients(bench, arms[arm], arms[rival])}
    return found


def sentence(name: str, found: Mapping[str, Any]) -> str:
    """A comparison in words, by rule: a difference counts where both intervals leave out 0."""
    test, patients = found["seeds"], found["patients"]
    sides = [(test.difference.low, test.difference.high), (patients.low, patients.high)]
    if all(low is not None and low > 0 for low, _ in sides):
        word = "better"
    elif all(high is not None and high < 0 for _, high in sides):
        word = "worse"
    else:
        return f"- {name}: cannot be told apart."
    if test.p_holm >= 1 - CONFIDENCE:
        word += f", but not beyond doubt after Holm's correction (p = {test.p_holm:.2f})"
    return f"- {name}: {word}."


def report(
    bench: Bench, validation: Mapping[str, Sequence[float]], arms: Mapping[str, Sequence[Probs]], chosen: Chosen,
    seeds: Sequence[int], command: str,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The Markdown and what stands in the JSON."""
    figures, found = areas(bench, arms, FEW), comparisons(bench, arms, chosen)
    train_patients, held_patients = (len(np.unique(bench.patients[rows])) for rows in (bench.train, bench.held))
    told = int(enough(bench.data.labels[bench.held], FEW).sum())
    lines = [
        "# Few labels on radiographs: pseudo-labels and suggested studies, on frozen ImageNet features",
        "",
        f"{bench.data.origin}. {len(bench.train)} training films of {train_patients} patients, {len(bench.held)} test "
        f"films of {held_patients}; {DIMENSIONS} principal components, a small head by SD pretraining ({STEPS} steps) "
        f"and cross-entropy ({STEPS} steps). Macro AUROC over the {told} findings with {FEW} positives or more; "
        f"{len(seeds)} seeds, each with its own draw of labelled patients. Made by `{command}`.",
        "",
        "## What it says",
        "",
        *(sentence(name, each) for name, each in found.items()),
        "",
        '"Better" and "worse" are said where the intervals over seeds and over patients both leave out 0. One set, one '
        "frozen encoder and a small head: the answer may differ for an encoder that is trained.",
        "",
        "| minus | over seeds | p (Holm) | over patients |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {_signed(test.difference)} | {test.p_holm:.3f} | {_signed(patients)} |"
            for name, (test, patients) in ((name, (each["seeds"], each["patients"])) for name, each in found.items())
        ),
        "",
        f"## {LABELLED:.0%} of the patients labelled",
        "",
        f"The images of {LABELLED:.0%} of the training patients have labels, those of the others only what the model "
        'of the round before says. "Steps of 2" trains on labels alone as long as both together.',
        "",
        *_table({name: values for name, values in figures.items() if "@" not in name}),
        "",
        "## Which study to label next",
        "",
        f"From {BUDGETS[0]:.0%} to {BUDGETS[-1]:.0%} of the training patients with one labelled film each (@ is the "
        "share), chosen at random or by `medsd.labelling.suggest`; the first part is random and the same for both.",
        "",
        *_table({name: values for name, values in figures.items() if "@" in name}),
        "",
        "## Chosen on validation patients",
        "",
        "Means over the validation seeds; the candidates with the highest were tested.",
        "",
        "| candidate | macro AUROC |",
        "| --- | --- |",
        *(f"| {name} | {np.mean(values):.3f} |" for name, values in validation.items()),
        "",
    ]
    tree = {
        "command": command,
        "chosen": vars(chosen),
        "seeds": list(seeds),
        "validation": {name: list(values) for name, values in validation.items()},
        "test": figures,
        "differences": {name: _plain(each["seeds"], each["patients"]) for name, each in found.items()},
    }
    return "\n".join(lines), tree


def _table(figures: Mapping[str, Sequence[float]]) -> list[str]:
    shown = [(name, seed_mean(values, CONFIDENCE)) for name, values in figures.items()]
    rows = [f"| {name} | {mean.mean:.3f} ({mean.low:.3f} to {mean.high:.3f}) |" for name, mean in shown]
    return ["| arm | macro AUROC |", "| --- | --- |", *rows]


def _signed(value: Any) -> str:
    middle = value.mean if hasattr(value, "mean") else value.value
    return f"{middle:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _plain(test: Comparison, patients: Interval) -> dict[str, Any]:
    return {"seeds": {**asdict(test.difference), "p_holm": test.p_holm}, "patients": patients.model_dump()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose on validation, measure on test, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("MEDSD_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("--root", type=Path, default=data, help="folder that has nih_cxr/")
    parser.add_argument("--out", type=Path, default=Path("runs/labels"), help="folder of the report")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/compare"), help="folder with features/, as medsd compare"
    )
    parser.add_argument("--seeds", type=int, default=5, help="of the test")
    parser.add_argument("--validation-seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    settings = CompareSettings(name="labels", root=given.root, output=given.cache, sets=("radiographs",))
    films = read_radiographs(settings)
    fit, validation = films.divided(settings.grid.validation)
    first = prepare(films, fit, validation)
    tried = run_seeds(
        first, range(100, 100 + given.validation_seeds), [*CAP, *FIXED], max(ROUNDS), list(CHOICES), given.workers
    )
    figures = areas(first, tried, FEW_VALIDATION)
    chosen = choose(figures)
    print(f"chosen on validation: {chosen}", flush=True)
    second = prepare(films, films.train, films.test)
    rounds, seeds = max(chosen.cap[1], chosen.fixed[1]), range(given.seeds)
    arms = run_seeds(second, seeds, [chosen.cap[0], chosen.fixed[0]], rounds, [chosen.choice], given.workers)
    text, tree = report(second, figures, arms, chosen, seeds, "python -m tests.bench.bench_labels --root FOLDER")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "labels.md").write_text(text, encoding="utf-8")
    (given.out / "labels.results.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(text, f"{time.monotonic() - started:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
