"""The card: complete, honest about what cannot be told, and silent about the machine that made it."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from medsd.bundle import layout
from medsd.calibration.conformal_fit import ClassCoverage, conformal_scores
from medsd.calibration.fit import calibrated, choose_calibration, choose_operating_points
from medsd.card import CARD, PAGE, PARITY, without_machine_paths, write_card
from medsd.evaluation.report import Beside, EvaluationReport, evaluate
from medsd.files import write_json
from medsd.findings import finding_set
from medsd.metrics.intervals import Interval
from medsd.metrics.retrieval import FIGURES, Cases
from medsd.settings import EvaluationSettings
from tests.bundles import tiny_bundle
from tests.card_numbers import unexplained_numbers

FINDINGS = finding_set("nih14")
AGREEMENT = {
    "provider": "CPUExecutionProvider",
    "studies": 64,
    "largest_difference": {"1": {"logits": 2e-6, "embedding": 3e-7}, "7": {"logits": 4e-6, "embedding": 3e-7}},
    "macro_auroc": {"pytorch": 0.81, "onnxruntime": 0.81},
}


def split(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, 1.5, (n, len(FINDINGS)))
    z[:, 7] -= 6  # Hernia is rare
    return 2 * z, (rng.random(z.shape) < expit(z)).astype(float)


@pytest.fixture(scope="module")
def measured() -> tuple[layout.Description, EvaluationReport]:
    """A description and an evaluation, with a configuration full of machine paths."""
    logits, target = split(1, 120)
    calibration, choices = choose_calibration(logits, target, FINDINGS.names)
    scores = conformal_scores(
        calibrated(logits, calibration, FINDINGS.names), target, [f"v{i}" for i in range(120)], FINDINGS.names
    )
    points = choose_operating_points(calibrated(logits, calibration, FINDINGS.names), target, FINDINGS.names)
    logits, target = split(2, 100)
    patients = [f"p{i // 2}" for i in range(100)]
    index = Cases(np.random.default_rng(0).normal(size=(100, 4)), target, [f"q{i}" for i in range(100)])
    report = evaluate(
        FINDINGS,
        logits,
        target,
        patients,
        calibration=calibration,
        operating_points=points,
        embeddings=np.random.default_rng(1).normal(size=(100, 4)),
        index=index,
        settings=EvaluationSettings(bootstrap=30),
        choices=choices,
        conformal=scores,
        groups={"sex": np.array(["F", "M", "M", "F"] * 25), "view": np.array(["PA"] * 98 + ["AP"] * 2)},
    )
    provenance = layout.Provenance(
        data="NIH ChestX-ray14",
        data_hash="d" * 64,
        split_hash="5" * 64,
        studies={"test": 100, "train": 700, "validation": 120},
        patients={"test": 50, "train": 400, "validation": 60},
        licence="no restriction on use",
        citation="Wang et al., CVPR 2017, https://nihcc.app.box.com/v/ChestXray-NIHCC",
        config={"name": "real", "output": "/srv/runs", "data": {"root": "../shared/data/nih_cxr", "limit": None}},
        git_commit="abc1234",
        packages={"torch": "2.13.0"},
        training_seconds=1800.0,
    )
    description = layout.Description(
        schema_version=layout.SCHEMA_VERSION,
        name="real",
        version="1",
        created="2026-01-01T00:00:00Z",
        finding_set="nih14",
        findings=layout.finding_entries(FINDINGS),
        pixels={"size": 160},
        embedding_size=4,
        evidence_grid=(5, 5),
        calibration=calibration,
        operating_points=points,
        provenance=provenance,
    )
    return description, report


def write(folder: Path, description: layout.Description, report: EvaluationReport, **readings: EvaluationReport) -> str:
    """The card of a folder that holds these JSON files."""
    report.write(folder / "evaluation.json")
    write_json(folder / PARITY, AGREEMENT)
    for kind, other in readings.items():
        other.write(folder / f"evaluation_{kind}.json")
    write_card(folder, description)
    return (folder / CARD).read_text(encoding="utf-8")


@pytest.fixture
def card(measured: tuple[layout.Description, EvaluationReport], tmp_path: Path) -> str:
    tiny_bundle(tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "roc.png").write_bytes(b"png")
    return write(tmp_path, *measured)


def row(card: str, section: str, title: str) -> list[str]:
    """The cells of the table row that begins with `title`, below the heading `section`."""
    text = card.split(section, 1)[1]
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_says_what_the_model_is_not_for(card: str) -> None:
    assert "not a medical device" in card
    assert "must not be used to diagnose" in card
    assert "Synthetic" not in card


def test_the_card_of_a_synthetic_bundle_says_so_before_anything_else(
    measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    beginning = write(tmp_path, measured[0].model_copy(update={"synthetic": True}), measured[1])[:400]
    assert "Synthetic" in beginning
    assert "Nothing here is a medical result" in beginning


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (layout.NoteInput(max_tokens=96), "a clinical note (up to 96 tokens)"),
        (
            layout.NoteInput(max_tokens=512, window=128, stride=64),
            "windows of 128 tokens, a new one every 64 tokens, 4 at most",
        ),
        (
            layout.NoteInput(max_tokens=256, window=128),
            "a new one after half of the text of the previous one, 2 at most",
        ),
    ],
)
def test_the_card_says_how_much_of_a_note_is_read(
    note: layout.NoteInput, said: str, measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    text = write(tmp_path, measured[0].model_copy(update={"note": note}), measured[1])
    assert said in text.split("## ", 1)[0]


def test_every_finding_has_its_row_with_the_figures_of_the_report(
    card: str, measured: tuple[layout.Description, EvaluationReport]
) -> None:
    for finding in measured[1].findings:
        cells = row(card, "### Each finding", finding.title)
        assert cells[1:3] == [str(finding.positives), str(finding.negatives)]
        assert cells[3:] == [str(finding.auroc), str(finding.average_precision), str(finding.brier)]
        called = row(card, "### Calls", finding.title)
        if finding.threshold is None:
            seen = finding.calibration
            assert called[1] == f"none: undecided ({seen.positives} with it, {seen.negatives} without)"
        else:
            assert called[2:4] == [str(finding.sensitivity), str(finding.specificity)]


def test_a_rare_finding_is_too_few_to_tell_in_the_table_and_in_the_limits(card: str) -> None:
    assert row(card, "### Each finding", "Hiatal hernia")[3] == "too few to tell"
    assert "Left out of the means as too few to tell: Hiatal hernia" in card
    assert "Never called present or absent, for want of validation cases: Hiatal hernia" in card


def test_means_retrieval_and_calibration_are_those_of_the_report(
    card: str, measured: tuple[layout.Description, EvaluationReport]
) -> None:
    report = measured[1]
    assert row(card, "### Over all", "AUROC")[1:] == [str(report.macro["auroc"].interval), "13"]
    assert row(card, "### Similar cases", "nDCG@10")[1] == str(report.retrieval.ndcg)
    assert row(card, "### Similar cases", "nDCG@10")[2] == str(report.retrieval.random_ndcg)
    found = report.retrieval.rankings
    title, name = report.findings[0].title, report.findings[0].name
    for words, figures in (
        ("All images", found.images.figures),
        ("Without finding", found.without_finding.figures),
        (f"Mean over {found.over} findings", found.mean),
        (title, found.findings[name].figures),
    ):
        cells = row(card, "#### In the figures of published", words)
        assert cells[2:] == [str(figures[figure]) for figure in FIGURES]
    assert row(card, "#### In the figures of published", title)[1] == str(found.findings[name].queries)
    assert row(card, "#### In the figures of published", "Hiatal hernia")[4] == "too few to tell"
    assert row(card, "### Calibration", "before")[1] == f"{report.calibration.before.log_loss:.3f}"
    assert row(card, "### Calibration", "after")[3] == f"{report.calibration.after.calibration_error:.3f}"


def test_conformal_calls_and_groups_are_shown_and_what_cannot_be_told_is_said(
    card: str, measured: tuple[layout.Description, EvaluationReport]
) -> None:
    _, report = measured
    finding = report.conformal.findings[0]
    assert finding.enough
    title = report.findings[0].title
    assert row(card, "### Conformal calls", title)[1:3] == [str(finding.covered), str(finding.present.covered)]
    hernia = next(f for f in report.conformal.findings if f.name == "Hernia")
    counts = f"({hernia.present.calibration_patients} with it, {hernia.absent.calibration_patients} without)"
    assert f"Always undecided, for want of validation patients: Hiatal hernia {counts}." in card
    assert row(card, "### Conformal calls", title)[5] == (
        f"{finding.present.calibration_patients} / {finding.present.patients}"
    )
    women = report.subgroups.groups[0]
    assert str(women.figures["auroc"].gap) in row(card, "### Groups of patients", "sex F")[3]
    assert "> **Warning.** view AP: 1 patients, too few to tell" in card
    assert row(card, "### Calibration", title)[1] == report.findings[0].calibration.method


def test_a_class_that_is_covered_less_than_chance_allows_is_warned_of(
    card: str, measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    words = "Covered less than promised, beyond what chance allows"
    description, report = measured
    first = report.conformal.findings[0]
    held = first.present.model_copy(update={"covered": Interval(value=0.8, low=0.7, high=0.9), "expected": (0.8, 1.0)})
    low = held.model_copy(update={"covered": Interval(value=0.79, low=0.7, high=0.88)})

    def told(present: ClassCoverage) -> str:
        others = tuple(
            f.model_copy(update={part: getattr(f, part).model_copy(update={"expected": None})
                                 for part in ("present", "absent")})
            for f in report.conformal.findings[1:]
        )  # fmt: skip
        absent = first.absent.model_copy(update={"expected": None})
        changed = (first.model_copy(update={"present": present, "absent": absent}), *others)
        conformal = report.conformal.model_copy(update={"findings": changed})
        return write(tmp_path, description, report.model_copy(update={"conformal": conformal}))

    assert words not in told(held)
    title = report.findings[0].title
    assert f"> **Warning.** {words}: {title} where present (0.790 (0.700 to 0.880))." in told(low)


def test_data_splits_and_provenance_are_named(card: str) -> None:
    for words in ("NIH ChestX-ray14", "no restriction on use", "Wang et al.", "d" * 64, "5" * 64, "abc1234"):
        assert words in card
    assert row(card, "## Data", "test") == ["test", "50", "100"]
    assert card.index("| train |") < card.index("| validation |") < card.index("| test |")
    assert "medsd train real.yaml" in card
    assert "torch 2.13.0" in card
    assert "30 minutes" in card


def test_readings_with_a_part_missing_stand_beside_the_whole(
    card: str, measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    assert "part of the study missing" not in card
    report = measured[1]
    alone = report.model_copy(update={"macro": report.macro | {"auroc": report.macro["brier"]}, "retrieval": None})
    text = write(tmp_path, measured[0], report, image=alone)
    assert row(text, "part of the study missing", "everything")[1] == str(report.macro["auroc"].interval)
    assert row(text, "part of the study missing", "image alone")[1] == str(report.macro["brier"].interval)
    assert row(text, "part of the study missing", "image alone")[3] == "not measured"


def test_the_parity_figures_are_a_table(card: str) -> None:
    assert row(card, "Largest absolute difference", "7") == ["7", "4.0e-06", "3.0e-07"]
    assert "pytorch 0.81, onnxruntime 0.81" in card


def test_every_picture_is_a_relative_link_to_a_file_that_is_there(card: str, tmp_path: Path) -> None:
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)
    assert links == ["plots/roc.png"]
    assert all((tmp_path / link).is_file() for link in links)


def test_the_hashes_are_those_of_the_bundle(
    card: str, measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    files = layout.write_description(tmp_path, measured[0]).files
    assert CARD in files
    listed = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", card, re.MULTILINE))
    assert listed == {name: digest for name, digest in files.items() if name not in (CARD, PAGE)}


def test_no_path_of_the_machine_is_in_the_card(card: str) -> None:
    assert "/srv" not in card
    assert "../" not in card
    assert "root: …/nih_cxr" in card
    assert "https://nihcc.app.box.com/v/ChestXray-NIHCC" in card
    assert "</details>" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--set data.root=/mnt/nih/images x", "--set data.root=…/images x"),
        ("root: ../../data/nih", "root: …/nih"),
        ("~/runs/a and 'C:\\Users\\me\\runs'", "…/a and '…/runs'"),
        ("see https://example.org/a/b, 1/2, a/b, runs/nih14, plots/roc.png", None),
    ],
)
def test_paths_keep_their_last_part_and_addresses_stay(text: str, expected: str | None) -> None:
    assert without_machine_paths(text) == (text if expected is None else expected)


def test_the_same_inputs_give_the_same_card(
    card: str, measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    assert write(tmp_path, *measured) == card


def test_what_stands_beside_the_headline_follows_it_with_its_warnings(
    measured: tuple[layout.Description, EvaluationReport], tmp_path: Path
) -> None:
    """A score that is the view, selected images, few answers of radiologists, training images that were picked."""
    rng = np.random.default_rng(0)
    view = np.where(rng.random(300) < 0.5, "AP", "PA")
    target = (rng.random((300, 14)) < np.where(view == "AP", 0.6, 0.3)[:, None]).astype(float)
    logits = (view == "AP")[:, None] + 0.01 * rng.normal(size=target.shape)
    beside = Beside(
        logits[:60],
        target[:60],
        np.array([f"s{i}" for i in range(60)]),
        answers={"Pneumothorax (Google)": np.where(np.arange(360) < 9, 1.0, 0.0)},
        picked=70,
        trained=700,
    )
    report = evaluate(
        FINDINGS,
        logits,
        target,
        [f"p{i}" for i in range(300)],
        calibration=measured[0].calibration,
        operating_points=measured[0].operating_points,
        settings=EvaluationSettings(bootstrap=60),
        groups={"view": view},
        beside=beside,
    )
    card = write(tmp_path, measured[0], report)
    assert card.index("### Each finding") < card.index("### Beside the headline") < card.index("### Calls at")
    for sentence in report.warnings:
        assert f"> **Warning.** {sentence}" in card
    assert len(report.warnings) == 3 and "70 of 700 training images" in report.warnings[2]
    assert row(card, "### Beside the headline", "AP")[1] == str((view == "AP").sum())
    assert row(card, "### Beside the headline", "selected")[1:3] == ["60", "60"]
    assert row(card, "### Beside the headline", "Pneumothorax (Google)")[4] == "too few to tell"
    section = card[card.index("### Beside the headline") : card.index("### Calls at")]
    count, missing = unexplained_numbers(section, tmp_path)
    assert count > 100 and missing == []
