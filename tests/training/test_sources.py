"""A source that differs from another in sharpness alone shows in the embedding, unless it is hidden.

Random resolution in training does not hide it: the network still sees how sharp an image is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from medsd.evaluation.sources import LIMIT, SourcePair, measure_sources
from medsd.metrics.intervals import IntervalOptions
from medsd.preprocessing.pixels import to_pixels
from medsd.settings import AugmentSettings, PixelSpec
from medsd.training.augment import Augmentation
from medsd.training.hide_sources import eraser

SIZE, COARSE, STEPS = 32, 16, 80
TRAIN, TEST = 1200, 800  # images; at chance, an AUROC over 800 moves by 0.02
QUIET = {"rotation_degrees": 0, "translation": 0, "zoom": 0, "contrast": 0, "noise": 0, "erase": 0}


Studies = tuple[pd.DataFrame, list[npt.NDArray[np.float32]]]


@pytest.fixture(scope="module")
def studies() -> Studies:
    """A sharp source in which the finding, a bright spot, is common, and a coarse one in which it is rare."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    rows, images = [], []
    for number in range(TRAIN + TEST):
        sharp = number % 2 == 0
        finding = rng.random() < (0.8 if sharp else 0.2)
        anatomy = gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), 4)
        row, column = rng.uniform(8, 24, 2)
        spot = 0.12 * finding * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 15)
        image = (0.45 + anatomy + spot + rng.normal(0, 0.05, (SIZE, SIZE))).clip(0, 1).astype(np.float32)
        stored = image if sharp else np.asarray(Image.fromarray(image).resize((COARSE, COARSE), Image.Resampling.BOX))
        source = "sharp" if sharp else "coarse"
        split = "train" if number < TRAIN else "test"
        rows.append((f"{number}.png", source, "PA", f"patient {number}", split, float(finding)))
        images.append(stored)
    return pd.DataFrame(rows, columns=["path", "source", "view", "patient", "split", "finding"]), images


def told(studies: Studies, *, resolution: int = 0, hide: bool = False) -> SourcePair:
    """Train a small network on the finding and see whether its embedding tells the sources of held-out images."""
    table, images = studies
    pixels = np.stack([to_pixels(image, PixelSpec(size=SIZE)) for image in images])
    labels = table[["finding"]].to_numpy(dtype=np.float32)
    train = np.flatnonzero(table["split"] == "train")
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    classifier = nn.Linear(32, 1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters()], lr=3e-3)
    change, rng = Augmentation(AugmentSettings(**QUIET, resolution=resolution), SIZE), np.random.default_rng(0)
    for step in range(STEPS):
        rows = rng.choice(train, 64)
        logits = classifier(encoder(change(pixels[rows], [64 * step + n for n in range(64)]) - 0.5))
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    encoder.eval()
    with torch.inference_mode():
        embeddings = encoder(torch.from_numpy(pixels).unsqueeze(1) / 255 - 0.5).numpy()
    if hide:
        embeddings = embeddings @ eraser(embeddings[train].astype(float), table.iloc[train], labels[train]).T
    report = measure_sources(table, labels, embeddings, pixels, IntervalOptions(resamples=50))
    assert report is not None
    (pair,) = report.pairs
    assert pair.over == "held-out images" and pair.groups == 2
    return pair


@pytest.mark.parametrize("resolution", [0, COARSE // 2])
def test_images_that_are_read_as_they_are_tell_their_source(studies: Studies, resolution: int) -> None:
    pair = told(studies, resolution=resolution)
    assert pair.told.low is not None and pair.told.low > 0.8
    assert pair.above and "see training.hide_sources" in pair.sentence
    assert pair.told_coarsely.value is not None and pair.told_coarsely.value < LIMIT, "sharpness is all that differs"


def test_what_is_hidden_does_not(studies: Studies) -> None:
    pair = told(studies, resolution=COARSE // 2, hide=True)
    assert pair.told.value is not None and pair.told.value < LIMIT
    assert not pair.above and "does not tell" in pair.sentence
