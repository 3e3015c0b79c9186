"""The project speaks of itself alone: no path of one machine, no host, no tracker number, no promise.

The patterns are written with one letter in brackets so that this page does not match itself.
"""

import re

import pytest

from reading import ROOT, project_files

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.$~}/-])/(?:wor[k]|roo[t]|op[t]|tm[p])/",
    "a host of a package registry": r"pyp[i]\.org|pythonhoste[d]\.org|npmj[s]\.org|pytorc[h]\.org/whl",
    "a number of a tracker": r"\bissue[s]?\s+#?\d|(?:^|[\s(])#\d{1,2}\b(?![\w-])",
    "a word of one workplace": r"\bCE[O]\b|\bsub-?agent[s]?\b|shared/(?:peer[s]|fact[s])|\bDESIG[N]\.md",
    "a promise": r"\b(?:TOD[O]|FIXM[E]|XX[X])\b",
}


def forbidden_words(path: str, text: str) -> list[str]:
    """Return a line for every forbidden word of `text`."""
    return [
        f"{path}:{number} {kind}: {match.group().strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for kind, pattern in FORBIDDEN.items()
        for match in re.finditer(pattern, line)
    ]


def text_of(content: bytes) -> str:
    """Return the text of a file; nothing for a picture or another binary file."""
    return "" if b"\0" in content else content.decode("utf-8")


def test_the_project_speaks_of_itself_alone() -> None:
    found = [
        line
        for path in project_files()
        for line in forbidden_words(path, text_of((ROOT / path).read_bytes()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("see /wor" + "k/main/runs", "a path of one machine"),
        ('open("/tm' + 'p/model")', "a path of one machine"),
        ("/roo" + "t/x", "a path of one machine"),
        ("--index-url https://pyp" + "i.org/simple", "a host of a package registry"),
        ("from registry.npmj" + "s.org", "a host of a package registry"),
        ("as issu" + "e 12 asks", "a number of a tracker"),
        ("done (#" + "7)", "a number of a tracker"),
        ("# TOD" + "O: later", "a promise"),
        ("see DESIG" + "N.md", "a word of one workplace"),
    ],
)
def test_a_forbidden_word_is_found(text: str, kind: str) -> None:
    assert [line.split(": ")[0] for line in forbidden_words("a.md", f"first line\n{text}")] == [
        f"a.md:2 {kind}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "lines = framework/root/of/it + '../work/x' + '$HOME/tmp/x' + str(tmp_path / 'work')",
        "an issue of 2 kinds, [a part](#2-how-it-works), color: #333; ## 3. A heading",
        "https://example.com/home/page and {root}/work/file",
    ],
)
def test_an_honest_word_is_left_alone(text: str) -> None:
    assert forbidden_words("a.md", text) == []
