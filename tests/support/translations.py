"""Compare a page of the documentation with its Chinese translation, line by line.

A translation has the headings, lines, tables and code of its original. Each line has the code,
links, numbers and technical names of the original line. Only the words differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from support import ROOT

SUFFIX = ".zh-CN.md"
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MARKER = re.compile(r" *(?:#+ |[-*] |\d+\. |\|)?")
"""The start of a line that says whether it is a heading, a list item or a table row."""
CODE_COMMENT = re.compile(r"(^|\s+)# .*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
TECHNICAL_NAME = re.compile(r"\w*(?:_|[a-z][A-Z])\w*", re.ASCII)
"""A name with an underscore or with capitals inside, for example From_Account or OpenIM."""


class Line(NamedTuple):
    """A line of a page, with its number in the file."""

    number: int
    text: str
    is_code: bool


class Page:
    """A page of the documentation in one language, split at its headings."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.sections: list[list[Line]] = [[]]
        text = path.read_text("utf-8") if text is None else text
        is_code = False
        for number, line in enumerate(text.splitlines(), 1):
            if line == self.language_line:
                continue
            is_fence = line.lstrip().startswith("```")
            is_code ^= is_fence
            if line.startswith("#") and not is_code:
                self.sections.append([])
            self.sections[-1].append(Line(number, line, is_code or is_fence))

    @property
    def name(self) -> str:
        """The path of the page relative to the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def language_line(self) -> str:
        """The line below the title that leads to the other language."""
        if self.path.name.endswith(SUFFIX):
            return f"[English]({original_path(self.path).name}) | 简体中文"
        return f"English | [简体中文]({translated_path(self.path).name})"


def original_path(path: Path) -> Path:
    """Return the path of the English page of a translation. An English path stays the same."""
    return path.with_name(path.name.removesuffix(SUFFIX).removesuffix(".md") + ".md")


def translated_path(path: Path) -> Path:
    """Return the path that the translation of an English page has."""
    return path.with_name(path.name.removesuffix(".md") + SUFFIX)


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as Sphinx and GitHub form it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").lower()).strip().replace(" ", "-")


@cache
def _anchors(path: Path) -> list[str]:
    return [anchor(section[0].text) for section in Page(path).sections[1:]]


def differences(english: Page, chinese: Page) -> Iterator[str]:
    """Yield each difference between a page and its translation, with its place."""
    english_levels = [_level(section) for section in english.sections]
    chinese_levels = [_level(section) for section in chinese.sections]
    if english_levels != chinese_levels:
        yield from _different_headings(english, chinese)
        return
    for section, translation in zip(english.sections, chinese.sections, strict=True):
        yield from _different_lines(english, section, chinese, translation)


def _level(section: list[Line]) -> int:
    """Return the number of # before the heading of a section."""
    return len(section[0].text) - len(section[0].text.lstrip("#")) if section else 0


def _different_headings(english: Page, chinese: Page) -> Iterator[str]:
    """Yield the first heading that the other language does not have at this place."""
    no_section: list[Line] = []
    pairs = zip_longest(english.sections, chinese.sections, fillvalue=no_section)
    for section, translation in pairs:
        if _level(section) != _level(translation):
            yield f"{_place(english, section)} is not the heading {_place(chinese, translation)}"
            return


def _place(page: Page, section: list[Line]) -> str:
    return (
        f'{page.name}:{section[0].number} "{section[0].text}"' if section else f"end of {page.name}"
    )


def _different_lines(
    english: Page, section: list[Line], chinese: Page, translation: list[Line]
) -> Iterator[str]:
    """Yield the first line of a section that does not fit its translation."""
    for line, translated in zip(section, translation, strict=False):
        if problem := _compare_lines(english, line, chinese, translated):
            place = f"{chinese.name}:{translated.number}"
            original_place = f"{english.name}:{line.number}"
            section_name = f'(section "{section[0].text}")'
            yield f"{place} does not translate {original_place} {section_name}: {problem}"
            return
    if len(section) != len(translation):
        yield (
            f"{_place(english, section)} has {len(section)} lines, and "
            f"{_place(chinese, translation)} has {len(translation)}"
        )


def _compare_lines(english: Page, line: Line, chinese: Page, translated: Line) -> str | None:
    """Return the first difference of two lines, or None."""
    if line.is_code or translated.is_code:
        code, translated_code = (CODE_COMMENT.sub(" #", x.text) for x in (line, translated))
        return None if code == translated_code else f"the code is {translated_code!r}, not {code!r}"
    cells, translated_cells = (x.text.split("|") for x in (line, translated))
    if len(cells) != len(translated_cells):
        return f"it has {len(translated_cells)} cells, not {len(cells)}"
    if MARKER.match(line.text)[0] != MARKER.match(translated.text)[0]:  # type: ignore[index]
        return "one is a list item, heading or table row of another kind"
    if bool(line.text.strip()) != bool(translated.text.strip()):
        return "a line above is missing or added"
    for cell, translated_cell in zip(cells, translated_cells, strict=True):
        parts = _parts(english.path, cell)
        translated_parts = _parts(chinese.path, translated_cell)
        for kind, values in parts.items():
            missing, added = values - translated_parts[kind], translated_parts[kind] - values
            if missing or (added and kind != "number"):
                return (
                    f"{', '.join(missing) or 'no ' + kind} in English, "
                    f"{', '.join(added) or 'no ' + kind} in Chinese"
                )
    return None


def _parts(path: Path, text: str) -> dict[str, Counter[str]]:
    """Return the parts of a text that both languages share."""
    words = LINK.sub("]", CODE.sub("", text))
    return {
        "code": Counter(CODE.findall(text)),
        "link": Counter(_target(path, target) for target in LINK.findall(text)),
        "bold": Counter(["**"] * words.count("**")),
        "name": Counter({*TECHNICAL_NAME.findall(words)}),
        "number": Counter({*NUMBER.findall(words)}),
    }


def _target(path: Path, target: str) -> str:
    """Return the target of a link, in the same form for both languages.

    A link of a translation leads to another translation, if there is one.
    """
    if re.match(r"https?:", target):
        return target
    file_name, _, heading = target.partition("#")
    file = (path.parent / file_name).resolve() if file_name else path
    original = original_path(file)
    is_chinese = path.name.endswith(SUFFIX)
    if translated_path(original).exists() and is_chinese != file.name.endswith(SUFFIX):
        return f"{target} (the wrong language)"
    if heading and file.exists() and heading in _anchors(file):
        heading = f"heading {_anchors(file).index(heading) + 1}"
    name = original.relative_to(ROOT).as_posix()
    return f"{name} ({heading})" if heading else name
