"""From the words of a command to the runs of a grid."""

from typing import Any

import pytest

from gradhat.errors import ConfigError
from gradhat.training.sweeps.grid import (
    Point,
    check_once,
    commands,
    flags,
    flat,
    name_of,
    spoken,
    swept,
    varying,
)

DEFAULTS = {
    "env": "CartPole-v1",
    "seed": 0,
    "target_kl": None,
    "learning": {"lr": 0.1, "hidden": [64, 64], "settings": {"normalize_adv": True}},
}


def grid(text: str) -> list[str]:
    return [" ".join(words) for words in commands(flags(text.split(), DEFAULTS))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [""]),
        ("--lr 1", ["--lr 1"]),
        ("--lr=1 --seed=2", ["--lr 1 --seed 2"]),
        ("--seed 0..2", ["--seed 0", "--seed 1", "--seed 2"]),
        ("--seed -1..1", ["--seed -1", "--seed 0", "--seed 1"]),
        ("--seed 3..3 7", ["--seed 3", "--seed 7"]),
        ("--lr 1e-3 3e-4 --seed 0..1", [f"--lr {lr} --seed {s}" for lr in ("1e-3", "3e-4") for s in (0, 1)]),
        ("--lr 1 --lr 2", ["--lr 1", "--lr 2"]),
        ("--lr -1 -2.5", ["--lr -1", "--lr -2.5"]),
        # A flag of several words is one value each time it is given.
        ("--hidden 64 64", ["--hidden 64 64"]),
        ("--hidden 64 64 --hidden 8", ["--hidden 64 64", "--hidden 8"]),
        ("--hidden 1..3", ["--hidden 1..3"]),
        # Switches.
        ("--normalize-adv", ["--normalize-adv"]),
        ("--normalize-adv --no-normalize-adv", ["--normalize-adv", "--no-normalize-adv"]),
        ("--normalize_adv false True", ["--no-normalize-adv", "--normalize-adv"]),
        # What is no flag of the command is left to its parser.
        ("--lrr 1 2 --no-such", ["--lrr 1 --no-such", "--lrr 2 --no-such"]),
    ],
)
def test_every_flag_may_have_several_values(text: str, expected: list[str]) -> None:
    assert grid(text) == expected


def test_the_last_flag_changes_fastest() -> None:
    assert grid("--seed 0..1 --lr 1 2") == [f"--seed {s} --lr {lr}" for s in (0, 1) for lr in (1, 2)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--seed 4..0", "--seed 4..0: found a range that ends before it begins. Write 0..4."),
        (
            "--lr 1 2 --seed 0..9999",
            "a grid: found 20,000 runs; a sweep has at most 10,000. Give fewer values",
        ),
        (f"--seed 0..{10**29}", "--seed 0..10+: found [0,1]+ runs"),
        ("more --seed 1", "'more': found it before the first flag"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        grid(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--lr 1 2 1.0 --seed 0 1", "--lr 1 and --lr 1.0: found the same run twice"),
        ("--lr 1 2 --seed 0..2 1", "--seed 1 and --seed 1: found"),
        ("--lr 1 2 --seed 0..2", None),
    ],
)
def test_a_value_that_is_given_twice_is_named(text: str, wanted: str | None) -> None:
    found = flags(text.split(), DEFAULTS)
    points = [Point(words, {"lr": float(words[1]), "seed": int(words[3])}) for words in commands(found)]
    if wanted is None:
        check_once(found, points)
        return
    with pytest.raises(ConfigError, match=f"a grid with {wanted}"):
        check_once(found, points)


def test_words_belong_to_the_flag_before_them() -> None:
    assert spoken(["--a", "1", "-2", "--b=x=y", "--c"]) == [
        ("--a", ["1", "-2"]),
        ("--b", ["x=y"]),
        ("--c", []),
    ]


def test_settings_have_whole_names_and_differ_by_value() -> None:
    assert flat(DEFAULTS) == {
        "env": "CartPole-v1",
        "seed": 0,
        "target_kl": None,
        "learning.lr": 0.1,
        "learning.hidden": [64, 64],
        "learning.settings.normalize_adv": True,
    }
    assert varying([{"a": 1, "b": [1, 2], "c": 0}, {"a": 1, "b": [1, 3]}]) == ["b", "c"]
    assert varying([{"a": 1}]) == []


def point(**settings: Any) -> Point:
    lr, hidden = settings.pop("lr", 0.1), settings.pop("hidden", [64, 64])
    return Point((), {"env": "E", "seed": 0, "learning": {"lr": lr, "hidden": hidden}, **settings})


def test_only_what_the_flags_vary_names_a_run() -> None:
    # The number of frames follows from the environment: nobody asked for it to vary.
    points = [point(lr=lr, seed=s, num_frames=int(1 / lr)) for lr in (0.001, 3e-4) for s in (0, 1)]
    keys = swept(flags(["--env", "E", "--seed", "0..1", "--lr", "1e-3", "3e-4"], DEFAULTS), points)
    assert keys == ["seed", "learning.lr"]
    assert name_of(points[2].config, keys) == "seed=0,lr=0.0003"
    assert name_of(points[0].config, []) == "run"


@pytest.mark.parametrize(
    ("key", "settings", "name"),
    [
        ("learning.hidden", {"hidden": [64, 8]}, "hidden=64-8"),
        ("learning.lr", {"lr": 1e-05}, "lr=1e-05"),
        ("env", {"env": "ALE/Pong v5"}, "env=ALE-Pong-v5"),
        ("env", {"env": "../../é"}, "env=..-..-"),
        ("env", {"env": "x" * 400}, "env=" + "x" * 176),
        ("env", {"env": "zoo:luck"}, "env=zoo:luck"),
    ],
)
def test_a_name_can_be_that_of_a_folder(key: str, settings: dict[str, Any], name: str) -> None:
    assert name_of(point(**settings).config, [key]) == name
