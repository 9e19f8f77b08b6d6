"""Checks before training that there are enough studies to train on."""

import logging

import numpy as np

from medsd.errors import DataError
from medsd.metrics.metrics import FEWEST_POSITIVES, class_counts
from medsd.studies.manifest import SPLITS, Manifest

log = logging.getLogger(__name__)

_WHY = {
    "train": "hardly learned",
    "validation": "no threshold, so that every call is undecided",
    "test": "not measured",
}


def not_trained(manifest: Manifest) -> dict[str, str]:
    """The findings that cannot be trained, and why: their training studies do not have both classes."""
    labels = manifest.labels[manifest.rows("train")]
    present, absent = class_counts(labels)
    why = np.select(
        [(present == 0) & (absent == 0), present == 0, absent == 0],
        ["no training study is labelled for it", "no training study has it", "no training study is without it"],
        "",
    )
    return {name: str(reason) for name, reason in zip(manifest.findings, why, strict=True) if reason}


def check_enough(manifest: Manifest, minimum_positives: int) -> None:
    """Log how many positives each finding has in each split, and warn where there are fewer than `minimum_positives`.

    Studies without any known label may be prepared, for viewing; training refuses them. Raises DataError: a split has
    no study, or no finding is present in one training study and absent in another.
    """
    if np.isnan(manifest.labels).all():
        log.warning("no label is known of any study, so that these cannot be trained on")
        return
    rows = {split: manifest.rows(split) for split in SPLITS}
    if empty := [split for split in SPLITS if not len(rows[split])]:
        raise DataError(f"no study is in {' and '.join(empty)}; {_seen(manifest)}")
    titles = [manifest.findings.title(name) for name in manifest.findings]
    counts = {split: class_counts(manifest.labels[of_split]) for split, of_split in rows.items()}
    taught = np.minimum(*counts["train"]) > 0
    if not taught.any():
        raise DataError(
            "no finding is present in one training study and absent in another, so there is nothing to learn; check "
            "the columns of findings, and what the settings make of uncertain and unlisted ones"
        )
    known = np.sum(list(counts.values()), axis=(0, 1))
    told = [
        f"{title} {'/'.join(str(present[f]) for present, _ in counts.values())}"
        for f, title in enumerate(titles)
        if known[f]
    ]
    log.info("images in %s: %s", "/".join(SPLITS), "/".join(str(len(rows[split])) for split in SPLITS))
    log.info("positives in %s: %s", "/".join(SPLITS), ", ".join(told))
    silent = not_trained(manifest)
    for reason in sorted(set(silent.values())):
        names = ", ".join(manifest.findings.title(name) for name, why in silent.items() if why == reason)
        log.warning("no probability, as %s: %s", reason, names)
    if minimum_positives < FEWEST_POSITIVES:
        log.warning("evaluation.minimum_positives is %d: figures and calls from fewer than %d positives say nothing, "
                    "however narrow their intervals", minimum_positives, FEWEST_POSITIVES)  # fmt: skip
    for split, of_split in counts.items():
        short = (known > 0) & taught & (np.minimum(*of_split) < minimum_positives)
        if names := ", ".join(np.array(titles)[short]):
            why = f"fewer than {minimum_positives} positives or negatives in {split} ({_WHY[split]})"
            log.warning("%s: %s", why, names)


def _seen(manifest: Manifest) -> str:
    """What the source's splits contain, for the error."""
    counts = ", ".join(f"{split} has {count}" for split, count in manifest.counts().items() if count)
    said = f"{counts or 'no row has a split'}; train, validation and test need studies each"
    if strange := manifest.rejected.unknown_splits:
        said += f". The column of splits also has {strange}: a split is train, validation (val, valid, dev) or test"
    if manifest.rejected:
        said += f". Left out: {manifest.rejected.counts()}"
    return said
