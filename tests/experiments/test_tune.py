"""A search for hyper-parameters: what it proposes, how it goes on, what it says; and one on phantoms, trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from medsd.errors import DataError, MedsdError, SettingsError
from medsd.experiments.settings import Dimension, TuneSettings, Value
from medsd.settings import load_settings
from medsd.strict import as_yaml, load_as
from tests.runs import PHANTOM, SMALL

optuna = pytest.importorskip("optuna", reason="medsd[tune] is not installed")

from optuna.trial import Trial, TrialState  # noqa: E402

from medsd.experiments.tune import Search, open_study, run_trials, tune  # noqa: E402
from medsd.training.engine import EndedEarly, Stage  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RATE, SIZE, LOSS = "training.finetune.learning_rate", "training.finetune.batch_size", "loss.name"
SPACE = f"{{{RATE}: {{low: 1e-4, high: 1e-2, log: true}}, {SIZE}: {{low: 4, high: 12, step: 4}}}}"


def write_config(folder: Path, space: str = SPACE, more: str = "") -> Path:
    path = folder / "trial.yaml"
    common = [*SMALL, f"data.root={folder / 'studies'}", "evaluation.minimum_positives=1", "training.pretrain.epochs=1"]
    path.write_text(
        f"name: trial\nbase: {PHANTOM}\noutput: {folder / 'out'}\ncommon: {json.dumps(common)}\n"
        f"space: {space}\ntrials: 3\nstartup: 2\n{more}"
    )
    return path


class Parabola:
    """Trainings that take no time: the figure is best at a learning rate of 0.001. `deaths` interrupts that many."""

    def __init__(self, settings: TuneSettings, deaths: int = 0) -> None:
        self.settings, self.deaths, self.seen = settings, deaths, list[tuple[int, float]]()

    def suggest(self, trial: Trial) -> dict[str, Value]:
        return {RATE: trial.suggest_float(RATE, 1e-5, 1e-1, log=True)}

    def train(self, trial: Trial, found: Mapping[str, Value]) -> dict[str, float]:
        rate = float(found[RATE] or 0)
        self.seen.append((trial.number, rate))
        if len(self.seen) == self.deaths:
            raise KeyboardInterrupt
        if rate > 0.05:
            raise SettingsError("the rate is too high")
        return {"auroc": 1 - abs(rate - 1e-3), "ndcg": 0.5, "loss": rate, "seconds": 1.0}

    def tidy(self, trial: Trial) -> None:
        pass


def settings_of(folder: Path, more: str = "") -> TuneSettings:
    return load_as(TuneSettings, write_config(folder, more=more))


def run_parabola(folder: Path, trials: int, deaths: int = 0) -> tuple[Parabola, optuna.Study]:
    folder.mkdir(exist_ok=True)
    settings = settings_of(folder).model_copy(update={"trials": trials})
    settings.folder.mkdir(parents=True, exist_ok=True)
    trainings, study = Parabola(settings, deaths), open_study(settings, "same", 3)
    try:
        run_trials(study, settings, trainings)
    except KeyboardInterrupt:
        assert deaths
    return trainings, study


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at_and_proposes_the_same(tmp_path: Path) -> None:
    whole, study = run_parabola(tmp_path / "whole", 12)
    first, _ = run_parabola(tmp_path / "parts", 12, deaths=5)
    second, resumed = run_parabola(tmp_path / "parts", 12)
    assert first.seen[-1] == second.seen[0] and first.seen[:-1] + second.seen == whole.seen
    assert len(set(whole.seen)) == 12 and resumed.best_params == study.best_params
    third, longer = run_parabola(tmp_path / "parts", 14)
    assert [number for number, _ in third.seen] == [12, 13] and len(longer.trials) == 14


def test_a_trial_that_fails_is_told_and_counted_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, study = run_parabola(tmp_path, 20)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed and len(study.trials) == 20
    assert all(trial.params[RATE] > 0.05 and trial.user_attrs["error"] == "the rate is too high" for trial in failed)
    assert f"trial {failed[0].number + 1} of 20: failed: the rate is too high" in caplog.text


def test_a_search_whose_first_trials_all_fail_stops_with_the_last_message(tmp_path: Path) -> None:
    class Hopeless(Parabola):
        def train(self, trial: Trial, found: Mapping[str, Value]) -> dict[str, float]:
            raise DataError("the loss is nan")

    settings = settings_of(tmp_path).model_copy(update={"trials": 40})
    settings.folder.mkdir(parents=True)
    with pytest.raises(MedsdError, match="all of the first 5 trials failed; the last: the loss is nan"):
        run_trials(open_study(settings, "same", 3), settings, Hopeless(settings))


def test_settings_that_were_tried_before_are_not_trained_again(tmp_path: Path) -> None:
    class Few(Parabola):
        def suggest(self, trial: Trial) -> dict[str, Value]:
            return {RATE: trial.suggest_categorical(RATE, [1e-4, 1e-3])}

    settings = settings_of(tmp_path).model_copy(update={"trials": 9})
    settings.folder.mkdir(parents=True)
    few, study = Few(settings), open_study(settings, "same", 3)
    run_trials(study, settings, few)
    assert len(few.seen) == 2 and len(study.trials) == 9 and study.best_params == {RATE: 1e-3}


def test_a_journal_with_a_torn_end_and_a_lock_left_behind_is_mended(tmp_path: Path) -> None:
    run_parabola(tmp_path, 3)
    journal = settings_of(tmp_path).folder / "journal.log"
    with journal.open("a") as file:
        file.write('{"op_code": 5, "wor')
    journal.with_name("journal.log.lock").symlink_to(journal)
    trainings, study = run_parabola(tmp_path, 4)
    assert [number for number, _ in trainings.seen] == [3] and len(study.trials) == 4


def test_a_damaged_journal_and_one_of_another_search_are_refused(tmp_path: Path) -> None:
    run_parabola(tmp_path, 2)
    settings = settings_of(tmp_path)
    with pytest.raises(DataError, match="holds a search over another base or space"):
        open_study(settings, "another", 3)
    (settings.folder / "journal.log").write_text("no JSON\nat all\n")
    with pytest.raises(DataError, match=r"journal\.log: damaged journal"):
        open_study(settings, "same", 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 1}, "give low and high, or choices"),
        ({"low": 2, "high": 1}, "low 2 must be below high 1"),
        ({"low": 0, "high": 1, "log": True}, "log: needs a low above 0, and no step"),
        ({"low": 1, "high": 10, "step": 4}, "step 4 does not lead from low 1 to high 10"),
        ({"choices": [1, 2], "low": 0}, "choices stand alone"),
    ],
)
def test_values_that_cannot_be_searched_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dimension.model_validate_json(json.dumps(values))


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ("{splits.seed: {choices: [0, 1]}}", "", "'splits.seed' changes what is measured"),
        ("{training.finetune.epochs: {low: 2, high: 9}}", "", "pruning: epochs of schedules of different lengths"),
        ("{loss.nmae: {choices: [sd, any]}}", "", "unknown key 'loss.nmae'; did you mean 'name'"),
        ("{loss.temperature: {low: -2.0, high: -1.0}}", "", "'loss.temperature': input should be greater than 0"),
        (
            f"{{{SIZE}: {{low: 1, high: 9}}}}",
            "",
            "'training.finetune.batch_size': input should be greater",
        ),
        ("{training.finetune.objective.name: {choices: [bce, asl, fokal]}}", "", "not 'fokal'"),
        ("{loss.temperature: {lwo: 0.1, high: 1.0}}", "", "did you mean 'low'"),
        (SPACE, "objective: f1\n", "'objective'"),
    ],
)
def test_a_search_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, space: str, more: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        tune(write_config(tmp_path, space, more))
    assert len(str(caught.value).splitlines()) == 1


def test_whole_numbers_are_proposed_where_the_setting_takes_no_others(tmp_path: Path) -> None:
    space = f"{{{SIZE}: {{low: 4, high: 12}}, training.finetune.weight_decay: {{low: 0, high: 1}}}}"
    config = write_config(tmp_path, space)
    search = Search(config, load_as(TuneSettings, config), ())
    study = optuna.create_study()
    found = [search.suggest(study.ask()) for _ in range(8)]
    assert all(isinstance(each[SIZE], int) for each in found)
    assert any(0 < float(each["training.finetune.weight_decay"] or 0) < 1 for each in found)


def test_settings_that_only_fit_together_can_be_searched(tmp_path: Path) -> None:
    note = "network.note"
    space = f"{{{note}.window: {{choices: [16, 24]}}, {note}.stride: {{low: 8, high: 14}}}}"
    config = write_config(tmp_path, space)  # a stride needs a window, which the base has not
    assert Search(config, load_as(TuneSettings, config), ()).base_values() == {}


@pytest.mark.parametrize("value", [1e-5, 0.25, 3, True, None, "sd", "null", "a: b, [c]"])
def test_a_value_written_as_yaml_reads_back_the_same(value: Value) -> None:
    assert yaml.safe_load(as_yaml(value)) == value


@pytest.mark.parametrize("config", sorted((CONFIGS / "tune").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_search_begins_with_its_base(config: Path) -> None:
    search = Search(config, load_as(TuneSettings, config), ())
    values = search.base_values()
    assert values.keys() == search.settings.space.keys()
    assert search.settings_of(values) == search.base


def test_a_trial_that_lags_behind_the_median_is_ended_early(tmp_path: Path) -> None:
    from medsd.experiments.tune import _reports

    class Told:
        """A stage whose epochs have these figures."""

        name, folder = "finetune", tmp_path
        settings = load_settings(PHANTOM, ["training.finetune.epochs=6"]).training.finetune

        def __init__(self, *aurocs: float) -> None:
            self.history = [{"validation_auroc": value} for value in aurocs]

    settings = settings_of(tmp_path)
    settings.folder.mkdir(parents=True)
    study = open_study(settings, "same", 6)
    for good in (0.7, 0.8):
        trial = study.ask()
        for epoch in range(1, 7):
            _reports(trial, tmp_path, "auroc")(Told(*[good] * epoch))  # type: ignore[arg-type]
        study.tell(trial, good)
    watch = _reports(study.ask(), tmp_path, "auroc")
    elsewhere: Stage = Told(0.1)  # type: ignore[assignment]
    elsewhere.folder = tmp_path / "rounds" / "1"
    watch(elsewhere)
    watch(Told(0.5))  # type: ignore[arg-type]  # the first third of the epochs tells too little
    watch(Told(0.5, 0.5))  # type: ignore[arg-type]
    with pytest.raises(EndedEarly, match=r"AUROC 0\.5000 after epoch 3"):
        watch(Told(0.5, 0.5, 0.5))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration and the report of a search on phantoms."""
    folder = tmp_path_factory.mktemp("tune")
    config = write_config(folder)
    return config, tune(config)


def test_a_search_trains_reports_and_leaves_the_best_settings(searched: tuple[Path, Path]) -> None:
    report = searched[1]
    tree = json.loads(report.with_suffix(".results.json").read_text())
    assert [each["state"] for each in tree["trials"]] == ["complete"] * 3
    aurocs = [each["figures"]["auroc"] for each in tree["trials"]]
    assert aurocs == sorted(aurocs, reverse=True) and len({each["figures"]["loss"] for each in tree["trials"]}) == 3
    assert tree["best"] == tree["trials"][0]["settings"]
    assert "The test patients were not looked at" in report.read_text()
    best = load_settings(report.with_name("best.yaml"))
    assert best.training.finetune.learning_rate == tree["best"][RATE]
    assert best.name == "phantom-tuned" and best.pixels.size == 32


def test_films_and_pretraining_are_made_once_and_what_is_large_is_removed(searched: tuple[Path, Path]) -> None:
    folder = searched[1].parent
    assert len(list(folder.glob("prepare-*/pixels.npy"))) == 1 == len(list(folder.rglob("pixels.npy"))) - 1
    assert len(list(folder.rglob("pretrain.safetensors"))) == 1
    for trial in ("trial-0001", "trial-0002", "trial-0003"):
        left = {path.name for path in (folder / trial).iterdir()}
        assert left == {"settings.yaml", "history.json", "tensorboard"}


def test_a_finished_search_trains_nothing_more_and_a_longer_one_goes_on(
    searched: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, report = searched
    before = report.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Search, "train", lambda *_: pytest.fail("trained again"))
        assert tune(config).read_bytes() == before
    tune(config, ["trials=4"])
    assert len(json.loads(report.with_suffix(".results.json").read_text())["trials"]) == 4


def test_a_second_search_in_the_same_folder_is_kept_out_and_torchrun_refused(
    searched: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medsd.pipeline.run import alone

    config, report = searched
    with alone(report.parent), pytest.raises(DataError, match="another medsd works on"):
        tune(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="start it without torchrun"):
        tune(config)
