"""The pages in a real browser and from a real server."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page

from support import ROOT, browsers
from support.serving import PACKET, PATH, Running, serving

sys.path.append(str(ROOT / "benchmarks"))

from support.browsing import FOCUS, PAGE, PHONE_WIDTH, REMOVALS, TOKEN, BrowserUser, site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium(browsers.find()) as browser:
        yield browser


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with site(tmp_path_factory.mktemp("site"), datetime.now(UTC)) as running:
        yield running


@pytest.fixture
def user(browser: Browser, running: Running) -> Iterator[BrowserUser]:
    """A user. After the test, no file was blocked, missing or requested from another host."""
    with ExitStack() as stack:
        user = BrowserUser(browser, running, stack)
        yield user
    assert user.problems == []


def assert_accessible(page: Page) -> None:
    """Check WCAG 2.2 AA and the best practices of axe-core."""
    page.evaluate(browsers.axe())
    result = page.evaluate("axe.run()")
    violations = [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in result["violations"]
    ]
    assert violations == []


def assert_fits(page: Page) -> None:
    """Check that the page is not wider than the window."""
    sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    page_width, window_width = page.evaluate(sizes)
    assert page_width <= window_width


def follow(page: Page, link: Locator) -> None:
    """Click on a link, and wait for the next page."""
    with page.expect_navigation():
        link.click()


def shown_ids(page: Page) -> list[int]:
    """Return the ids of the removals in the table."""
    links = page.locator(".im-removals tbody td:first-child a")
    urls = links.evaluate_all("links => links.map(link => link.href)")
    return [int(urlsplit(url).path.rpartition("/")[2]) for url in urls]


def parameters(page: Page) -> dict[str, list[str]]:
    """Return the query parameters of the current URL."""
    return parse_qs(urlsplit(page.url).query, keep_blank_values=True)


def total_count(page: Page) -> int:
    """Return the sum of the counts in the table below the chart."""
    texts = page.locator("#counts td").all_text_contents()
    return sum(map(int, texts))


def test_the_newest_removals_and_a_chart(user: BrowserUser) -> None:
    """The table has fifty removals, and the chart has the colours of all lists."""
    page = user.open()
    assert shown_ids(page) == user.ids(limit="50")
    painted = page.locator("#plot canvas").evaluate("""canvas => {
        const size = [canvas.width, canvas.height];
        const { data } = canvas.getContext("2d").getImageData(0, 0, ...size);
        const colours = {};
        for (let at = 0; at < data.length; at += 4)
            if (data[at + 3] === 255) {
                const colour = data.slice(at, at + 3).join();
                colours[colour] = (colours[colour] ?? 0) + 1;
            }
        return colours;
    }""")
    friend, blacklist, follow, group = (*("11,107,203", "181,83,15", "47,163,107", "107,33,115"),)
    assert painted[friend] > painted[blacklist] > 100
    assert painted[follow] > 100
    assert painted[group] > 100
    assert REMOVALS <= total_count(page) < REMOVALS + 10


def test_a_user_sets_and_removes_filters(user: BrowserUser) -> None:
    """The URL has only the filled fields, and the form keeps them."""
    removals = user.removals(provider="tencent", relation="friend")
    owners = Counter(removal["owner_id"] for removal in removals)
    ((account, _),) = owners.most_common(1)
    page = user.open()
    page.get_by_label("Account (owner or target)").fill(account)
    page.get_by_label("List", exact=True).select_option("friend list")
    page.get_by_text("More filters").click()
    page.get_by_label("Command").fill("Sns.CallbackFriendDelete")
    follow(page, page.get_by_role("button", name="Filter"))
    filters = {"account_id": account, "relation": "friend", "command": "Sns.CallbackFriendDelete"}
    assert parameters(page) == {name: [value] for name, value in filters.items()}
    assert shown_ids(page) == user.ids(**filters, limit="50") != []
    assert page.get_by_label("Account (owner or target)").input_value() == account
    assert page.get_by_label("Command").is_visible()
    follow(page, page.get_by_role("link", name="Show all"))
    assert parameters(page) == {}
    assert shown_ids(page) == user.ids(limit="50")


def test_a_user_reads_page_by_page(user: BrowserUser) -> None:
    """Links lead to the end and to the start. The back button works."""
    page = user.open(f"{PAGE}?relation=blacklist&limit=50")
    ids = shown_ids(page)
    older = page.get_by_role("link", name="Older")
    while older.count():
        follow(page, older)
        ids += shown_ids(page)
    assert ids == user.ids(relation="blacklist")
    assert len(ids) > 100
    last = shown_ids(page)
    page.go_back()
    assert shown_ids(page) == ids[: -len(last)][-50:]
    follow(page, page.get_by_role("link", name="Newest"))
    assert shown_ids(page) == ids[:50]


def test_a_user_follows_a_removal_to_its_accounts(user: BrowserUser) -> None:
    """Links lead from the table to the packet, to both accounts, to one account."""
    page = user.open(f"{PAGE}?provider=tencent&relation=friend")
    removal = user.removals(provider="tencent", relation="friend")[0]
    owner, target = removal["owner_id"], removal["target_id"]
    follow(page, page.locator(".im-removals tbody a").first)
    assert urlsplit(page.url).path == f"{PAGE}removal/{removal['id']}"
    packet = json.loads(page.get_by_role("region", name="Packet").inner_text())
    assert {"From_Account": owner, "To_Account": target} in packet["PairList"]
    follow(page, page.get_by_role("link", name="all removals between the two"))
    assert page.get_by_role("heading", level=1).inner_text() == f"{owner} · {target}"
    follow(page, page.get_by_role("main").get_by_role("link", name=target, exact=True).first)
    assert parameters(page)["account_id"] == [target]
    entries = page.locator(".im-story li").count()
    app = {"provider": "tencent", "app_id": removal["app_id"]}
    assert entries == min(50, len(user.ids(account_id=target, **app)))


def test_a_user_selects_a_time_in_the_chart(user: BrowserUser) -> None:
    """Dragging over the middle half of the chart sets `since` and `until`."""
    page = user.open(f"{PAGE}?provider=openim")
    begins = page.locator("#counts tbody time").evaluate_all(
        "times => times.map(time => Date.parse(time.dateTime) / 1000)"
    )
    begin, end = begins[0], 2 * begins[-1] - begins[-2]
    box = page.locator("#plot .u-over").bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    with page.expect_navigation():
        page.mouse.move(box["x"] + box["width"] / 4, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, middle, steps=5)
        page.mouse.up()
    chosen = {name: values[0] for name, values in parameters(page).items()}
    assert set(chosen) == {"provider", "since", "until"}
    for name, share in (("since", 0.25), ("until", 0.75)):
        moment = datetime.fromisoformat(chosen[name]).timestamp()
        assert moment == pytest.approx(begin + share * (end - begin), abs=7200)
    assert shown_ids(page) == user.ids(**chosen, limit="50") != []
    assert total_count(page) == len(user.ids(**chosen))
    assert page.get_by_label("Since").input_value()[:10] == chosen["since"][:10]


@pytest.mark.parametrize("is_scripted", [True, False])
def test_an_export_is_saved(user: BrowserUser, is_scripted: bool) -> None:
    """The file has all matches."""
    page = user.open(f"{PAGE}?relation=blacklist", java_script_enabled=is_scripted)
    with page.expect_download() as download:
        page.get_by_role("link", name="NDJSON").click()
    lines = download.value.path().read_text("utf-8").splitlines()
    expected = user.ids(relation="blacklist")
    assert [json.loads(line)["id"] for line in lines] == expected


def test_without_scripts(user: BrowserUser) -> None:
    """Everything but the chart works without scripts."""
    page = user.open(java_script_enabled=False)
    assert shown_ids(page) == user.ids(limit="50")
    assert not page.locator("#plot").is_visible()
    page.get_by_text("Show as a table").click()
    assert page.locator("#counts").is_visible()
    page.get_by_label("List", exact=True).select_option("blocklist")
    follow(page, page.get_by_role("button", name="Filter"))
    assert shown_ids(page) == user.ids(relation="blacklist", limit="50")
    follow(page, page.get_by_role("link", name="Older"))
    assert shown_ids(page) == user.ids(relation="blacklist", limit="100")[50:]


def test_with_the_keyboard_only(user: BrowserUser) -> None:
    """The Tab key reaches a filter and a removal, and the focus is always visible."""
    page = user.open()
    account = user.removals(relation="friend")[0]["owner_id"]

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            invisible_focus, has_focus = page.evaluate(FOCUS, selector)
            assert not invisible_focus
            if has_focus:
                return
        raise AssertionError(selector)

    tab_to("a[href='#content']")
    page.keyboard.press("Enter")
    tab_to("[name=account_id]")
    page.keyboard.type(account)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert shown_ids(page) == user.ids(account_id=account)[:50]
    tab_to("#timeline ~ details summary")
    page.keyboard.press("Enter")
    assert page.locator("#counts").is_visible()
    tab_to(".im-removals a")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.get_by_role("region", name="Packet").is_visible()


def test_in_chinese(user: BrowserUser) -> None:
    """The browser chooses the language. A link changes it, and other links keep it."""
    page = user.open(locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.get_by_role("button", name="筛选").is_visible()
    follow(page, page.get_by_role("link", name="English"))
    assert page.locator("html").get_attribute("lang") == "en"
    follow(page, page.get_by_role("button", name="Filter"))
    assert parameters(page) == {"lang": ["en"]}


def test_in_the_time_zone_of_the_browser(user: BrowserUser) -> None:
    """The page loads again with the time zone of the browser."""
    page = user.open(timezone_id="Asia/Shanghai")
    page.wait_for_url(lambda url: "tz=" in url)
    assert parameters(page) == {"tz": ["Asia/Shanghai"]}
    moment = datetime.fromisoformat(user.removals(limit="1")[0]["received_at"])
    time = page.locator(".im-removals time").first
    assert time.inner_text() == f"{moment + timedelta(hours=8):%Y-%m-%d %H:%M:%S}"


def test_hostile_text_does_not_run(user: BrowserUser, running: Running) -> None:
    """Markup in an account id is shown as text on every page."""
    evil = "</script><img src=x onerror=alert(1)>\"'&"
    packet = {**PACKET, "ownerUserID": evil, "blackUserID": "{{ 7 * 7 }}"}
    assert running.ask("POST", PATH, body=json.dumps(packet))[0] == 200
    page = user.open()
    assert f"{evil} → {{{{ 7 * 7 }}}}" in page.locator(".im-removals").inner_text()
    follow(page, page.get_by_role("link", name=evil))
    assert evil in page.title()
    follow(page, page.locator(".im-story a time").first)
    assert page.get_by_role("region", name="Packet").is_visible()
    page = user.open(f"{PAGE}?{urlencode({'account_id': evil, 'platform': evil})}")
    assert page.get_by_label("Account (owner or target)").input_value() == evil


DISPLAYS: dict[str, dict[str, Any]] = {
    "light": {},
    "light phone": {"width": PHONE_WIDTH},
    "dark": {"color_scheme": "dark"},
    "dark phone in Chinese": {"color_scheme": "dark", "width": PHONE_WIDTH, "locale": "zh-CN"},
}


@pytest.mark.parametrize("display", DISPLAYS)
def test_every_page_is_accessible(user: BrowserUser, display: str) -> None:
    """axe-core finds no violation, and no page is too wide, also with all details open."""
    removal = user.removals(provider="tencent", relation="friend")[0]
    kicked = user.removals(provider="tencent", cause="kicked")[0]
    group = urlencode({"group_id": kicked["owner_id"]})
    owner, target = removal["owner_id"], removal["target_id"]
    page = user.open(f"{PAGE}?since=soon", status=400, **DISPLAYS[display])
    assert_usable(page, display)
    for path in (
        "",
        "?owner_id=nobody",
        f"removal/{removal['id']}",
        f"account?account_id={owner}",
        f"account?account_id={owner}&peer_id={target}",
        f"removal/{kicked['id']}",
        f"account?account_id={kicked['target_id']}",
        f"group?{group}",
        f"group?{group}&account_id={kicked['target_id']}",
    ):
        page.goto(PAGE + path)
        assert_usable(page, display)


def assert_usable(page: Page, display: str) -> None:
    """Check the colours, the width and the accessibility of a page."""
    background = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert background == ("rgb(33, 37, 41)" if "dark" in display else "rgb(255, 255, 255)")
    assert_fits(page)
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert_fits(page)
    assert_accessible(page)


def test_setup_help_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Before the first callback, the page says what to configure."""
    tokens = json.dumps([TOKEN])
    with (
        serving(tmp_path, FLASK_IMCALLBACK_HISTORY_TOKENS=tokens) as running,
        ExitStack() as stack,
    ):
        user = BrowserUser(browser, running, stack)
        page = user.open(width=PHONE_WIDTH)
        assert page.get_by_text("Nothing is recorded yet").is_visible()
        assert_usable(page, "phone")
        assert user.problems == []
