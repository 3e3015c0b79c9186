"""Checkpoints come back to the bit, load in transformers, and a damaged one is passed over."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradhat.errors import DamagedError, RunError
from gradhat.policies.language import weights
from gradhat.policies.language.config import read_config
from gradhat.training import checkpoint
from gradhat.training.text import model_checkpoint

CURSOR = {"questions": 17, "success": 0.1 + 0.2}
Save = Callable[..., Path]


@pytest.fixture
def save(tiny_model: Path, tmp_path: Path) -> Save:
    """Save the tiny model as the checkpoint of a step, its weights scaled by the step."""
    config = read_config(tiny_model)

    def save(step: int, full: int = 2) -> Path:
        return model_checkpoint.save(
            tmp_path,
            step,
            masters(tiny_model, step),
            moments(step),
            CURSOR,
            config=config,
            source=tiny_model,
            stop_ids=[258],
            keep=2,
            full=full,
        )

    return save


def masters(model: Path, step: int) -> dict[str, Tensor]:
    # Not representable in bfloat16: a checkpoint that stores less than float32 is caught.
    return {name: t.float() * (1 + step * 1e-5) for name, t in weights.load(model).state_dict().items()}


def moments(step: int) -> dict[str, Tensor]:
    return {"first.norm.weight": torch.arange(5.0) / 7 + step, "second.norm.weight": torch.arange(5.0) / 3}


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_what_was_saved_comes_back_to_the_bit(save: Save, tiny_model: Path, tmp_path: Path) -> None:
    save(10)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.cursor, damage) == (10, CURSOR, [])
    wanted = masters(tiny_model, 10)
    assert model_checkpoint.masters(found).keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model_checkpoint.masters(found).items())
    assert all(
        torch.equal(tensor, moments(10)[name]) for name, tensor in model_checkpoint.optimizer(found).items()
    )


def test_only_the_newest_are_kept(save: Save, tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save(step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000100"]


def test_an_older_one_keeps_its_weights_and_loses_its_moments(
    save: Save, tiny_model: Path, tmp_path: Path
) -> None:
    old, new = save(10, full=1), save(20, full=1)
    assert not (old / "optimizer.safetensors").exists() and (new / "optimizer.safetensors").exists()
    light = checkpoint.read(old)
    assert light.light and not checkpoint.read(new).light
    wanted = masters(tiny_model, 10)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model_checkpoint.masters(light).items())


def test_an_older_one_keeps_its_moments_until_the_next_is_written(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while the next one is published leaves something to go on from."""
    old = save(10, full=1)

    def full(partial: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="full"):
        patched.setattr(checkpoint, "publish", full)
        save(20, full=1)
    found, passed = checkpoint.newest(tmp_path, to_train=True)
    assert found is not None and (found.path, passed) == (old, [])


def test_no_training_goes_on_from_weights_alone(save: Save, tmp_path: Path) -> None:
    save(10, full=1)
    flip_a_bit(save(20, full=1) / "optimizer.safetensors")
    found, passed = checkpoint.newest(tmp_path)
    assert found is not None and (found.step, len(passed)) == (10, 1)
    found, passed = checkpoint.newest(tmp_path, to_train=True)
    assert found is None
    assert "step_000020" in passed[0] and "damaged" in passed[0]
    assert "step_000010 holds weights only" in passed[1]


def test_a_light_one_lets_a_full_one_before_it_be_found(save: Save, tmp_path: Path) -> None:
    save(10)
    checkpoint.lighten(save(20), model_checkpoint.OPTIMIZER)
    found, passed = checkpoint.newest(tmp_path, to_train=True)
    assert found is not None and (found.step, len(passed)) == (10, 1)


def test_what_a_kill_leaves_of_the_moments_is_removed_later(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(10, full=1)
    with monkeypatch.context() as patched:

        def killed(path: Path) -> None:
            raise KeyboardInterrupt

        patched.setattr(checkpoint, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.lighten(old, model_checkpoint.OPTIMIZER)
    assert (old / "optimizer.safetensors").exists() and checkpoint.read(old).light
    save(20, full=1)
    assert not (old / "optimizer.safetensors").exists()


def test_a_damaged_one_stays_as_it_is(save: Save, tmp_path: Path) -> None:
    old = save(10, full=1)
    os.truncate(old / "state.json", 30)
    save(20, full=1)
    assert (old / "optimizer.safetensors").exists() and (old / "state.json").stat().st_size == 30


def test_sizes_are_those_on_the_disk(save: Save, tiny_model: Path, tmp_path: Path) -> None:
    weights = sum(t.numel() * 4 for t in masters(tiny_model, 1).values())
    save(10, full=1), save(20, full=1)
    stored = [(tmp_path / f"step_0000{step}/model.safetensors").stat().st_size for step in (20, 10)]
    for full, wanted in ((1, [3, 1]), (2, [3, 3])):
        sizes = model_checkpoint.sizes(masters(tiny_model, 1), num_saved=9, keep=2, full=full)
        assert sizes == [times * weights for times in wanted]
    assert stored == pytest.approx([weights, weights], rel=0.05)
    assert model_checkpoint.sizes(masters(tiny_model, 1), num_saved=1, keep=2, full=2) == [3 * weights]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.json"]
)
@pytest.mark.parametrize(
    "harm", [flip_a_bit, lambda f: os.truncate(f, 7), Path.unlink], ids=["flip", "truncate", "delete"]
)
def test_a_damaged_file_falls_back_to_the_checkpoint_before(
    save: Save, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    save(10)
    harm(save(20) / name)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10
    assert len(damage) == 1 and "step_000020" in damage[0] and name in damage[0]


def test_a_damaged_state_falls_back_too(save: Save, tmp_path: Path) -> None:
    save(10)
    os.truncate(save(20) / "state.json", 30)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10
    assert "state.json" in damage[0]
    (tmp_path / "step_000020/state.json").unlink()
    (tmp_path / "step_000020/state.json").mkdir()
    found, (line,) = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 10 and "state.json is damaged" in line


def test_with_no_whole_checkpoint_there_is_none(save: Save, tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])
    flip_a_bit(save(10) / "model.safetensors")
    found, damage = checkpoint.newest(tmp_path)
    assert found is None and len(damage) == 1


def test_a_full_disk_keeps_the_checkpoint_before(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(10)

    def full(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"step_000020: No space left on device.*--resume"):
        save(20)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000010"]
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and (found.step, damage) == (10, [])


def test_a_step_can_be_saved_again(save: Save, tmp_path: Path) -> None:
    flip_a_bit(save(10) / "model.safetensors")
    save(10)
    found, damage = checkpoint.newest(tmp_path)
    assert found is not None and (found.step, damage) == (10, [])


BROKEN = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """It may be whole: taking it for damage would give up what was learned since the one before."""
    save(10)
    file = save(20) / name
    opened = io.open

    def failing(path: object, *args: object, **kwargs: object) -> object:
        if path == file or path == str(file):
            raise OSError(code, os.strerror(code))
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", failing)
    with pytest.raises(
        RunError, match=rf"step_000020/{name}: {os.strerror(code)}.*Nothing was changed"
    ) as it:
        checkpoint.newest(tmp_path)
    assert not isinstance(it.value, DamagedError)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_of_somebody_else_is_an_error_that_names_it(save: Save, tmp_path: Path) -> None:
    (save(10) / "optimizer.safetensors").chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(RunError, match=r"optimizer\.safetensors: Permission denied"):
            checkpoint.newest(tmp_path)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_whoever_may_read_the_folder_may_read_every_file(save: Save, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = save(10)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


STATES = {
    "a list": [],
    "no cursor": {"step": 10, "files": {}},
    "a step of another folder": {"step": 11, "cursor": {}, "files": {}},
    "a step in words": {"step": "10", "cursor": {}, "files": {}},
    "a cursor that is a list": {"step": 10, "cursor": [], "files": {}},
    "files that are a list": {"step": 10, "cursor": {}, "files": ["model.safetensors"]},
    "a file outside": {"step": 10, "cursor": {}, "files": {"../../secret": {"bytes": 1, "crc32": 1}}},
    "a name of no file": {"step": 10, "cursor": {}, "files": {"\0": {"bytes": 1, "crc32": 1}}},
    "a name in no encoding": {"step": 10, "cursor": {}, "files": {"\ud800": {"bytes": 1, "crc32": 1}}},
    "a sum that is none": {"step": 10, "cursor": {}, "files": {"model.safetensors": None}},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_shape_is_damage(save: Save, name: str) -> None:
    path = save(10)
    (path / "state.json").write_text(json.dumps(STATES[name]))
    with pytest.raises(DamagedError, match=r"state\.json is damaged"):
        checkpoint.read(path)
