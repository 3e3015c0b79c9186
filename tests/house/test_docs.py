"""What the pages say and what the code does are one."""

import re
from pathlib import Path

from reading import ROOT


def family_table(page: str) -> list[list[str]]:
    block = re.search(r"<!-- family -->(.*?)<!-- /family -->", page, re.DOTALL)
    assert block is not None
    rows = [line.strip("| ").split(" | ") for line in block.group(1).strip().splitlines()]
    return rows[2:]


def test_the_family_on_the_page_is_the_family_in_the_code() -> None:
    from gradhat.algorithms.grpo_family import FAMILY

    in_code = [
        [name, *("–" if f is None else f.__name__.lstrip("_") for f in vars(row).values())]
        for name, row in FAMILY.items()
    ]
    assert family_table((ROOT / "docs/algorithms/grpo.md").read_text()) == in_code


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 5
    assert not [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]


def test_every_setting_that_a_page_names_is_one() -> None:
    from gradhat.cli.flags import names
    from gradhat.cli.train import TextLaunch
    from gradhat.recipes.tuned import control
    from gradhat.training.control.algorithms import ALGORITHMS
    from gradhat.training.text.config import TrainConfig

    pages = [ROOT / "README.md", ROOT / "docs/control.md", *(ROOT / "docs/algorithms").glob("*.md")]
    commands = [
        c
        for page in pages
        for c in re.findall(r"^ +(?:\S*/)?gradhat train .*$", page.read_text(), re.MULTILINE)
    ]
    configs = [TrainConfig(), *(control(name, "CartPole-v1") for name in ALGORITHMS)]
    known = {flag for config in configs for flag in names(TextLaunch(config))}
    flags = {flag for c in commands for flag in re.findall(r"--([a-z-]+)", c.partition("#")[0])}
    assert len(flags) > 3
    assert not {flag for flag in flags if f"--{flag.removeprefix('no-')}" not in known}


def test_the_task_in_the_readme_works(tmp_path: Path) -> None:
    from gradhat.envs.text.load import load_task
    from gradhat.envs.text.task import check, judge

    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ((name, source),) = blocks
    (tmp_path / name).write_text(source)
    task = load_task(f"{tmp_path / name}:MyTask")
    assert str(check(task)) == "its own answers score 1, the empty completion scores 0"
    question = task.question(3)
    assert judge(task, question, question.answer[:2]).reward == 0.5


def first_column(page: str, header: str) -> list[str]:
    """The names in backticks of the table under `header`."""
    table = page.partition(f"{header} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)


def test_the_lab_page_lists_the_worlds_the_arguments_and_the_experiments_there_are() -> None:
    from gradhat.cli.experiments import EXPERIMENTS
    from gradhat.exact.zoo import ZOO
    from gradhat.lab.mine import ARGUMENTS

    page = (ROOT / "docs/lab.md").read_text()
    assert sorted(first_column(page, "| `--mdp`")) == sorted(ZOO)
    assert first_column(page, "| argument") == list(ARGUMENTS)
    assert set(re.findall(r"^    gradhat lab (\w+)", page, re.MULTILINE)) == set(EXPERIMENTS)


def test_the_estimators_of_the_lab_page_work(tmp_path: Path) -> None:
    from gradhat.exact.zoo import bandit
    from gradhat.lab.microscope import examine, world
    from gradhat.lab.mine import load, specimen

    ((name, source),) = re.findall(
        r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/lab.md").read_text(), re.DOTALL
    )
    (tmp_path / name).write_text(source)
    small = world(bandit(), seed=0, spread=0.5)
    for function in ("centred", "ppo"):
        spec = f"{tmp_path / name}:{function}"
        found = examine(small, specimen(load(spec), spec, small, 3), group_size=3)
        # On one step both are the group mean: (G - 1) / G of the gradient.
        assert abs(found.norm_ratio - 2 / 3) < 1e-12
        assert abs(found.cosine - 1) < 1e-12
