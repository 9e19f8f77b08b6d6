"""What to label next: the factors, the draw, and the verb from images to a list."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.bundle.layout import Bundle
from medsd.cases.case import Case
from medsd.cases.index import create_index
from medsd.errors import DataError
from medsd.inference.predict import Predictor
from medsd.labelling.pool import skipped_path, suggest_images, suggest_studies
from medsd.labelling.suggest import Pool, Weights, agreement, finding_uncertainty, suggest, uncertainty
from medsd.privacy import KeyedHasher
from medsd.sd.relations import dissimilarity_factor, similarity_factor
from tests.bundles import tiny_bundle

ONLY_DIVERSITY = Weights(uncertainty=0, rarity=0, draw="greedy")
HASHER = KeyedHasher(b"a key for the tests of medsd")


def made_pool(count: int = 60, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(count + 9, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    patients = np.array([f"p{row // 2}" for row in range(count)])
    labelled = (rng.random((9, 4)) < 0.3).astype(float)
    return Pool(rng.random((count, 4)), embeddings[:count], patients, labelled, embeddings[count:])


def test_uncertainty_is_highest_at_one_half() -> None:
    probs = np.array([[0.0, 0.1, 0.5, 1.0]]).T
    np.testing.assert_allclose(finding_uncertainty(probs)[:, 0], [0, 0.469, 1, 0], atol=1e-3)
    assert finding_uncertainty(probs[[0, 3]]).tolist() == [[0], [0]]  # sure is sure: no last digit is left over


def test_rare_findings_count_more_in_the_uncertainty() -> None:
    probs = np.array([[0.5, 0.0], [0.0, 0.5]])
    np.testing.assert_allclose(uncertainty(probs, [3.0, 1.0]), [0.75, 0.25], atol=1e-6)


def test_agreement_is_the_sum_of_the_factors_of_the_loss() -> None:
    pool = made_pool()
    labelled = np.concatenate([pool.labelled, pool.labelled[:3], [[np.nan, 1, 0, 0]]])
    factors = similarity_factor(pool.probs, labelled) * dissimilarity_factor(pool.probs, labelled)
    np.testing.assert_allclose(agreement(pool.probs, labelled), factors.sum(1))
    assert (agreement(pool.probs, np.zeros((0, 4))) == 0).all()


def test_a_rare_combination_of_common_findings_is_preferred() -> None:
    labelled = np.array([[1.0, 0, 1]] * 5 + [[0, 1, 0]] * 5)
    probs = np.array([[0.9, 0.1, 0.9], [0.1, 0.9, 0.1], [0.9, 0.9, 0.1]])
    places = np.eye(3)
    pool = Pool(probs, places, np.array(["a", "b", "c"]), labelled, np.zeros((0, 3)))
    assert suggest(pool, 1, weights=Weights(uncertainty=0, diversity=0, draw="greedy"))[0].row == 2


def test_the_greedy_choice_by_diversity_covers_the_space_as_a_loop_does() -> None:
    pool = replace(made_pool(), patients=np.array([""] * 60))
    covered = list(pool.labelled_embeddings)
    expected: list[int] = []
    for _ in range(10):
        nearest = (pool.embeddings @ np.array(covered).T).max(1)
        nearest[expected] = np.inf
        expected.append(int(nearest.argmin()))
        covered.append(pool.embeddings[expected[-1]])
    assert [each.row for each in suggest(pool, 10, weights=ONLY_DIVERSITY)] == expected


@pytest.mark.parametrize("weights", [Weights(), Weights(draw="greedy"), ONLY_DIVERSITY])
def test_no_patient_is_suggested_twice_and_a_seed_gives_the_same_list(weights: Weights) -> None:
    pool = made_pool()
    rows = [each.row for each in suggest(pool, 100, seed=3, weights=weights)]
    assert len(rows) == 30 == len(set(pool.patients[rows]))
    assert rows == [each.row for each in suggest(pool, 100, seed=3, weights=weights)]


def test_another_seed_draws_another_list_and_a_score_is_the_product() -> None:
    pool = made_pool()
    lists = [suggest(pool, 10, seed=seed) for seed in (1, 2)]
    assert lists[0] != lists[1]
    for each in lists[0]:
        assert each.score == pytest.approx(each.uncertainty * each.diversity * each.rarity)
        assert all(0 <= value <= 1 for value in (each.uncertainty, each.diversity, each.rarity))


def test_studies_that_are_all_alike_and_sure_are_still_listed() -> None:
    pool = made_pool()
    alike = replace(pool, probs=np.zeros((60, 4)), embeddings=np.tile(pool.labelled_embeddings[0], (60, 1)))
    assert len(suggest(alike, 5)) == 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle with two cases: the image called case.png, and another of nobody here."""
    opened = tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    films = images_in(tmp_path_factory.mktemp("films"), "case.png", "other.png")
    embeddings = np.array([Predictor(opened)(film).embedding for film in films])
    keys = [HASHER.study_key("case"), HASHER.study_key("elsewhere")]
    labels = np.eye(2, len(opened.findings), dtype=np.float32)
    cases = [Case(study_key=key, labels=row) for key, row in zip(keys, labels, strict=True)]
    create_index(opened.cases_path, cases, embeddings, model_sha256=opened.model_sha256, findings=opened.findings)
    return opened


def images_in(folder: Path, *names: str) -> list[Path]:
    for name in names:
        noise = np.random.default_rng(sum(name.encode())).normal(0, 12, (200, 200))
        Image.fromarray((np.linspace(30, 200, 200) + noise).clip(0, 255).astype(np.uint8)).save(folder / name)
    return [folder / name for name in names]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_images_become_a_list_and_what_is_labelled_or_broken_stands_beside_it(bundle: Bundle, tmp_path: Path) -> None:
    images_in(tmp_path, "case.png", *(f"new{number}.png" for number in range(6)))
    (tmp_path / "broken.png").write_text("no film")
    (tmp_path / "known.txt").write_text("new5.png\n")
    out = tmp_path / "next.csv"
    for _ in range(2):  # the second time its own lists lie in the folder
        told = suggest_images(bundle, [tmp_path], out, count=3, labelled=tmp_path / "known.txt", hasher=HASHER)
        assert (told.suggested, told.pool, told.labelled, told.refused) == (3, 5, 1, 1)
    rows = rows_of(out)
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {Path(row["path"]).name for row in rows} <= {f"new{number}.png" for number in range(5)}
    assert all(set(row["unsure"].split("|")) < set(bundle.findings) for row in rows)
    reasons = {Path(row["path"]).name: row["reason"] for row in rows_of(skipped_path(out))}
    assert reasons == {"case.png": "labelled", "broken.png": "not_an_image"}


def test_nothing_to_choose_from_and_a_wrong_ending_are_said(bundle: Bundle, tmp_path: Path) -> None:
    film = images_in(tmp_path, "case.png")[0]
    with pytest.raises(DataError, match="no study to choose from: all 1 are labelled or refused"):
        suggest_images(bundle, [film], tmp_path / "next.csv", count=3, hasher=HASHER)
    with pytest.raises(DataError, match="written as CSV"):
        suggest_images(bundle, [film], tmp_path / "next.parquet", count=3)


def test_the_verb_runs_without_the_training_packages(bundle: Bundle, tmp_path: Path) -> None:
    from tests.test_serving_without_torch import BLOCKED

    images_in(tmp_path, *(f"new{number}.png" for number in range(3)))
    code = "from medsd.cli import main\nsys.argv = ['medsd', 'suggest', *sys.argv[1:]]\nmain()"
    command = [sys.executable, "-c", BLOCKED + code, bundle.folder, tmp_path, "--count", "2", "--workers", "1"]
    out = tmp_path / "next.csv"
    result = subprocess.run([*map(str, command), "--out", str(out)], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert len(rows_of(out)) == 2 and "2 of 3 studies suggested" in result.stdout


def test_a_run_suggests_among_its_unlabelled_training_studies(tmp_path: Path) -> None:
    import pandas as pd
    from safetensors.numpy import save_file

    from medsd.files import write_json
    from medsd.findings import finding_set
    from medsd.pipeline.folder import Run
    from medsd.settings import load_settings
    from medsd.studies.manifest import Manifest, complete

    config = Path(__file__).parents[2] / "configs" / "nih14.yaml"
    settings = load_settings(config, [f"output={tmp_path}", "data.root=nowhere"])
    run, findings = Run(settings), finding_set("nih14")
    table = complete(
        pd.DataFrame(
            {
                "study": [f"s{row}" for row in range(12)],
                "patient": [f"p{row}" for row in range(12)],
                "path": [f"s{row}.png" for row in range(12)],
                "split": ["train"] * 10 + ["validation", "test"],
            }
        ),
        findings,
    )
    table.loc[:3, list(findings)] = np.eye(4, len(findings), dtype=np.float32)
    Manifest(table, findings, tmp_path).write(run.manifest)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    save_file({"logits": rng.normal(size=(12, 14)).astype(np.float32), "embeddings": embeddings}, run.outputs)
    point = {"threshold": 0.3, "rule": "f1", "positives": 9, "negatives": 9}
    chosen = {name: {"slope": 1.0, "intercept": 0.0} for name in findings}
    choice = {"method": "platt", "positives": 9, "negatives": 9, "reason": "enough"}
    write_json(
        run.calibration,
        {
            "calibration": chosen,
            "choices": dict.fromkeys(findings, choice),
            "operating_points": dict.fromkeys(findings, point),
        },
    )
    told = suggest_studies(settings, tmp_path / "next.csv", count=4)
    assert told.pool == 6
    paths = {row["path"] for row in rows_of(tmp_path / "next.csv")}
    assert len(paths) == 4 and paths <= {f"s{row}.png" for row in range(4, 10)}
