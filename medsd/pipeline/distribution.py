"""The out-of-distribution check of a new bundle, judged on test images and on the same images made unsuitable."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from medsd.bundle import layout
from medsd.evaluation.distribution import AS_THEY_ARE, DISTRIBUTION, measure_distribution, unsuitable
from medsd.evaluation.saved import options_of
from medsd.inference.out_of_distribution import Reference
from medsd.metrics.intervals import one_a_patient
from medsd.metrics.two_samples import tell_apart
from medsd.networks.fusion import StudyModel
from medsd.pipeline.folder import Run
from medsd.studies.manifest import Manifest
from medsd.training.loaders import StudyArrays, spread
from medsd.training.stages import read_images

MOST_IMAGES = 150  # each is read four times more

Outputs = dict[str, npt.NDArray[np.float32]]


def image_embeddings(outputs: Outputs) -> npt.NDArray[np.float32]:
    """(N, D): images come with a note and without, so every second one is taken without."""
    embeddings = outputs["embeddings"]
    if "embeddings_image" not in outputs:
        return embeddings
    return np.where(np.arange(len(embeddings))[:, None] % 2, outputs["embeddings_image"], embeddings)


def judge_distribution(
    run: Run,
    folder: Path,
    description: layout.OutOfDistribution,
    manifest: Manifest,
    arrays: StudyArrays,
    model: StudyModel,
    outputs: Outputs,
) -> None:
    """Write evaluation_distribution.json into the bundle that is made in `folder`; nothing without test images."""
    assert arrays.pixels is not None
    seed = run.settings.seed
    options = options_of(run.settings.evaluation, seed)
    train, test = (rows[arrays.has_image[rows]] for rows in (manifest.rows("train"), manifest.rows("test")))
    if not len(test):
        return
    embeddings = image_embeddings(outputs)
    first, second = (
        embeddings[one_a_patient(np.random.default_rng(seed).permutation(rows), manifest.patients)]
        for rows in (train, test)
    )
    apart = tell_apart(first, second, options)
    reference = Reference.from_arrays(description, load_file(folder / layout.OUT_OF_DISTRIBUTION))
    rows = spread(test, MOST_IMAGES)
    images = np.asarray(arrays.pixels[rows])
    values = {AS_THEY_ARE: reference.values(images, embeddings[rows])}
    for name, changed in unsuitable(images).items():
        values[name] = reference.values(changed, read_images(model, changed)[1])
    report = measure_distribution(values, manifest.patients[rows], options, told_apart=apart)
    report.write(folder / DISTRIBUTION)
