"""A whole small comparison: the report, what is kept, and what is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from medsd.cli import main
from medsd.errors import DataError
from medsd.experiments.compare.cells import Task, finding_groups, ranking_figures, read_piece
from medsd.experiments.compare.run import choose, compare
from medsd.experiments.compare.settings import CompareSettings, LossVariant, Trial, trials
from medsd.experiments.engine import exact_command
from medsd.files import write_json
from medsd.metrics.retrieval import Cases, unit

SETTINGS = """\
name: small
root: nowhere
sets: [yeast]
losses: [sd, any, bce, warm]
variants: {warm: {loss: sd, temperature: 0.5, title: warm}}
questions: [{ask: "Does warmth help?", reference: sd, arms: [warm], metrics: [ndcg, precision_tail]}]
seeds: [0, 1, 2]
k: 3
bootstrap: 50
budget: {hidden: 16, embedding: 8, projection: 4, epochs: 4, batch_size: 32}
grid: {learning_rate: [0.01], temperature: [0.1, 0.5], weight_decay: [0.01, 0.1], probe_penalty: [0.001]}
"""
FINDINGS = ("a", "b", "c", "d")


def write_set(folder: Path) -> None:
    """A small set with the files of Mulan's yeast; labels follow from the inputs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = "".join(f'<label name="{name}"></label>' for name in FINDINGS)
    (folder / "yeast.xml").write_text(f'<labels xmlns="http://mulan.sourceforge.net/labels">{names}</labels>')
    header = "@relation r\n" + "".join(f"@attribute x{n} numeric\n" for n in range(6))
    header += "".join(f"@attribute {name} {{0,1}}\n" for name in FINDINGS) + "@data\n"
    for part, count in (("train", 90), ("test", 40)):
        inputs = rng.normal(size=(count, 6))
        labels = (inputs[:, :4] + rng.normal(0, 0.5, (count, 4)) > [0.0, 0.3, 0.6, 1.0]).astype(int)
        rows = [",".join([*map("{:.4f}".format, x), *map(str, y)]) for x, y in zip(inputs, labels, strict=True)]
        (folder / f"yeast-{part}.arff").write_text(header + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison, its configuration and its data beside it."""
    home = tmp_path_factory.mktemp("compare")
    write_set(home / "data" / "yeast")
    (home / "small.yaml").write_text(SETTINGS)
    return run(home).parent


def run(home: Path, *overrides: str) -> Path:
    return compare(home / "small.yaml", [f"root={home / 'data'}", f"output={home / 'runs'}", *overrides])


def home_of(done: Path) -> Path:
    return done.parents[1]


def results(done: Path) -> dict[str, Any]:
    return json.loads((done / "small.results.json").read_text(encoding="utf-8"))


def test_the_report_has_its_tables_its_plots_and_the_command(done: Path) -> None:
    text = (done / "small.md").read_text(encoding="utf-8")
    for part in ("Where SD wins, ties and loses", "| ANY |", "Holm's p", "R4 superset", "k = 3", "How it was done"):
        assert part in text
    for part in ("### Does warmth help?", "- **warm**: ", "| minus SD | yeast |", "**precision@10, tail.**"):
        assert part in text
    for plot in ("metrics", "frequency", "relations", "cosines", "spaces"):
        assert f"(small-yeast-{plot}.png)" in text
        assert 2_000 < (done / f"small-yeast-{plot}.png").stat().st_size < 60_000
    assert "medsd compare small.yaml --set root=FOLDER/data" in text
    assert str(home_of(done)) not in text + json.dumps(results(done))


def test_the_means_are_those_of_the_cells(done: Path) -> None:
    of_set = results(done)["sets"][0]
    cells = [json.loads((done / "pieces" / "yeast" / "sd" / f"seed{seed}.json").read_text()) for seed in range(3)]
    ndcg = [cell["outcome"]["metrics"]["ndcg"] for cell in cells]
    assert of_set["losses"]["sd"]["seeds"]["ndcg"] == pytest.approx(ndcg)
    assert of_set["losses"]["sd"]["means"]["ndcg"]["mean"] == pytest.approx(np.mean(ndcg), abs=1e-5)
    assert np.mean(cells[0]["outcome"]["query_ndcg"]) == pytest.approx(ndcg[0], abs=1e-5)
    assert of_set["tests"]["ndcg"].keys() == {"any", "bce", "warm"}
    answered = results(done)["questions"][0]["answers"]["ndcg"]["tests"]["warm"]["yeast"]
    assert answered["difference"]["mean"] == pytest.approx(-of_set["tests"]["ndcg"]["warm"]["difference"]["mean"])


def test_the_test_part_decides_nothing(done: Path) -> None:
    """Other test labels change the figures, and no choice."""
    home = home_of(done)
    other = home / "other"
    write_set(other / "data" / "yeast")
    path = other / "data" / "yeast" / "yeast-test.arff"
    head, rows = path.read_text().split("@data\n")
    path.write_text(head + "@data\n" + "".join(row[:-1] + str(1 - int(row[-1])) + "\n" for row in rows.splitlines()))
    (other / "small.yaml").write_text(SETTINGS)
    run(other, "losses=[sd,any]", "variants={}", "questions=[]", "workers=1")
    before, after = (results(folder)["sets"][0]["losses"]["sd"] for folder in (done, other / "runs" / "small"))
    assert before["chosen"] == after["chosen"] and before["validation_ndcg"] == after["validation_ndcg"]
    assert before["seeds"]["ndcg"] != after["seeds"]["ndcg"]


def test_a_second_run_trains_nothing_and_writes_the_same_bytes(done: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("small.md", "small.results.json", "small-yeast-metrics.png", "small-yeast-spaces.png")
    before = [(done / name).read_bytes() for name in names]
    with caplog.at_level(logging.INFO):
        run(home_of(done))
    assert "12 of 12 cells kept" in caplog.text and "cell 1/" not in caplog.text
    assert [(done / name).read_bytes() for name in names] == before


def test_what_is_lost_is_worked_out_again_and_comes_out_the_same(done: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = results(done)["sets"]
    (done / "pieces" / "yeast" / "any" / "seed1.json").unlink()
    (done / "pieces" / "yeast" / "bce" / "seed2.json").write_text("{ cut off")
    with caplog.at_level(logging.INFO):
        run(home_of(done), "workers=1")
    assert "10 of 12 cells kept" in caplog.text and "cell 2/2" in caplog.text
    assert results(done)["sets"] == before


def test_the_figures_of_the_ranking_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random((40, 4)) < [0.6, 0.5, 0.3, 0.2]).astype(np.float64)
    cases = [
        Cases(rng.normal(size=(len(part), 3)), part, np.array([f"{side}{row}" for row in range(len(part))]))
        for side, part in (("a", labels[:15]), ("b", labels[15:]))
    ]
    found = ranking_figures(cases[0], cases[1], {"head": np.array([0, 1]), "tail": np.array([3])})
    similarity = unit(cases[0].embeddings) @ unit(cases[1].embeddings).T
    has = np.flatnonzero(labels[:15, 3])
    first = np.argsort(-similarity[has], axis=1)[:, :10]
    assert found["precision_tail"] == pytest.approx(labels[15:, 3][first].mean())
    by_sklearn = [average_precision_score(labels[15:, 3], similarity[query]) for query in has]
    assert found["ranking_map_tail"] == pytest.approx(np.mean(by_sklearn))
    assert found.keys() == {
        f"{name}{group}" for name in ("precision", "ranking_map") for group in ("", "_head", "_tail")
    }


def test_a_piece_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    settings = CompareSettings(name="x", root=tmp_path, sets=("yeast",))
    longer = settings.model_copy(update={"budget": settings.budget.model_copy(update={"epochs": 7})})
    task = Task("cell", "sd", Trial(0.001, 0.01, 0.1), 0, 0.01, 0.5)
    write_json(tmp_path / "piece.json", {"fingerprint": task.fingerprint(settings, "data"), "outcome": {"metrics": {}}})
    assert read_piece(tmp_path / "piece.json", task.fingerprint(settings, "data")) == {"metrics": {}}
    varied = settings.model_copy(update={"variants": {"sd": LossVariant(loss="sd", options={"direction": "both"})}})
    for other in (longer, varied):
        assert read_piece(tmp_path / "piece.json", task.fingerprint(other, "data")) is None
    assert read_piece(tmp_path / "piece.json", task.fingerprint(settings, "other data")) is None


def test_the_choice_is_the_best_mean_on_the_validation_part(tmp_path: Path) -> None:
    settings = CompareSettings(name="x", root=tmp_path, sets=("yeast",))
    grid = list(trials("sd", settings))
    tried = {
        Task("trial", "sd", trial, seed): {"ndcg": 0.4 + (n == 3), "map": [0.1, 0.3, 0.2], "thresholds": [1, 0.4, 3]}
        for n, trial in enumerate(grid)
        for seed in settings.grid.seeds
    }
    found = choose("sd", tried, settings)
    assert found.trial == grid[3] and found.penalty == settings.grid.probe_penalty[1] and found.threshold == 0.4


def test_head_middle_and_tail_follow_the_frequency_in_training() -> None:
    labels = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=np.float32)
    assert {group: columns.tolist() for group, columns in finding_groups(labels).items()} == {
        "head": [0, 2], "middle": [1], "tail": [3]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "override", "shown"),
    [
        ("configs/compare/yeast.yaml", "seeds=[1,2]", "medsd compare configs/compare/yeast.yaml --set seeds=[1,2]"),
        ("/home/someone/mine.yaml", "root=/data/x", "medsd compare mine.yaml --set root=FOLDER/x"),
        ("mine.yaml", "root=../../data/x", "medsd compare mine.yaml --set root=FOLDER/x"),
    ],
)
def test_the_command_names_no_folder_of_the_machine(config: str, override: str, shown: str) -> None:
    assert exact_command(Path(config), [override]) == shown


def test_a_missing_set_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(SETTINGS)
    monkeypatch.setattr("sys.argv", ["medsd", "compare", str(tmp_path / "small.yaml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "set 'yeast'" in error and "Traceback" not in error


def test_a_set_whose_parts_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "data" / "yeast")
    (tmp_path / "small.yaml").write_text(SETTINGS)
    path = tmp_path / "data" / "yeast" / "yeast.xml"
    path.write_text(path.read_text().replace('"a"', '"z"'))
    with pytest.raises(DataError, match="do not belong together"):
        run(tmp_path)
