"""Settings: every shipped configuration loads, and what is wrong is named with its line."""

from itertools import pairwise
from pathlib import Path

import pytest

from medsd.dicom.policy import GatePolicy
from medsd.errors import SettingsError
from medsd.settings import load_gate, load_settings, save_settings
from medsd.strict import as_yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))  # those of compare/ have a test of their own
SMALL = """\
name: small
findings: nih14
data:
  source: nih14
  root: somewhere
training:
  pretrain:
    epochs: 3
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_settings(path).name == path.stem


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_valid_key(config: Path) -> None:
    config.write_text(SMALL.replace("epochs", "epoch"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"small\.yaml:8: unknown key 'training\.pretrain\.epoch'.*'epochs'"):
        load_settings(config)


def test_an_unknown_key_of_a_source_is_compared_with_the_keys_of_that_source(config: Path) -> None:
    config.write_text(SMALL.replace("  root: somewhere", "  root: somewhere\n  limt: 3"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"small\.yaml:6: unknown key 'data\.limt'; did you mean 'limit'"):
        load_settings(config)


def test_an_unknown_key_of_a_merged_source_is_named_with_its_line(tmp_path: Path) -> None:
    merge = (CONFIGS[0].parent / "merge.yaml").read_text(encoding="utf-8")
    (tmp_path / "merge.yaml").write_text(merge.replace("labels: mesh", "lables: mesh"), encoding="utf-8")
    line = 1 + merge[: merge.index("labels: mesh")].count("\n")
    with pytest.raises(SettingsError, match=rf":{line}: unknown key 'data\.sources\.3\.lables'; did you mean 'labels'"):
        load_settings(tmp_path / "merge.yaml")


@pytest.mark.parametrize("value", ["ten", "'3'", "2.5", "true", "-1"])
def test_a_value_of_the_wrong_type_or_range_is_named_with_its_line(config: Path, value: str) -> None:
    config.write_text(SMALL.replace("epochs: 3", f"epochs: {value}"), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"small\.yaml:8: 'training\.pretrain\.epochs'"):
        load_settings(config)


def test_a_missing_key_is_named(config: Path) -> None:
    config.write_text(SMALL.replace("findings: nih14\n", ""), encoding="utf-8")
    with pytest.raises(SettingsError, match="'findings' is missing"):
        load_settings(config)


def test_overrides_reach_nested_keys_and_are_checked_alike(config: Path) -> None:
    settings = load_settings(config, ["training.finetune.batch_size=16", "network.note.layers=1"])
    assert settings.training.finetune.batch_size == 16
    assert settings.network.note is not None and settings.network.note.layers == 1
    with pytest.raises(SettingsError, match=r"--set: unknown key 'pixels\.sise'; did you mean 'size'"):
        load_settings(config, ["pixels.sise=64"])


@pytest.mark.parametrize("override", ["pixels.size", "=3", "a..b=3", "name.inner=3"])
def test_an_override_that_cannot_be_read_says_how_to_write_it(config: Path, override: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        load_settings(config, [override])


def test_settings_survive_a_round_trip(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config, ["pixels.size=64"])
    save_settings(settings, tmp_path / "resolved.yaml")
    assert load_settings(tmp_path / "resolved.yaml") == settings


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "x: !!python/object:os.system 'true'", "\x00"])
def test_what_is_no_plain_yaml_mapping_is_refused_in_one_line(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(config)
    assert "\n" not in str(caught.value)


def test_shares_that_do_not_add_up_are_refused(config: Path) -> None:
    with pytest.raises(SettingsError, match="add up to 1"):
        load_settings(config, ["splits.test=0.5"])


def test_the_gate_is_a_section_with_strict_keys_and_values(config: Path) -> None:
    config.write_text(SMALL + "gate:\n  view: warn\n  modalities: [DX]\n", encoding="utf-8")
    gate = load_settings(config, ["gate.lateral_look=refuse"]).gate
    assert (gate.view, gate.lateral_look, gate.modalities) == ("warn", "refuse", ("DX",))
    config.write_text(SMALL + "gate:\n  view: perhaps\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"small\.yaml:10: 'gate\.view'.*'perhaps'"):
        load_settings(config)


def test_a_gate_for_serving_needs_no_file(tmp_path: Path) -> None:
    assert load_gate(None) == GatePolicy()
    assert load_gate(None, ["gate.view=warn"]).view == "warn"
    with pytest.raises(SettingsError, match=r"^--set: 'gate\.max_frames'"):
        load_gate(None, ["gate.max_frames=0"])
    (tmp_path / "gate.yaml").write_text("gate:\n  veiw: warn\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"gate\.yaml:2: unknown key 'gate\.veiw'; did you mean 'view'"):
        load_gate(tmp_path / "gate.yaml")


@pytest.mark.parametrize(
    "text,value", [("1e-5", 1e-5), ("1E-3", 1e-3), ("2.5e+0", 2.5), (".5e-2", 5e-3), ("3e-4 ", 3e-4)]
)
def test_a_number_with_an_exponent_is_a_number(config: Path, text: str, value: float) -> None:
    key = "training.finetune.learning_rate"
    assert load_settings(config, [f"{key}={text}"]).training.finetune.learning_rate == value
    written = config.with_name("exponent.yaml")
    written.write_text(SMALL + f"  finetune:\n    learning_rate: {text}\n", encoding="utf-8")
    assert load_settings(written).training.finetune.learning_rate == value


def test_a_name_that_looks_like_a_number_survives_being_written(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config, ["name='1e5'"])
    save_settings(settings, tmp_path / "again.yaml")
    assert (
        load_settings(tmp_path / "again.yaml") == settings and as_yaml("1e5") == "'1e5'" and as_yaml(1e-5) == "1.0e-05"
    )


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, r"small\.yaml:\d+: .*more than 10,000 values"),
        ("name: " + "[" * 20_000, r"small\.yaml: .*nested too deeply"),
        ("a: &a\n  - *a", r"small\.yaml: .*nested too deeply"),
        (SMALL + "    epochs: 4\n", r"small\.yaml:9: .*the key 'epochs' stands here a second time"),
        (SMALL + "findings: openi14\n", r"small\.yaml:9: .*the key 'findings' stands"),
        (SMALL + "2020-01-01: x\n", r"small\.yaml:9: .*a key is a word"),
        (SMALL + "? [x]\n: y\n", r"small\.yaml:9: .*a key is a word"),
        (SMALL + "seed: 2020-13-45\n", r"small\.yaml: .*does not exist"),
    ],
)
def test_yaml_that_is_made_to_harm_or_says_a_thing_twice_is_one_line(config: Path, text: str, said: str) -> None:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said) as caught:
        load_settings(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 20_000, "{a: 1, a: 2}", "&a [*a]"])
def test_an_override_is_read_as_carefully(config: Path, value: str) -> None:
    with pytest.raises(SettingsError, match="the value is not valid YAML"):
        load_settings(config, [f"bundle.description={value}"])
