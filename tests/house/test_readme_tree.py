"""The tree in README.md is the real tree: a map that is not tested is fiction."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

import pytest

from reading import ROOT, project_files

PACKAGE = "src/gradhat"
BLOCK = re.compile(r"<!-- tree -->(.*?)<!-- /tree -->", re.DOTALL)
LINE = re.compile(r"^(?P<indent>(?:[│ ] {3})*)(?:[├└]── )(?P<name>\S+)\s*#?\s*(?P<comment>.*)$")


class Entry(NamedTuple):
    """One line of the tree: a path from the root of the repository, a folder without its slash."""

    path: str
    is_folder: bool
    comment: str


def tree_block(readme: str) -> list[str]:
    """Return the lines of the tree, fences and the root's own line left out."""
    block = BLOCK.search(readme)
    if block is None:
        raise ValueError("README.md has no block between <!-- tree --> and <!-- /tree -->")
    inner = [line for line in block.group(1).splitlines() if line.strip() and not line.startswith("```")]
    return inner[1:] if inner and not LINE.match(inner[0]) else inner


def entries(lines: Iterable[str]) -> list[Entry]:
    """Parse the lines. A name may be a path of several parts (`src/gradhat/`); a folder ends in a slash."""
    found: list[Entry] = []
    open_folders: list[str] = []
    for line in lines:
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"README.md tree: cannot read the line {line!r}; write '├── name   what it is'")
        depth = len(match["indent"]) // 4
        if depth > len(open_folders):
            raise ValueError(f"README.md tree: {line!r} is indented deeper than its folder")
        path = "/".join([*open_folders[:depth], match["name"].rstrip("/")])
        is_folder = match["name"].endswith("/")
        open_folders = (
            [*open_folders[:depth], match["name"].rstrip("/")] if is_folder else open_folders[:depth]
        )
        found.append(Entry(path, is_folder, match["comment"].strip()))
    return found


def differences(tree: list[Entry], files: Iterable[str], empty: Iterable[str] = ()) -> list[str]:
    """Return a line for each difference between the README's tree and the project's `files`.

    Every file of the package has a line, every top-level entry has one, every line names what is there and
    says what it is. An `__init__.py` without content (in `empty`) may be left to its folder's line.
    """
    real = set(files)
    folders = {str(parent) for name in real for parent in PurePosixPath(name).parents}
    listed = {entry.path for entry in tree}
    unnamed = {name for name in empty if name.endswith("/__init__.py")}
    package = {name for name in real if name.startswith(f"{PACKAGE}/")} - unnamed
    tops = {name.split("/")[0] for name in real} - {path.split("/")[0] for path in listed}
    found = [f"+ {name}   (is there, has no line)" for name in sorted((package - listed) | tops)]
    for path, is_folder, comment in tree:
        if path not in (folders if is_folder else real):
            found.append(f"- {path}{'/' if is_folder else ''}   (has a line, is not there)")
        elif not comment:
            found.append(f"? {path}   (has a line that does not say what it is)")
    twice = {path for path in listed if sum(entry.path == path for entry in tree) > 1}
    return [*found, *(f"- {path}   (has two lines)" for path in sorted(twice))]


def test_the_tree_in_the_readme_is_the_real_tree() -> None:
    files = project_files()
    empty = [name for name in files if (ROOT / name).stat().st_size == 0]
    found = differences(entries(tree_block((ROOT / "README.md").read_text())), files, empty)
    assert not found, "README.md and the project differ:\n" + "\n".join(found)


README = """# a
<!-- tree -->
```
gradhat/
├── README.md            what this is
├── .ci/run              what runs on every change
├── src/gradhat/         the package
│   ├── errors.py        what a user can fix
│   ├── envs/            worlds
│   │   └── text/        worlds of text
│   │       └── task.py  # one question
│   └── py.typed         typed
└── tests/               proofs
```
<!-- /tree -->
"""
FILES = [
    *("README.md", ".ci/run", "tests/test_a.py"),
    *("src/gradhat/errors.py", "src/gradhat/py.typed"),
    *("src/gradhat/envs/__init__.py", "src/gradhat/envs/text/task.py"),
]
EMPTY = ["src/gradhat/envs/__init__.py"]


def compare(readme: str, files: list[str], empty: list[str] = EMPTY) -> list[str]:
    return differences(entries(tree_block(readme)), files, empty)


def test_a_true_tree_has_no_difference() -> None:
    assert compare(README, FILES) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("│   ├── errors.py        what a user can fix\n", "", "+ src/gradhat/errors.py"),
        ("└── tests/               proofs\n", "", "+ tests"),
        ("task.py", "tasks.py", "- src/gradhat/envs/text/tasks.py"),
        ("│   └── py.typed", "│   ├── lab/    microscope\n│   └── py.typed", "- src/gradhat/lab/"),
        ("├── .ci/run ", "├── NEWS.md    news\n├── .ci/run ", "- NEWS.md"),
        ("errors.py        what a user can fix", "errors.py", "? src/gradhat/errors.py"),
        ("├── README.md ", "├── README.md   again\n├── README.md ", "- README.md   (has two lines)"),
        ("│       └── task.py", "    └── task.py", "- src/gradhat/envs/task.py"),
    ],
)
def test_a_false_line_is_shown(old: str, new: str, expected: str) -> None:
    assert old in README
    found = compare(README.replace(old, new), FILES)
    assert any(line.startswith(expected) for line in found), found


def test_a_package_file_with_content_needs_its_line() -> None:
    assert compare(README, FILES, empty=[]) == ["+ src/gradhat/envs/__init__.py   (is there, has no line)"]


@pytest.mark.parametrize("readme", ["# no tree", README.replace("├── .ci/run  ", "* .ci/run  ")])
def test_a_tree_that_cannot_be_read_says_so(readme: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md"):
        compare(readme, FILES)


def test_every_home_in_the_notation_is_there() -> None:
    rows = [line for line in (ROOT / "docs/notation.md").read_text().splitlines() if line.startswith("|")]
    homes = [row.rsplit("|", 2)[1] for row in rows]
    paths = [path for home in homes for path in re.findall(r"`([a-z_/]+(?:/|\.py))`", home)]
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / PACKAGE / path).exists()]
