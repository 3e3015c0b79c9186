"""Any value in any file of a run folder: a result, or a sentence that says what is wrong; nothing is lost."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gradhat.cli.main import main
from gradhat.cli.plot import read_all, unfinished
from gradhat.cli.sweep import finished_runs, planned, report
from gradhat.errors import ConfigError, RunError
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.filled import Unfit, fitted
from gradhat.training.sweeps.plan import Plan, begun
from gradhat.training.text.config import TrainConfig, from_json, to_json

ODD_TEXT = st.sampled_from(["", "x", "0", "\0", "\ud800", "../..", "a\nb", "\x1b[31m", "auto", "nan"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.just(10**20)
    | st.sampled_from([0.5, -1.0, float("nan"), float("inf")])
    | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ODD_TEXT, inner, max_size=2),
    max_leaves=4,
)
CONTROL = (
    "train dqn --env CartPole-v1 --num-envs 2 --num-steps 2 --capacity 32 --first-frames 4 --batch-size 4"
)
CONTROL += " --hidden 4 --num-frames 32 --log-every 16 --eval-every 0 --eval-episodes 2 --eval-max-steps 5"
TEXT = "train --task arithmetic --num-steps 1 --num-prompts 2 --group-size 2 --max-new-tokens 4"
TEXT += " --eval-questions 2 --final-questions 2 --final-samples 1 --num-threads 1 --dtype float32"
TEXT += " --max-replacements 0"

COMMANDS = {
    "text": ("eval RUN --n 2 --samples 1", "plot RUN --out OUT", "train --resume RUN --num-steps 2"),
    "control": ("eval RUN --episodes 2", "plot RUN --out OUT", "train --resume RUN --num-frames 48"),
}
FILES = ("config.json", "env.json", "metrics.jsonl", "summary.json", "state.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    assert main([*TEXT.split(), "--model", str(tiny_model), "--out", str(folder / "text")]) == 0
    assert main([*CONTROL.split(), "--out", str(folder / "control")]) == 0
    return {"text": folder / "text", "control": folder / "control"}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def spoil(file: Path, data: st.DataObject) -> None:
    """Put a generated value in some place of a file of JSON, or of lines of JSON."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = data.draw(st.integers(0, len(lines) - 1))
    values = json.loads(lines[number])
    path = data.draw(st.sampled_from(list(places(values))))
    lines[number] = json.dumps(put(values, path, data.draw(JSON)))
    file.write_text("\n".join(lines) + "\n")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check(runs: Mapping[str, Path], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(runs)))
    name = data.draw(st.sampled_from(FILES))
    command = data.draw(st.sampled_from(COMMANDS[kind]))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(runs[kind], Path(folder) / "run"))
        file = sorted(run.rglob(name))[-1]
        whole = file.read_bytes()
        spoil(file, data)
        before = tree(run)
        words = command.replace("RUN", str(run)).replace("OUT", f"{folder}/picture").split()
        code = main(words)
        assert code in (0, 1, 2)
        if code:
            assert tree(run) == before, "an error changes nothing"
        elif "--resume" in words:
            kept = set(tree(run).values())
            weights = [v for k, v in before.items() if k.endswith(".safetensors") or k.endswith(".parquet")]
            assert all(content in kept for content in weights), "a resume loses nothing"
        if code and "--resume" in words:
            file.write_bytes(whole)
            assert main(words) == 0, "with the right file it goes on"


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
AT_ONCE = (Phase.explicit, Phase.generate)
"""Every example is a command or three: the smallest one that fails would take minutes to find."""


@given(data=st.data())
@settings(max_examples=30, deadline=None, derandomize=True, phases=AT_ONCE, suppress_health_check=QUIET)
def test_any_value_in_any_file_ends_in_a_result_or_a_sentence(
    runs: Mapping[str, Path], data: st.DataObject
) -> None:
    check(runs, data)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=500, deadline=None, phases=AT_ONCE, suppress_health_check=QUIET)
def test_any_value_in_any_file_ends_in_a_result_or_a_sentence_at_length(
    runs: Mapping[str, Path], data: st.DataObject
) -> None:
    check(runs, data)


SWEEP = "ppo --env CartPole-v1 --num-envs 2 --num-steps 4 --num-minibatches 1 --hidden 4 --num-frames 16"
SWEEP += " --log-every 16 --eval-every 0 --eval-episodes 2 --eval-max-steps 5 --seed 0..1"
CONTENT = st.binary(max_size=12) | (JSON | st.dictionaries(st.sampled_from(["after", "steps"]), JSON)).map(
    lambda value: json.dumps(value).encode()
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A finished sweep of two runs."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    with begun(planned(SWEEP.split(), folder), SWEEP.split()) as found:
        for cell in found.cells:
            assert main(["train", *cell.point.words, "--out", str(cell.path)]) == 0
    return found


def table(sweep: Plan) -> None:
    """The table of the runs that can be read; what is listed of the others is an error here."""
    runs, unread = finished_runs(sweep)
    report(sweep, runs)
    for said in unread.values():
        raise RunError(said)


@pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_any_content_of_a_summary_is_a_table_and_a_picture_or_a_sentence(sweep: Plan, examples: int) -> None:
    """All that is read of it is that it is there and an object; a measurement reads the checkpoint alone."""
    run = sweep.cells[0].path
    file = run / "summary.json"
    whole = file.read_bytes()
    doors = [lambda: table(sweep), lambda: unfinished(read_all([sweep.folder]))]

    @settings(max_examples=examples, deadline=None, derandomize=examples < 100, suppress_health_check=QUIET)
    @given(content=CONTENT, door=st.sampled_from(doors))
    def holds(content: bytes, door: Callable[[], object]) -> None:
        file.write_bytes(content)
        try:
            door()
            read = True
        except RunError as error:
            assert str(run) in str(error) and "summary.json" in str(error)
            read = False
        with suppress(ValueError):
            assert read == isinstance(json.loads(content), dict) or b"NaN" in content or b"Inf" in content

    holds()
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    file.write_bytes(whole)


def test_a_damaged_file_of_measurements_stops_the_end_of_a_run_and_stays(
    runs: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed while it measured its end goes on, and adds to the file of its last step."""
    run = Path(shutil.copytree(runs["text"], tmp_path / "run"))
    (run / "summary.json").unlink()
    file = run / "evals/step_000001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    before = tree(run)
    assert main(["train", "--resume", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"RunError: read {file}: " in error and "move it away" in error
    assert tree(run).items() >= {name: before[name] for name in before if "/" in name}.items()
    file.write_bytes(whole)
    assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("dtype", "float16", "dtype is 'float16'. Write one of auto, float32, bfloat16, such as 'auto'."),
        ("temperature", "1", "temperature is '1'. Write a number, such as 1.0."),
        ("max_new_tokens", None, "max_new_tokens is None. Write a whole number, such as 32."),
        ("num_steps", True, "num_steps is True. Write a whole number"),
        ("num_steps", 2.0, "num_steps is 2.0. Write a whole number"),
        ("num_steps", 10**20, "Write a whole number"),
        ("replace_silent", 1, "replace_silent is 1. Write true or false"),
        ("task", 5, "task is 5. Write a text"),
        ("task", "\ud800", "Write a text"),
        ("betas", [0.9], "betas is [0.9]. Write a list of 2 values"),
        ("betas", [0.9, "x"], "Write a number"),
        ("curriculum", "arithmetic", "Write a list, of a text each"),
        ("num_threads", "two", "Write a whole number or null"),
        ("lr", float("nan"), "lr is nan. Write a number"),
    ],
)
def test_a_wrong_value_is_named_with_what_belongs_there(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_json({**to_json(TrainConfig(task="x")), name: value}, "runs/x")
    assert "read the config of runs/x: " in str(error.value) and wanted in str(error.value)


def test_a_whole_number_is_a_number() -> None:
    assert from_json({"lr": 1}, "x").lr == 1.0 and isinstance(from_json({"lr": 1}, "x").lr, float)


def settings_of(part: Any) -> Iterator[tuple[Any, Any]]:
    """Every field of a config with its type, those of the parts inside included."""
    types = get_type_hints(type(part))
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from settings_of(value)
        else:
            yield value, types[field.name]


def test_every_setting_is_of_a_type_that_is_checked() -> None:
    """A field of another type would be found only when a file is read."""
    configs = [TrainConfig(), *(ControlConfig(row.learning) for row in ALGORITHMS.values())]
    found = [one for config in configs for one in settings_of(config)]
    assert len(found) > 100
    for value, kind in found:
        assert fitted(value, kind) == value
        with pytest.raises(Unfit):
            fitted({"no": "setting"}, kind)
