"""`gradhat lab`: folders that can be read and run again, and every wrong command in one message."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from gradhat.cli import experiments, lab
from gradhat.cli.experiments import EXPERIMENTS, Bench, Bias, Model
from gradhat.cli.flags import parse
from gradhat.cli.main import main
from gradhat.errors import ConfigError, GradhatError, RunError
from gradhat.exact.zoo import ZOO, random_mdp
from gradhat.lab.report import Column, Report, Table
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json

OWN = """
def centred(returns):
    return returns - returns.mean()


def broken(returns):
    return returns / 0
"""
SMALL = {
    "bias": "--mdp two_states --estimators total_return gae_wrong_v group_mean --group-size 3 --seed 7",
    "variance": "--mdp corridor --horizon 5 --sizes 2 3 --lams 0 1 --group-size 2",
    "staleness": "--mdp small --updates 2 --lr 2",
    "kl": "--mdp bandit --updates 2 --lr 1.5",
    "clip": "--mdp bandit --epochs 2 --group-size 2",
    "algorithm": "dr_grpo --mdp bandit --group-size 2 --clip-high 0.3",
    "mine": "{own}:centred --mdp random --gamma 0.5 --horizon 2 --group-size 2",
    "model": "{model} --task {task} --batches 4 --num-prompts 2 --group-size 4 --max-new-tokens 6"
    " --num-threads 1 --dtype float32",
}
"""Each experiment in about a second."""


class Done(NamedTuple):
    argv: list[str]
    folder: Path
    printed: str

    def json(self, name: str) -> Any:
        def wrong(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads((self.folder / name).read_text(), parse_constant=wrong)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, letters_task: str
) -> Iterator[Callable[[str], Done]]:
    """Run an experiment once, in a window of 80 columns."""
    place = tmp_path_factory.mktemp("lab")
    (place / "own.py").write_text(OWN)
    found: dict[str, Done] = {}
    patch = pytest.MonkeyPatch()
    patch.setenv("COLUMNS", "80")

    def run(name: str) -> Done:
        if name not in found:
            words = SMALL[name].format(own=place / "own.py", model=tiny_model, task=letters_task).split()
            out, printed = place / "made" / name, StringIO()
            with redirect_stdout(printed):
                assert main(["lab", name, *words, "--out", str(out)]) == 0
            found[name] = Done(words, out, printed.getvalue())
        return found[name]

    yield run
    patch.undo()


def refused(*argv: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["lab", *argv]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


# --- the folder --------------------------------------------------------------------------------------------


def test_every_experiment_is_run_here() -> None:
    assert set(SMALL) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_folder_holds_what_was_printed_and_more(name: str, done: Callable[[str], Done]) -> None:
    ran = done(name)
    results, environment = ran.json("results.json"), ran.json("env.json")
    assert {"packages", "python", "commit", "processor"} <= set(environment)
    words = " ".join(ran.printed.split())
    assert words.startswith(results["question"])
    files = {"config.json", "env.json", "results.json"}
    for table, content in results["tables"].items():
        files.add(f"{table}.csv")
        assert content["title"] in words
        with (ran.folder / f"{table}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(content["rows"]) > 0
        for row, expected in zip(rows, content["rows"], strict=True):
            assert list(row) == list(expected)
            for key, value in expected.items():
                if value is None:
                    assert not math.isfinite(float(row[key]))
                else:
                    assert row[key] == str(value)  # repr of a float: every digit
    for note in results["notes"]:
        assert " ".join(note.split()) in words
    pictures = {path.stem for path in ran.folder.glob("*.png")}
    assert pictures
    for picture in pictures:
        files |= {f"{picture}.png", f"{picture}.svg"}
        pixels = imread(ran.folder / f"{picture}.png")
        assert pixels.shape[0] > 300 and pixels.shape[1] > 600 and pixels.std() > 0.01
        assert ElementTree.parse(ran.folder / f"{picture}.svg").getroot().tag.endswith("}svg")
    assert {path.name for path in ran.folder.iterdir()} == files
    last = ran.printed.splitlines()[-1]
    assert last == f"written to {ran.folder}: {', '.join(sorted(files))}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_printed_fits_eighty_columns(name: str, done: Callable[[str], Done]) -> None:
    lines = done(name).printed.splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    (gap,) = {line[:2] for line in lines if line.startswith(" ")}
    assert gap == lab.GAP


def again(config: dict[str, Any]) -> list[str]:
    """A command from config.json."""
    words: list[str] = []
    for key, value in config.items():
        if key in ("experiment", "subject", "out") or value in (None, "", []):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{key.replace('_', '-')}")
            continue
        words += [
            f"--{key.replace('_', '-')}",
            *(map(str, value) if isinstance(value, list) else [str(value)]),
        ]
    return words


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_config_holds_every_flag_and_gives_the_same_command_again(
    name: str, done: Callable[[str], Done]
) -> None:
    ran, experiment = done(name), EXPERIMENTS[name]
    config = ran.json("config.json")
    assert config["experiment"] == name
    assert config["subject"] == (ran.argv[0] if experiment.subject else "")
    assert config["out"] == str(ran.folder)
    flags = experiment.flags(config["subject"])
    given = ran.argv[1:] if experiment.subject else ran.argv
    first, second = (parse(flags, words, prog="", description="") for words in (given, again(config)))
    assert first == second
    assert first != flags
    assert set(config) == {"experiment", "subject", *lab.settings(flags)}


def test_the_same_command_gives_the_same_numbers(
    done: Callable[[str], Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradhat.lab.algorithm.figure", lambda of, findings: None)
    ran, experiment = done("algorithm"), EXPERIMENTS["algorithm"]
    words = again(ran.json("config.json"))
    flags = parse(experiment.flags("dr_grpo"), words, prog="", description="")
    report = experiment.run(flags, "dr_grpo")
    (expected,) = ran.json("results.json")["tables"].values()
    assert [dict(row) for row in report.tables[0].rows] == expected["rows"]


def test_a_number_that_does_not_exist_is_null_nan_and_a_dash(done: Callable[[str], Done]) -> None:
    """GAE with V = 0 vanishes in `two_states`: no cosine, no angle."""
    ran = done("bias")
    (row,) = (
        r for r in ran.json("results.json")["tables"]["two_states"]["rows"] if r["name"] == "gae_wrong_v"
    )
    assert row["cosine"] is None and row["angle"] is None and row["norm_ratio"] < 1e-12
    with (ran.folder / "two_states.csv").open(newline="") as file:
        (cells,) = (r for r in csv.DictReader(file) if r["name"] == "gae_wrong_v")
    assert (cells["cosine"], cells["angle"]) == ("nan", "nan")
    (printed,) = (line for line in ran.printed.splitlines() if "gae_wrong_v" in line and "–" in line)
    assert printed.split()[-4:] == ["0.0000", "–", "1.0000", f"{row['variance']:.2f}"]


def test_numbers_are_those_of_the_lab(done: Callable[[str], Done]) -> None:
    from gradhat.lab import microscope
    from gradhat.lab.shelf import shelf

    there = microscope.world(ZOO["two_states"](), seed=7, spread=0.5)
    known = {specimen.name: specimen for specimen in shelf(there)}
    rows = done("bias").json("results.json")["tables"]["two_states"]["rows"]
    assert [row["name"] for row in rows] == ["total_return", "gae_wrong_v", "group_mean"]
    for row in rows:
        found = microscope.examine(there, known[row["name"]], group_size=3)
        assert (row["norm_ratio"], row["variance"]) == (found.norm_ratio, found.variance)


def test_chosen_estimators_alone_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradhat.lab.bias.figure", lambda name, findings: name)
    names = ("dropped_discount", "group_mean")
    bench = Bench(gamma=0.9, horizon=3)
    found = experiments.bias(Bias(mdp=("bandit", "two_states"), estimators=names, bench=bench), "")
    assert [table.name for table in found.tables] == ["bandit", "two_states"]
    for table in found.tables:
        assert [row["name"] for row in table.rows] == list(names)
        assert "γ = 0.9" in table.title
    assert len(experiments.bias(Bias(mdp=("two_states",)), "").tables[0].rows) == 19


def test_without_out_a_folder_is_made_under_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = EXPERIMENTS["bias"]._replace(run=lambda flags, subject: Report("Why?", (table(),), (), {}))
    monkeypatch.setitem(EXPERIMENTS, "bias", quick)
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "bias"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("lab-bias-2")
    assert json.loads((folder / "config.json").read_text())["out"] is None
    assert (
        f"written to runs/{folder.name}: config.json, env.json, results.json, t.csv"
        in capsys.readouterr().out
    )


def test_two_experiments_of_one_second_have_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[int] = []

    def run(flags: Any, subject: str) -> Report:
        # The second begins while the first computes.
        if not inner:
            inner.append(0)
            inner.append(main(["lab", "bias"]))
        return Report("Why?", (table(),), (), {})

    monkeypatch.setitem(EXPERIMENTS, "bias", EXPERIMENTS["bias"]._replace(run=run))
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "bias"]) == 0 and inner == [0, 0]
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == ["lab-bias-20260101-000000", "lab-bias-20260101-000000-2"]
    assert all((folder / "results.json").exists() for folder in folders)


def test_an_experiment_that_fails_leaves_no_folder_under_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(flags: Any, subject: str) -> Report:
        raise ValueError("no")

    monkeypatch.setitem(EXPERIMENTS, "bias", EXPERIMENTS["bias"]._replace(run=run))
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "bias"]) == 2
    assert not list(tmp_path.iterdir())


# --- where it is written -----------------------------------------------------------------------------------


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is computed."""

    def run(flags: Any, subject: str) -> Report:
        raise AssertionError("computed")

    monkeypatch.setitem(EXPERIMENTS, "bias", EXPERIMENTS["bias"]._replace(run=run))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, never: None) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"found something there\. Choose another --out"):
        lab.main(["bias", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="found something there"):
        lab.main(["bias", "--out", str(tmp_path / "notes.txt")])


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_computed(
    tmp_path: Path, never: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Not a directory\. Choose an --out that can be written"):
        lab.main(["bias", "--out", str(tmp_path / "file" / "out")])


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path: Path, never: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(lab, "TemporaryFile", read_only)
    with pytest.raises(RunError, match=r"Read-only file system\. Choose an --out that can be written"):
        lab.main(["bias", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    "error", [ConfigError("no"), ValueError("no"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_a_failed_experiment_leaves_no_empty_folder(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    seen: list[bool] = []

    def run(flags: Bias, subject: str) -> Report:
        seen.append(Path("made/by/out").is_dir() or Path("runs").is_dir() or Path("mine").is_dir())
        raise error

    monkeypatch.setitem(EXPERIMENTS, "bias", EXPERIMENTS["bias"]._replace(run=run))
    expected = ConfigError if isinstance(error, ValueError) else type(error)
    for words in (["--out", "made/by/out"], [], ["--out", "mine"]):
        with pytest.raises(expected):
            lab.main(["bias", *words])
    assert seen == [True] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # empty, but not made here


# --- wrong commands ----------------------------------------------------------------------------------------


WRONG = {
    "no such experiment": (
        "baias",
        r"gradhat lab baias: no such experiment. Did you mean bias? Known: bias, ",
    ),
    "no such world": (
        "bias --mdp bandid",
        "--mdp bandid: no such world. Did you mean bandit? Known: bandit, ",
    ),
    "no such world of one": (
        "mine {own}:centred --mdp tigre",
        "--mdp tigre: no such world. Did you mean tiger?",
    ),
    "no such estimator": (
        "bias --mdp bandit --estimators group_men",
        "--estimators group_men: no such estimator. Did you mean group_mean or ",
    ),
    "a divisor that can be negative": (
        "bias --mdp corridor bandit --estimators max_rl",
        "--mdp corridor: found nothing to compare, as these say nothing in corridor.",
    ),
    "one of one's own": (
        "mine my.py:f --group-size 1",
        "--group-size 1: it is shown beside estimators that compare trajectories. Use 2 or more.",
    ),
    "nothing to compare": (
        "bias --mdp two_states bandit --estimators dropped_discount",
        "--mdp bandit: found nothing to compare, as these say nothing in bandit.",
    ),
    "no world": ("bias --mdp", "--mdp: found no world."),
    "no such flag": ("bias --mpd bandit", "gradhat lab bias --mpd: no such flag. Did you mean --mdp or "),
    "no such argument": ("bias bandit", "gradhat lab bias bandit: no such argument."),
    "no such algorithm": (
        "algorithm grpp",
        "lab algorithm grpp: no such algorithm. Known: reinforce, rloo, grpo",
    ),
    "the estimator of an algorithm": (
        "bias --mdp bandit --estimators rloo",
        "--estimators rloo: no such estimator. The estimator of this algorithm is leave_one_out. Known: ",
    ),
    "the algorithm of an estimator": (
        "algorithm leave_one_out",
        "lab algorithm leave_one_out: no such algorithm. The algorithm of this estimator is rloo. Known: ",
    ),
    "no algorithm": ("algorithm --mdp bandit", "gradhat lab algorithm NAME: found no NAME. Name it first"),
    "no function": ("mine", "gradhat lab mine FILE.py:FUNCTION: found no FILE.py:FUNCTION."),
    "no model": ("model", "gradhat lab model RUN|MODEL: found no RUN|MODEL."),
    "gamma": ("bias --mdp chain --gamma 1.5", "--mdp chain: gamma=1.5: a discount lies in [0, 1]."),
    "gamma nan": ("kl --mdp chain --gamma nan", "--mdp chain: gamma=nan"),
    "horizon": (
        "clip --mdp bandit --horizon 0",
        "--mdp bandit: horizon=0: a trajectory has ",
    ),
    "spread": ("bias --mdp bandit --spread -1", "--spread -1: a standard deviation is 0 or more."),
    "spread nan": ("bias --mdp bandit --spread nan", "--spread nan"),
    "seed": (
        "bias --mdp bandit --seed 10000000000000000000",
        "--seed 10000000000000000000: found a value out",
    ),
    "no slope": ("bias --mdp bandit --gamma 1 --spread 1000", "found that it is zero at this policy"),
    "group of one": (
        "bias --mdp bandit --estimators leave_one_out --group-size 1",
        "--group-size 1: leave_one_out compares trajectories with each other. Use 2 or more, or --estimators",
    ),
    "group of none": (
        "bias --mdp bandit --group-size 0",
        "--group-size 0: group_mean compares trajectories with each other. Use 2 or more",
    ),
    "endless": (
        "bias --mdp cliff_walk",
        "there are endlessly many and the limit of a list is 200000: found no horizon. Use a --horizon",
    ),
    "endless to list": ("kl --mdp four_rooms", "found endlessly many, the limit is 200000."),
    "too large to list": (
        "clip --mdp cliff_walk --horizon 15",
        "list every trajectory of this world: found 1.074e+09, the limit is 200000.",
    ),
    "no step": ("algorithm grpo --lr 0", "lr=0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_ends_in_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    words, wanted = WRONG[name]
    said = refused(*words.format(own="own.py").split(), code=2, capsys=capsys)
    assert said.startswith("ConfigError: ") and wanted in said
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("mine own.py:cantred", "own.py has no function 'cantred'. Functions there: centred, broken."),
        ("mine own.py:broken", "estimator own.py:broken: returned [inf, "),
        ("mine nowhere.py:f", "there is no file nowhere.py"),
    ],
)
def test_an_estimator_of_ones_own_that_is_wrong_is_no_wrong_command(
    words: str,
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    said = refused(*words.split(), "--mdp", "bandit", code=1, capsys=capsys)
    assert said.startswith("EstimatorError: ") and wanted in said
    assert {path.name for path in tmp_path.iterdir()} <= {"own.py", "__pycache__"}


def test_a_world_that_never_ends_needs_a_discount(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ZOO, "random", partial(random_mdp, horizon=None))
    said = refused("bias", "--mdp", "random", "--gamma", "1", code=2, capsys=capsys)
    assert "--mdp random: gamma=1 without an absorbing end" in said


# --- help --------------------------------------------------------------------------------------------------


def test_the_lab_alone_lists_its_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab"]) == 2
    alone = capsys.readouterr().out
    assert main(["lab", "--help"]) == 0
    assert capsys.readouterr().out == alone
    assert alone.startswith("usage: gradhat lab EXPERIMENT")
    for name, experiment in EXPERIMENTS.items():
        assert f"\n  {name} {experiment.subject}".rstrip() in alone and experiment.about in alone


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_explains_its_flags(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        main(["lab", name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"gradhat lab {name}" in said and EXPERIMENTS[name].about in " ".join(said.split())
    for flag in lab.settings(EXPERIMENTS[name].flags("")):
        assert f"--{flag.replace('_', '-')}" in said


def test_the_help_imports_no_torch() -> None:
    code = (
        "import sys; from gradhat.cli.main import main; main(['lab', '--help']);"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'tyro') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


# --- tables ------------------------------------------------------------------------------------------------


def table(*few: dict[str, Any]) -> Table:
    columns = (Column("name", "estimator", ""), Column("x", "long header", ".1f"), Column("y", "y", ".0f"))
    rows = tuple({"name": f"n{i}", "x": 10.0**i, "y": math.nan if i else 3.0} for i in range(3))
    return Table("t", "A title", columns, rows, few)


def test_words_stand_left_and_numbers_right() -> None:
    assert lab.fitted(table(), 80) == (
        [
            "  estimator  long header  y",
            "  n0                 1.0  3",
            "  n1                10.0  –",
            "  n2               100.0  –",
        ],
        [],
    )


@pytest.mark.parametrize(
    ("width", "left"),
    [(27, []), (26, ["y"]), (24, ["y"]), (23, ["long header", "y"]), (11, ["long header", "y"])],
)
def test_columns_that_do_not_fit_are_left_out_from_the_right(width: int, left: list[str]) -> None:
    lines, missing = lab.fitted(table(), width)
    assert missing == left
    assert max(map(len, lines)) <= width


def test_people_see_the_few_rows_where_there_are_many(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "25")
    short = table(table().rows[1])
    lab.show(Report("Why [bold]so[/bold]?", (short, table()), ("A note with [brackets].",), {}))
    said = " ".join(capsys.readouterr().out.split())
    assert "n1 10.0" in said and said.count("n0") == 1
    assert "(t.csv has more: 2 more rows; y)" in said and "(t.csv has more: y)" in said
    assert "A note with [brackets]." in said
    assert lab.as_csv(short).splitlines() == ["name,x,y", "n0,1.0,3.0", "n1,10.0,nan", "n2,100.0,nan"]


# --- a language model --------------------------------------------------------------------------------------


def test_a_model_is_measured_for_every_estimator_and_group_size(done: Callable[[str], Done]) -> None:
    from gradhat.lab.model import ESTIMATORS

    ran = done("model")
    (content,) = ran.json("results.json")["tables"].values()
    found = [(row["estimator"], row["group_size"]) for row in content["rows"]]
    assert found == [(name, size) for name in ESTIMATORS for size in (2, 4)]
    assert {row["num_groups"] for row in content["rows"]} == {2}
    assert "2 prompts a batch" in content["title"]
    rows = {(row["estimator"], row["group_size"]): row for row in content["rows"]}
    left_out, mean = rows["rloo", 4], rows["group_mean", 4]
    assert left_out["signal"] == pytest.approx(mean["signal"] * (4 / 3) ** 2)
    assert left_out["snr"] == pytest.approx(mean["snr"])


def test_a_run_brings_its_own_task_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(
        task="arithmetic:digits=2", temperature=0.8, max_new_tokens=17, system="Be brief.", group_size=6
    )
    RunFolder.create(tmp_path / "run", to_json(config)).close()
    flags = experiments.model_flags(str(tmp_path / "run"))
    assert (flags.task, flags.temperature, flags.max_new_tokens, flags.system, flags.group_size) == (
        "arithmetic:digits=2",
        0.8,
        17,
        "Be brief.",
        6,
    )
    assert {
        key: value for key, value in asdict(flags).items() if key in ("batches", "parameters", "out")
    } == {
        "batches": Model().batches,
        "parameters": "",
        "out": None,
    }
    assert experiments.model_flags("") == experiments.model_flags(str(tmp_path)) == Model()
    # The task is there; what is missing is something trained.
    said = refused("model", str(tmp_path / "run"), "--out", str(tmp_path / "out"), code=1, capsys=capsys)
    assert "RunError" in said and "found none yet. Train on first" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", "found no task. Name one: --task"),
        ("--task {task} --batches 3", "batches=3: found a value out of range. Use 4 or more."),
        ("--task {task} --group-size 1", "group_size=1: found a value out of range. Use 2 or more."),
        ("--task {task} --num-prompts 0", "num_prompts=0"),
        ("--task {task} --max-new-tokens 0", "max_new_tokens=0"),
        ("--task {task} --num-slots 0", "num_slots=0"),
        ("--task {task} --temperature 0", "temperature=0: sampling needs more than 0."),
        ("--task {task} --parameters blocks.7.*", "parameters 'blocks.7.*': found none of that name."),
    ],
)
def test_what_a_model_cannot_be_asked_is_said_before_anything_is_sampled(
    words: str,
    wanted: str,
    tiny_model: Path,
    letters_task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gradhat.lab.model.sample", None)
    monkeypatch.chdir(tmp_path)
    said = refused("model", str(tiny_model), *words.format(task=letters_task).split(), code=2, capsys=capsys)
    assert wanted in said
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_no_wrong_command(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(GradhatError, match="task 'nothing' is unknown"):
        lab.main(["model", str(tiny_model), "--task", "nothing", "--out", str(tmp_path / "out")])
