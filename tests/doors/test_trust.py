"""A folder from anywhere is read and never executed. Each folder here tries to make a file, its marker."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gradhat.cli.main import main
from gradhat.errors import ConfigError
from gradhat.training import checkpoint
from gradhat.training.control.session import STATE
from gradhat.training.trust import BRIDGES, allow, code_in

CONTROL = (
    "train ppo --env CartPole-v1 --num-envs 2 --num-steps 8 --num-minibatches 1 --hidden 4 --num-frames 64"
)
CONTROL += " --log-every 32 --eval-every 0 --eval-episodes 2 --eval-max-steps 5 --checkpoint-every 32"
TEXT = (
    "--num-steps 1 --num-prompts 2 --group-size 2 --max-new-tokens 4 --eval-questions 2 --final-questions 2"
)
TEXT += " --final-samples 1 --num-threads 1 --dtype float32"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    path = tmp_path_factory.mktemp("text") / "run"
    argv = ["train", "--task", "arithmetic", "--model", str(tiny_model), *TEXT.split(), "--out", str(path)]
    assert main(argv) == 0
    return path


@pytest.fixture(scope="module")
def control_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("control") / "run"
    assert main([*CONTROL.split(), "--out", str(path)]) == 0
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def evil_code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


# --- text runs ---------------------------------------------------------------------------------------------


def evil_task(run: Path, marker: Path) -> None:
    file = run / "task.py"
    file.write_text(
        evil_code(marker)
        + "from gradhat.envs.text.arithmetic import Arithmetic\nclass Mine(Arithmetic): pass\n"
    )
    edit(run / "config.json", task=f"{file}:Mine", curriculum=[f"{file}:Mine"])


def evil_reward(run: Path, marker: Path) -> None:
    file = run / "rewards.py"
    file.write_text(evil_code(marker) + "def one(completions, **_): return [1.0] * len(completions)\n")
    edit(run / "config.json", reward=[f"{file}:one"])


def newest(run: Path) -> Path:
    return checkpoint.steps(run / "checkpoints")[0]


def resealed(folder: Path) -> None:
    """Put the right checksums into state.json: they find damage, not forgery."""
    state = json.loads((folder / "state.json").read_text())
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "state.json")
    state["files"] = {p.name: checkpoint._sum(p) for p in files}  # pyright: ignore[reportPrivateUsage]
    (folder / "state.json").write_text(json.dumps(state))


def evil_tokenizer(run: Path, marker: Path) -> None:
    folder = newest(run)
    (folder / "tokenizer.json").unlink()
    (folder / "tok.py").write_text(evil_code(marker) + "class Tok: pass\n")
    (folder / "configuration_evil.py").write_text(evil_code(marker))
    auto = {"AutoTokenizer": ["tok.Tok", "tok.Tok"], "AutoConfig": "configuration_evil.Evil"}
    edit(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="Tok")
    edit(folder / "config.json", auto_map=auto)
    resealed(folder)


def evil_weights(run: Path, marker: Path) -> None:
    folder = newest(run)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker)))
    resealed(folder)


def evil_template(run: Path, marker: Path) -> None:
    attack = "{{ self.__init__.__globals__.__builtins__.open('" + str(marker) + "', 'w') }}"
    (newest(run) / "chat_template.jinja").write_text(attack)
    resealed(newest(run))


TEXT_EVILS = [evil_task, evil_reward, evil_tokenizer, evil_weights, evil_template]
TEXT_VERBS = [
    "eval RUN --n 2 --samples 1",
    "lab model RUN --batches 2 --num-prompts 2 --group-size 2 --out LAB",
    "chat RUN --max-new-tokens 2",
    "plot RUN",
    "watch RUN",
]


@pytest.mark.parametrize("verb", TEXT_VERBS)
@pytest.mark.parametrize("evil", TEXT_EVILS)
def test_reading_a_text_run_executes_nothing_of_it(
    text_run: Path,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    evil: Callable[[Path, Path], None],
    verb: str,
) -> None:
    run = copied(text_run, tmp_path / "run")
    evil(run, marker)
    # Whoever is asked says yes.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.chdir(tmp_path)
    code = main(
        [word.replace("RUN", str(run)).replace("LAB", str(tmp_path / "lab")) for word in verb.split()]
    )
    assert not marker.exists()
    assert code in (0, 1, 2)


def test_a_task_file_of_a_run_is_executed_for_whoever_names_or_trusts_it(
    text_run: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(text_run, tmp_path / "run")
    evil_task(run, marker)
    ask = ["eval", str(run), "--n", "2", "--samples", "1"]
    assert main(ask) == 2
    error = capsys.readouterr().err
    assert f"task {run}/task.py:Mine" in error and "--task" in error and "--trust" in error
    assert main([*ask, "--task", "arithmetic"]) == 0 and not marker.exists()
    assert main([*ask, "--trust"]) == 0 and marker.exists()
    marker.unlink()
    assert main([*ask, "--task", f"{run}/task.py:Mine"]) == 0 and marker.exists()


def test_a_reward_file_of_a_run_is_executed_for_whoever_names_or_trusts_it(
    text_run: Path, tmp_path: Path, marker: Path
) -> None:
    run = copied(text_run, tmp_path / "run")
    evil_reward(run, marker)
    ask = ["eval", str(run), "--n", "2", "--samples", "1"]
    assert main(ask) == 2 and main([*ask, "--task", "arithmetic"]) == 2 and not marker.exists()
    assert main([*ask, "--trust"]) == 0 and marker.exists()
    marker.unlink()
    assert main([*ask, "--reward", f"{run}/rewards.py:one"]) == 0 and marker.exists()


def test_a_resume_says_what_it_executes_before_it_does(
    text_run: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(text_run, tmp_path / "run")
    evil_task(run, marker)
    (run / "task.py").write_text("print('now')\n" + (run / "task.py").read_text())
    assert main(["train", "--resume", str(run), "--num-steps", "2"]) == 0
    out = capsys.readouterr().out
    said = f"executes task {run}/task.py:Mine, which {run}/config.json names"
    assert said in out and out.index(said) < out.index("now\n")


# --- control runs ------------------------------------------------------------------------------------------


def evil_world(run: Path, marker: Path) -> None:
    folder = newest(run)
    tensors = load_file(folder / STATE)
    bad = pickle.dumps(Evil(marker))
    tensors["collector/world"] = torch.from_numpy(np.frombuffer(bad, np.uint8).copy())
    checkpoint.save_tensors(tensors, folder / STATE)
    resealed(folder)


def evil_module(run: Path, marker: Path) -> None:
    (run.parent / "evil_module.py").write_text(
        evil_code(marker)
        + "import gymnasium\n"
        + "gymnasium.register('Evil-v0', entry_point='gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    edit(run / "config.json", env="evil_module:Evil-v0")


def evil_argument(run: Path, marker: Path) -> None:
    evil_module(run, marker)
    edit(run / "config.json", env="GymV21Environment-v0", env_args=["env_id=evil_module:Evil-v0"])


CONTROL_EVILS = [evil_world, evil_module, evil_argument]


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("verb", ["eval RUN --episodes 2", "watch RUN --max-steps 3", "plot RUN"])
@pytest.mark.parametrize("evil", CONTROL_EVILS)
def test_reading_a_control_run_executes_nothing_of_it(
    control_run: Path, tmp_path: Path, marker: Path, evil: Callable[[Path, Path], None], verb: str
) -> None:
    run = copied(control_run, tmp_path / "run")
    evil(run, marker)
    code = main(verb.replace("RUN", str(run)).split())
    assert not marker.exists()
    wanted = 0 if evil is evil_world or verb.startswith("plot") else 2
    assert code == wanted


@pytest.mark.parametrize("bridge", BRIDGES)
def test_an_environment_that_makes_one_of_another_library_is_code(bridge: str) -> None:
    """Whatever its arguments look like: they name what is imported."""
    assert code_in({"env": bridge, "env_args": ["env_id=Old"]}) == [f"env {bridge}"]
    with pytest.raises(
        ConfigError, match=f"would be executed here: env {bridge}. Name it yourself with --env"
    ):
        allow("gradhat eval runs/x", {"env": bridge}, ["env"], "--env", trusted=False)
    allow("gradhat eval runs/x", {"env": bridge}, ["env"], "--env", trusted=True)
    assert bridge in gymnasium.registry, "under the name that it has in Gymnasium"


@pytest.mark.usefixtures("importable")
def test_a_module_of_a_run_is_imported_for_whoever_names_or_trusts_it(
    control_run: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(control_run, tmp_path / "run")
    evil_module(run, marker)
    assert main(["eval", str(run), "--episodes", "2", "--env", "CartPole-v1"]) == 0 and not marker.exists()
    assert main(["eval", str(run), "--episodes", "2", "--trust"]) == 0 and marker.exists()
    assert main(["eval", str(run), "--episodes", "2"]) == 2
    assert "env evil_module:Evil-v0" in capsys.readouterr().err


@pytest.mark.usefixtures("importable")
def test_a_checkpoint_is_data_for_a_resume_too(
    control_run: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(control_run, tmp_path / "run")
    evil_world(run, marker)
    assert main(["train", "--resume", str(run), "--num-frames", "96"]) == 1
    assert not marker.exists() and "TaskError" in capsys.readouterr().err
