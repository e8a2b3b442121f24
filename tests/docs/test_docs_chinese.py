"""The Chinese pages say the same as the English pages, in the words of one glossary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

from flask_imcallback.web.page.text import TRANSLATIONS_FOLDER
from support import ROOT
from support.translations import CODE, LINK, MARKER, SUFFIX, Page, differences, original_path

GLOSSARY = ROOT / f"docs/glossary{SUFFIX}"
CHINESE_PAGES = sorted([*ROOT.glob(f"*{SUFFIX}"), *ROOT.glob(f"docs/**/*{SUFFIX}")])
TRANSLATIONS = [page for page in CHINESE_PAGES if page != GLOSSARY]
PUNCTUATION = "，。、：；？！（）“”"
COMMAND = re.compile(r"flask imcallback \w+")
HAN = r"[\u4e00-\u9fff]"
WRONG_TYPOGRAPHY = {
    rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9]{HAN}": "a space is missing",
    rf"{HAN} ?[,.;:?!()\"']|[,;:?!()\"'] ?{HAN}": "the punctuation is not Chinese",
    rf"\S [{PUNCTUATION}]|[{PUNCTUATION}] \S": "a space is beside Chinese punctuation",
    rf"{HAN} {HAN}": "a space is between two Chinese characters",
    "；|您": "the text has ； or 您",
}


def name(page: Path) -> str:
    """Return the path of a page relative to the repository."""
    return page.relative_to(ROOT).as_posix()


def glossary() -> list[tuple[str, str]]:
    """Return each English term of the glossary with its Chinese term."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", GLOSSARY.read_text("utf-8"), re.M)
    return [(english, chinese) for english, chinese in rows if english != "英文"]


def messages() -> Iterator[tuple[str, str]]:
    """Yield each message of the web page with its Chinese text."""
    with (TRANSLATIONS_FOLDER / "zh/LC_MESSAGES/imcallback.po").open("rb") as file:
        for message in read_po(file):
            english = message.id if isinstance(message.id, str) else (message.id or ("",))[0]
            chinese = message.string
            if english:
                yield english, chinese if isinstance(chinese, str) else (chinese or ("",))[0]


def texts_in_both_languages() -> Iterator[tuple[str, str, str]]:
    """Yield the place, the English text and the Chinese text of each line and each message."""
    for path in TRANSLATIONS:
        english, chinese = Page(original_path(path)), Page(path)
        for lines, translated in zip(english.sections, chinese.sections, strict=True):
            for line, translation in zip(lines, translated, strict=True):
                if not line.is_code:
                    place = f"{name(path)}:{translation.number}"
                    yield place, line.text, translation.text
    for message, text in messages():
        yield message, message, text


def words_of(text: str) -> str:
    """Return a text with the words of its links, and without code, commands and placeholders."""
    text = COMMAND.sub("code", CODE.sub("code", text))
    return re.sub(r"!?\[|\*\*|%\(\w+\)s", "", LINK.sub("", text))


@pytest.mark.parametrize("path", TRANSLATIONS, ids=name)
def test_a_translation_says_the_same_as_its_original(path: Path) -> None:
    """Each line has the code, links, numbers and names of the original line."""
    assert list(differences(Page(original_path(path)), Page(path))) == []


@pytest.mark.parametrize("path", TRANSLATIONS, ids=name)
def test_a_page_leads_to_its_other_language(path: Path) -> None:
    """The line below the title links to the page in the other language."""
    for page in (Page(original_path(path)), Page(path)):
        assert page.path.read_text("utf-8").splitlines()[2] == page.language_line


ORIGINAL = """\
# Title

Run `doctor` with 3.11, see [Settings](settings.md).
From_Account acted.

## Section

```console
$ make run  # serve
```

| a | b |
|---|---|
| `c` | d |
"""
TRANSLATED = """\
# 标题

使用 3.11 运行 `doctor`，见[配置项](settings.md)。
操作者是 From_Account。

## 小节

```console
$ make run  # 启动
```

| 甲 | 乙 |
|---|---|
| `c` | 丁 |
"""
PLACE = 'docs/new.zh-CN.md:{0} does not translate docs/new.md:{0} (section "{1}"): '


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("", "", None),
        ("  # 启动", "  # 运行", None),
        (
            "`doctor`",
            "`doctors`",
            PLACE.format(3, "# Title") + "`doctor` in English, `doctors` in Chinese",
        ),
        ("3.11", "3.12", PLACE.format(3, "# Title") + "3.11 in English, 3.12 in Chinese"),
        (
            "settings.md",
            "http.md",
            PLACE.format(3, "# Title") + "docs/settings.md in English, docs/http.md in Chinese",
        ),
        (
            "settings.md",
            "https://example.com",
            PLACE.format(3, "# Title")
            + "docs/settings.md in English, https://example.com in Chinese",
        ),
        (
            "From_Account",
            "发送方",
            PLACE.format(4, "# Title") + "From_Account in English, no name in Chinese",
        ),
        (
            "操作者",
            "`操作者`",
            PLACE.format(4, "# Title") + "no code in English, `操作者` in Chinese",
        ),
        (
            "make run",
            "make test",
            PLACE.format(9, "## Section") + "the code is '$ make test #', not '$ make run #'",
        ),
        ("| 丁 |", "| 丁 | 戊 |", PLACE.format(14, "## Section") + "it has 5 cells, not 4"),
        ("`c`", "c", PLACE.format(14, "## Section") + "`c` in English, no code in Chinese"),
        (
            "操作者",
            "- 操作者",
            PLACE.format(4, "# Title") + "one is a list item, heading or table row of another kind",
        ),
        (
            "From_Account。\n",
            "From_Account。\n第三句。\n",
            PLACE.format(5, "# Title") + "a line above is missing or added",
        ),
        (
            "| `c` | 丁 |\n",
            "| `c` | 丁 |\n| 戊 | 己 |\n",
            'docs/new.md:6 "## Section" has 9 lines, and docs/new.zh-CN.md:6 "## 小节" has 10',
        ),
        (
            "## 小节",
            "### 小节",
            'docs/new.md:6 "## Section" is not the heading docs/new.zh-CN.md:6 "### 小节"',
        ),
        (
            "\n## 小节",
            "",
            'docs/new.md:6 "## Section" is not the heading end of docs/new.zh-CN.md',
        ),
    ],
)
def test_a_change_in_one_language_is_found(before: str, after: str, problem: str | None) -> None:
    """The first difference of a section is reported with its place in both languages."""
    assert before in TRANSLATED
    english = Page(ROOT / "docs/new.md", ORIGINAL)
    chinese = Page(ROOT / "docs/new.zh-CN.md", TRANSLATED.replace(before, after, 1))
    assert list(differences(english, chinese)) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("english", "chinese", "problem"),
    [
        ("tencent.md", "tencent.zh-CN.md", None),
        ("tencent.md#use-both", "tencent.zh-CN.md#两者都用", None),
        (
            "tencent.md",
            "tencent.md",
            "docs/tencent.md in English, tencent.md (the wrong language) in Chinese",
        ),
        (
            "tencent.md#use-both",
            "tencent.zh-CN.md#使用-token",
            "docs/tencent.md (heading 5) in English, docs/tencent.md (heading 3) in Chinese",
        ),
    ],
)
def test_a_translation_links_to_translations(
    english: str, chinese: str, problem: str | None
) -> None:
    """A Chinese page links to the Chinese page and its Chinese heading, if there is one."""
    original = Page(ROOT / "docs/new.md", f"# Title\n\n[a]({english})\n")
    translation = Page(ROOT / "docs/new.zh-CN.md", f"# 标题\n\n[甲]({chinese})\n")
    expected = [PLACE.format(3, "# Title") + problem] if problem else []
    assert list(differences(original, translation)) == expected


def test_the_glossary_has_english_terms() -> None:
    """Each term of the Chinese glossary is a term of the English glossary."""
    english_page = (ROOT / "docs/glossary.md").read_text("utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", english_page, re.MULTILINE)
    english_terms = {term for cell in cells for term in cell.split(", ")}
    assert len(glossary()) > 20
    assert {english for english, _ in glossary()} - english_terms == set()


@pytest.mark.parametrize(("english", "chinese"), glossary())
def test_a_term_is_translated_by_the_glossary(english: str, chinese: str) -> None:
    """The pages and the texts of the web page translate a term as the glossary does."""
    term = re.compile(rf"\b{english.removesuffix('y')}(?:s|y|ies|d|ed|ing)?\b", re.IGNORECASE)
    for place, text, translation in texts_in_both_languages():
        if term.search(words_of(text)):
            assert chinese in translation, f"{place} needs {chinese} for {english}"


@pytest.mark.parametrize("path", CHINESE_PAGES, ids=name)
def test_chinese_pages_are_set_like_chinese(path: Path) -> None:
    """Sentences have full-width punctuation, and a space is between Chinese and Latin letters."""
    for section in Page(path).sections:
        for line in section:
            for cell in [] if line.is_code else MARKER.sub("", line.text, 1).split("|"):
                text = words_of(cell).strip()
                assert wrong_typography(text) == [], f"{name(path)}:{line.number}: {text}"


def test_texts_of_the_web_page_are_set_like_chinese() -> None:
    """The texts of the web page follow the same rules as the pages."""
    for message, text in messages():
        filled = re.sub(r"%\(\w+\)s", "x", text.replace("%(n)s", "3").replace("%(time)s", "3 天"))
        assert wrong_typography(filled) == [], message


def wrong_typography(text: str) -> list[str]:
    """Return what is wrong with the spaces and the punctuation of a text."""
    return [problem for pattern, problem in WRONG_TYPOGRAPHY.items() if re.search(pattern, text)]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("运行 `doctor` 后，见 OpenIM（3.8.1 或更高版本）。", []),
        ("运行doctor", ["a space is missing"]),
        ("共 3条", ["a space is missing"]),
        ("完成.", ["the punctuation is not Chinese"]),
        ("见 OpenIM, 然后", ["the punctuation is not Chinese"]),
        ("见 OpenIM ，然后", ["a space is beside Chinese punctuation"]),
        ("已 完成", ["a space is between two Chinese characters"]),
        ("您好", ["the text has ； or 您"]),
    ],
)
def test_wrong_typography_is_found(text: str, problems: list[str]) -> None:
    """A missing space and punctuation of another language are reported."""
    assert wrong_typography(words_of(text)) == problems
