"""Which recipe for few films? Heads on frozen features, cross-validated on the training and validation patients.

The validation part of nih_cxr has 194 films: an AUROC over them hangs by ±0.03 on who they are, and cannot choose
between recipes that differ by less. Heads on features of the frozen ImageNet encoder train in seconds, so that every
recipe is tried on ten folds (five folds of the patients, twice), and differences from cross-entropy alone are taken
fold by fold. The test patients are not touched. A head is what stands behind the encoder in `medsd.networks.fusion`
with one hidden layer more, which has room to overfit.

    python -m tests.bench.bench_recipe [--data FOLDER] [--size 128]        FOLDER holds nih_cxr; MEDSD_DATA by default

«±» is the standard error over the folds. Folds share training films, so it is somewhat too small.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from medsd.evaluation.metrics import auroc, macro
from medsd.evaluation.retrieval import Cases, score_queries
from medsd.networks.fusion import StudyModel
from medsd.sd.rivals import loss_by_name
from medsd.settings import Settings, load_settings
from medsd.studies.manifest import Manifest
from medsd.training.augment import Augmentation
from medsd.training.folder import Run
from medsd.training.run import run_steps

CONFIG = Path(__file__).parents[2] / "configs" / "nih14.yaml"
VIEWS, FOLDS, REPEATS, FEW = 6, 5, 2, 3
BATCH, HIDDEN, SPACE, PROJECTION = 64, 512, 256, 128


@dataclass(frozen=True)
class Recipe:
    """Epochs of contrast alone on two views, then of both on one; the contrast's weight in the second."""

    pretrain: int = 0
    epochs: int = 20
    sd_weight: float = 0.0
    loss: str = "sd"
    learning_rate: float = 5e-4

    @property
    def passes(self) -> int:
        """Films forward and back, in epochs."""
        return 2 * self.pretrain + self.epochs


RECIPES = {
    "cross-entropy": Recipe(),
    "cross-entropy, twice as long": Recipe(epochs=40),
    "joint, SD 0.1": Recipe(sd_weight=0.1),
    "joint, SD 0.2": Recipe(sd_weight=0.2),
    "joint, SD 0.3": Recipe(sd_weight=0.3),
    "joint, SD 1": Recipe(sd_weight=1.0),
    "joint, ANY 0.2": Recipe(sd_weight=0.2, loss="any"),
    "pretrained 2, then SD 0.2": Recipe(pretrain=2, epochs=16, sd_weight=0.2),
    "pretrained 4, then SD 0.1": Recipe(pretrain=4, epochs=12, sd_weight=0.1),
    "joint, SD 0.2, rate 0.001": Recipe(sd_weight=0.2, learning_rate=1e-3),
}


@dataclass(frozen=True)
class Films:
    """Features float32 (V, N, D), the first view without augmentation; labels (N, F) without unknown ones; patients."""

    features: Tensor
    labels: Tensor
    patients: npt.NDArray[np.str_]


def films_of(settings: Settings) -> Films:
    """Features of the training and validation films of a prepared run."""
    run = Run(settings)
    manifest, pixels = Manifest.read(run.manifest), np.load(run.pixels, mmap_mode="r")
    rows = np.concatenate([manifest.rows("train"), manifest.rows("validation")])
    torch.manual_seed(settings.seed)
    encoder = StudyModel(settings.network, len(manifest.findings), settings.pixels.size).image
    assert encoder is not None
    encoder.eval()
    augment = Augmentation(settings.training.augment, settings.pixels.size)
    views = []
    with torch.inference_mode():
        for view in range(VIEWS):
            parts = []
            for part in np.array_split(rows, -(-len(rows) // BATCH)):
                films = np.asarray(pixels[part])
                inputs = torch.from_numpy(films)[:, None].float() / 255
                if view:
                    inputs = augment(films, [int(row) * VIEWS + view for row in part])
                parts.append(encoder(inputs).mean(dim=(2, 3)))
            views.append(torch.cat(parts))
    features = torch.stack(views).clone()
    mean, spread = features[0].mean(0), features[0].std(0).clamp_min(1e-5)
    labels = torch.from_numpy(manifest.labels[rows]).float()
    return Films((features - mean) / spread, labels, manifest.patients[rows])


class Head(nn.Module):
    """Features (B, D) to the learned space, to logits, and to where the contrast is taken."""

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.space = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SPACE))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(SPACE, findings))
        self.projection = nn.Sequential(nn.Linear(SPACE, SPACE), nn.ReLU(), nn.Linear(SPACE, PROJECTION))


def train(films: Films, rows: npt.NDArray[np.int64], recipe: Recipe, seed: int) -> Head:
    """Train a head; the classifying stage ends with the moving average of its weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = Head(films.features.shape[2], films.labels.shape[1])
    contrast = loss_by_name(recipe.loss, temperature=0.1)
    _stage(head, recipe.learning_rate, _batches(films, rows, recipe.pretrain, 2, rng), contrast, 0, 1)
    _stage(head, recipe.learning_rate, _batches(films, rows, recipe.epochs, 1, rng), contrast, 1, recipe.sd_weight)
    return head.eval()


def _stage(
    head: Head, rate: float, batches: list[tuple[Tensor, Tensor]], contrast: nn.Module, bce: float, sd: float
) -> None:
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.05)
    average = torch.optim.swa_utils.AveragedModel(head, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.97))
    for step, (features, labels) in enumerate(batches):
        for group in optimiser.param_groups:
            rise = min(1.0, (step + 1) / (0.1 * len(batches) + 1))
            group["lr"] = rate * rise * 0.5 * (1 + np.cos(np.pi * step / len(batches)))
        space = head.space(features)
        loss = torch.zeros(())
        if bce:
            loss = loss + bce * F.binary_cross_entropy_with_logits(head.classifier(space), labels)
        if sd:
            loss = loss + sd * contrast(head.projection(space), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(head)
    if batches and bce:
        head.load_state_dict(average.module.state_dict())


def _batches(
    films: Films, rows: npt.NDArray[np.int64], epochs: int, views: int, rng: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    def draw() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            order = torch.from_numpy(rng.permutation(rows))
            for part in order.split(BATCH)[: len(rows) // BATCH]:
                seen = [torch.from_numpy(rng.integers(1, VIEWS, len(part))) for _ in range(views)]
                yield torch.cat([films.features[view, part] for view in seen]), films.labels[part].repeat(views, 1)

    return list(draw())


def score(films: Films, recipe: Recipe) -> npt.NDArray[np.float64]:
    """(folds, 2): macro AUROC and nDCG@10 of the films held back, the others being the index."""
    figures = []
    for repeat in range(REPEATS):
        folds = GroupKFold(FOLDS, shuffle=True, random_state=repeat).split(films.patients, groups=films.patients)
        for fold, (kept, held) in enumerate(folds):
            head = train(films, kept, recipe, repeat * FOLDS + fold)
            with torch.inference_mode():
                space = head.space(films.features[0])
                probabilities = head.classifier(space).sigmoid().numpy()
            labels, embeddings = films.labels.numpy(), space.numpy()
            cases = [Cases(embeddings[rows], labels[rows], films.patients[rows]) for rows in (held, kept)]
            area = macro(auroc(labels[held], probabilities[held], few=FEW)).value
            figures.append((area, float(np.nanmean(score_queries(*cases).ndcg))))
    return np.array(figures)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA", "../shared/data")))
    parser.add_argument("--size", type=int, default=128, help="side of the pixels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        more = [f"data.root={given.data / 'nih_cxr'}", f"output={folder}", f"pixels.size={given.size}"]
        films = films_of(run_steps(load_settings(CONFIG, more), until="prepare").settings)
    print(f"{len(films.labels)} films of {len(set(films.patients))} patients, {FOLDS * REPEATS} folds\n")
    print("| recipe | passes | macro AUROC | against cross-entropy | nDCG@10 | against cross-entropy |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    base: npt.NDArray[np.float64] | None = None
    for name, recipe in RECIPES.items():
        figures = score(films, recipe)
        base = figures if base is None else base
        columns = []
        for column in range(2):
            gain = figures[:, column] - base[:, column]
            columns += [
                f"{figures[:, column].mean():.4f}",
                f"{gain.mean():+.4f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.4f}",
            ]
        print(f"| {name} | {recipe.passes} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
