"""Where a model comes from: one function for train, eval, chat and the lab."""

import json
import shutil
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.errors import ModelError, RunError
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.weights import load
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, read, to_json
from gradhat.training.text.model import find, settled

SHORT = [
    *[
        "--num-steps",
        "2",
        "--checkpoint-every",
        "1",
        "--num-prompts",
        "2",
        "--group-size",
        "2",
        "--max-new-tokens",
        "4",
        "--lr",
        "1e-2",
    ],
    *[
        "--num-threads",
        "1",
        "--dtype",
        "float32",
        "--final-questions",
        "2",
        "--final-samples",
        "1",
        "--eval-every",
        "9",
    ],
    "--no-replace-silent",
]


@pytest.fixture
def run(tiny_model: Path, letters_task: str, tmp_path: Path) -> Path:
    """A run of two steps."""
    path = tmp_path / "first"
    argv = ["train", "--task", letters_task, "--model", str(tiny_model), *SHORT, "--out", str(path)]
    assert main(argv) == 0
    return path


def weights(folder: Path) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in load(folder).state_dict().items()}


def test_training_goes_on_from_a_run(run: Path, tiny_model: Path, letters_task: str, tmp_path: Path) -> None:
    """Its newest checkpoint is the start, also when the run itself has gone on since."""
    newest = run / "checkpoints" / "step_000002"
    assert find(str(run)) == newest
    second = tmp_path / "second"
    still = ["--lr", "0", "--num-steps", "1", "--out", str(second)]
    assert main(["train", "--task", letters_task, "--model", str(run), *SHORT, *still]) == 0
    assert read(second).model == str(newest)
    assert weights(find(str(second))) == weights(newest) != weights(tiny_model)
    assert main(["train", "--resume", str(run), "--num-steps", "3"]) == 0
    assert find(str(run)).name == "step_000003"
    assert main(["train", "--resume", str(second), "--num-steps", "2"]) == 0


def test_a_checkpoint_stops_where_the_model_stops(run: Path, tiny_model: Path) -> None:
    ends = sorted(Chat.read(tiny_model).stop_ids)
    for name in ("generation_config.json", "config.json"):
        assert json.loads((find(str(run)) / name).read_text())["eos_token_id"] == ends


def test_names_that_mean_the_same_from_anywhere(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "model")
    assert settled("model") == settled("~/model") == settled("./model") == str(tmp_path / "model")
    assert settled("first") == settled("~/first") == str(run / "checkpoints" / "step_000002")
    assert find("~/first") == run / "checkpoints" / "step_000002"
    for name in ("smollm2-135m", "hf:owner/name", "absent", "~nobody-of-that-name"):
        assert settled(name) == name


def test_a_run_that_is_not_there_is_not_looked_for_elsewhere(
    run: Path, letters_task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    for verb in (["train", "--task", letters_task, "--model", "firts"], ["chat", "firts"]):
        assert main(verb) == 1
        assert "Did you mean first" in capsys.readouterr().err


def test_a_run_without_a_language_model(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "empty", to_json(TrainConfig(task="arithmetic"))).close()
    with pytest.raises(RunError, match="found none yet"):
        find(str(tmp_path / "empty"))
    (tmp_path / "odd").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        find(str(tmp_path / "odd"))
