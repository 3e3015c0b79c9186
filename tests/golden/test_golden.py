"""A few updates of every algorithm give the numbers they gave: where one changes, it is meant, or a bug.

Only `python tests/golden/regenerate.py` writes the numbers.
"""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

import golden_runs
import language_runs
import pytest
import regenerate
from golden_runs import RUNS, TOLERANCE, file_of, numbers_of, tolerance_of

from gradhat.algorithms.grpo_family import FAMILY
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.text.config import TrainConfig


def differences(
    found: Any, wanted: Any, place: str = "", tolerance: tuple[float, float] = TOLERANCE
) -> list[str]:
    """Return a line for every number that differs by more than the tolerance: a share, and a size."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = [f"{place}/{key}: only on one side" for key in sorted(found.keys() ^ wanted.keys())]
        for key in sorted(found.keys() & wanted.keys()):
            lines += differences(found[key], wanted[key], f"{place}/{key}", tolerance)
        return lines
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, (f, w) in pairs for line in differences(f, w, f"{place}/{i}", tolerance)]
    if isinstance(wanted, float | int) and isinstance(found, float | int):
        same = math.isclose(found, wanted, rel_tol=tolerance[0], abs_tol=tolerance[1])
        return [] if same else [f"{place}: {found} instead of {wanted}"]
    return [] if found == wanted else [f"{place}: {found} instead of {wanted}"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_numbers_it_gave(name: str) -> None:
    found = json.loads(json.dumps(numbers_of(name)))
    wrong = differences(found, json.loads(file_of(name).read_text()), tolerance=tolerance_of(name))
    assert not wrong, (
        f"{name} computes something else than it did:\n" + "\n".join(wrong[:20]) + "\n"
        f"If that is meant: python tests/golden/regenerate.py {name}"
    )


def test_every_algorithm_has_a_golden_run() -> None:
    """But A3C: see golden_runs.py."""
    control = {learning.name for learning, _ in golden_runs.CONTROL.values()}
    assert control == set(ALGORITHMS) - {"a3c"}
    assert {f"text_{name}" for name in FAMILY} < set(RUNS)
    assert {file.stem for file in golden_runs.FOLDER.glob("*.json")} == set(RUNS)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"a3c"}))
def test_every_setting_is_off_its_default_in_one_run(name: str) -> None:
    """Some exclude each other: what a critic needs, an average refuses."""
    runs = [learning for run, (learning, _) in golden_runs.CONTROL.items() if run.startswith(f"{name}_off")]
    same = [
        path
        for path, value in settings_of(ALGORITHMS[name].learning).items()
        if all(settings_of(learning)[path] == value for learning in runs)
    ]
    assert not same, f"{name}_off has the default of {same}"


def test_every_setting_of_a_language_run_is_off_its_default_in_one() -> None:
    default = TrainConfig()
    same = [
        field.name
        for field in fields(TrainConfig)
        if all(
            getattr(config, field.name) == getattr(default, field.name)
            for config in language_runs.CONFIGS.values()
        )
    ]
    assert not same, f"every language run has the default of {same}"


def settings_of(part: Any, path: str = "") -> dict[str, Any]:
    """Every setting of a dataclass, those of dataclasses inside it included."""
    found: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        inside = is_dataclass(value)
        found |= settings_of(value, f"{field.name}.") if inside else {path + field.name: value}
    return found


def test_the_smallest_difference_that_matters_is_found() -> None:
    wanted = {"lines": [{"a": 1.0}, {"b": None}], "weights": {"w": [0.5, 2.0]}}
    assert differences(wanted, wanted) == []
    other = {"lines": [{"a": 1.0 + 1e-8}, {"b": None}], "weights": {"w": [0.5, 2.0 + 1e-12]}}
    assert differences(other, wanted) == ["/lines/0/a: 1.00000001 instead of 1.0"]
    assert differences({"lines": [], "weights": {}}, wanted) == [
        "/lines: [] instead of [{'a': 1.0}, {'b': None}]",
        "/weights/w: only on one side",
    ]


def test_only_the_command_writes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(golden_runs, "FOLDER", tmp_path)
    (tmp_path / "gone.json").write_text("{}")
    assert regenerate.main(["text_grpo"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["text_grpo.json"]
    kept = json.loads((tmp_path / "text_grpo.json").read_text())
    assert differences(kept, json.loads(json.dumps(numbers_of("text_grpo")))) == []
    assert capsys.readouterr().out == "written text_grpo.json\nremoved gone.json\n"
    assert regenerate.main(["grpo"]) == 2
    assert "grpo: no such golden run. Known: reinforce" in capsys.readouterr().err
