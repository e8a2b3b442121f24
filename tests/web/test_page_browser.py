"""The page in a real browser, served by a real server: what people do, and what it must not."""

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

from support.browsing import FOCUS, PAGE, PHONE, REMOVALS, TOKEN, Reader, site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium(browsers.find()) as browser:
        yield browser


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with site(tmp_path_factory.mktemp("site"), datetime.now(UTC)) as running:
        yield running


@pytest.fixture
def reader(browser: Browser, running: Running) -> Iterator[Reader]:
    """In the end nothing was refused by the policy, failed, or asked of another host."""
    with ExitStack() as stack:
        reader = Reader(browser, running, stack)
        yield reader
    assert reader.problems == []


def assert_accessible(page: Page) -> None:
    """What axe-core can tell: WCAG 2.2 AA, and its own advice."""
    page.evaluate(browsers.axe())
    found = page.evaluate("axe.run()")
    broken = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
    assert broken == []


def assert_fits(page: Page) -> None:
    """Nobody has to scroll sideways."""
    sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scrolled, seen = page.evaluate(sizes)
    assert scrolled <= seen


def follow(page: Page, link: Locator) -> None:
    """Click on it, and wait for the page that comes."""
    with page.expect_navigation():
        link.click()


def shown(page: Page) -> list[int]:
    """The ids of the removals in the table."""
    links = page.locator(".im-removals tbody td:first-child a")
    addresses = links.evaluate_all("links => links.map(link => link.href)")
    return [int(urlsplit(address).path.rpartition("/")[2]) for address in addresses]


def asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query, keep_blank_values=True)


def counted(page: Page) -> int:
    """The sum of the counts in the table below the plot."""
    texts = page.locator("#counts td").all_text_contents()
    return sum(map(int, texts))


def test_the_newest_removals_and_a_plot(reader: Reader) -> None:
    """Fifty in a table, and the counts of all in colours."""
    page = reader.open()
    assert shown(page) == reader.ids(limit="50")
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
    assert painted["11,107,203"] > painted["181,83,15"] > 100  # friends, blocklists
    assert REMOVALS <= counted(page) < REMOVALS + 10


def test_filters_are_chosen(reader: Reader) -> None:
    """The address has them and no empty ones, the form keeps them, and they can be left."""
    often = Counter(removal["owner_id"] for removal in reader.removals(provider="tencent"))
    ((account, _),) = often.most_common(1)
    page = reader.open()
    page.get_by_label("Account, on either side").fill(account)
    page.get_by_label("List", exact=True).select_option("friend list")
    page.get_by_text("More filters").click()
    page.get_by_label("Command").fill("Sns.CallbackFriendDelete")
    follow(page, page.get_by_role("button", name="Filter"))
    filters = {"account_id": account, "relation": "friend", "command": "Sns.CallbackFriendDelete"}
    assert asked(page) == {name: [value] for name, value in filters.items()}
    assert shown(page) == reader.ids(**filters, limit="50") != []
    assert page.get_by_label("Account, on either side").input_value() == account
    assert page.get_by_label("Command").is_visible()
    follow(page, page.get_by_role("link", name="Show all"))
    assert asked(page) == {}
    assert shown(page) == reader.ids(limit="50")


def test_from_page_to_page(reader: Reader) -> None:
    """The older ones to the end, back as in every browser, and the newest again."""
    page = reader.open(f"{PAGE}?relation=blacklist&limit=100")
    found = shown(page)
    older = page.get_by_role("link", name="Older")
    while older.count():
        follow(page, older)
        found += shown(page)
    assert found == reader.ids(relation="blacklist")
    assert len(found) > 200
    last = shown(page)
    page.go_back()
    assert shown(page) == found[: -len(last)][-100:]
    follow(page, page.get_by_role("link", name="Newest"))
    assert shown(page) == found[:100]


def test_a_removal_and_the_two_of_it(reader: Reader) -> None:
    """From the table to the packet, to all between owner and target, to one of them."""
    page = reader.open(f"{PAGE}?provider=tencent")
    removal = reader.removals(provider="tencent")[0]
    owner, target = removal["owner_id"], removal["target_id"]
    follow(page, page.locator(".im-removals tbody a").first)
    assert urlsplit(page.url).path == f"{PAGE}removal/{removal['id']}"
    packet = json.loads(page.get_by_role("region", name="Packet").inner_text())
    assert {"From_Account": owner, "To_Account": target} in packet["PairList"]
    follow(page, page.get_by_role("link", name="all between the two"))
    assert page.get_by_role("heading", level=1).inner_text() == f"{owner} · {target}"
    follow(page, page.get_by_role("main").get_by_role("link", name=target, exact=True).first)
    assert asked(page)["account_id"] == [target]
    entries = page.locator(".im-story li").count()
    app = {"provider": "tencent", "app_id": removal["app_id"]}
    assert entries == min(50, len(reader.ids(account_id=target, **app)))


def test_a_time_is_dragged_over_the_plot(reader: Reader) -> None:
    """The middle half of the plot becomes `since` and `until`, and the counts are of it."""
    page = reader.open(f"{PAGE}?provider=openim")
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
    chosen = {name: values[0] for name, values in asked(page).items()}
    assert set(chosen) == {"provider", "since", "until"}
    for name, share in (("since", 0.25), ("until", 0.75)):
        moment = datetime.fromisoformat(chosen[name]).timestamp()
        assert moment == pytest.approx(begin + share * (end - begin), abs=7200)
    assert shown(page) == reader.ids(**chosen, limit="50") != []
    assert counted(page) == len(reader.ids(**chosen))
    assert page.get_by_label("Since").input_value()[:10] == chosen["since"][:10]


@pytest.mark.parametrize("is_scripted", [True, False])
def test_an_export_is_saved(reader: Reader, is_scripted: bool) -> None:
    """All that was filtered, whole: it ends with its manifest."""
    page = reader.open(f"{PAGE}?relation=blacklist", java_script_enabled=is_scripted)
    with page.expect_download() as download:
        page.get_by_role("link", name="NDJSON").click()
    *lines, last = download.value.path().read_text("utf-8").splitlines()
    expected = reader.ids(relation="blacklist")
    assert [json.loads(line)["id"] for line in lines] == expected
    assert json.loads(last) == {"manifest": {"removals": len(expected)}}


def test_without_scripts(reader: Reader) -> None:
    """No plot, and all else: the counts, the form, the pages, the details that open."""
    page = reader.open(java_script_enabled=False)
    assert shown(page) == reader.ids(limit="50")
    assert not page.locator("#plot").is_visible()
    page.get_by_text("The same as a table").click()
    assert page.locator("#counts").is_visible()
    page.get_by_label("List", exact=True).select_option("blocklist")
    follow(page, page.get_by_role("button", name="Filter"))
    assert shown(page) == reader.ids(relation="blacklist", limit="50")
    follow(page, page.get_by_role("link", name="Older"))
    assert shown(page) == reader.ids(relation="blacklist", limit="100")[50:]


def test_with_the_keyboard_alone(reader: Reader) -> None:
    """Past the head, to a filter, to a removal; what has the focus can be seen."""
    page = reader.open()
    account = reader.removals()[0]["owner_id"]

    def tab_to(what: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            unseen, is_there = page.evaluate(FOCUS, what)
            assert not unseen
            if is_there:
                return
        raise AssertionError(what)

    tab_to("a[href='#content']")
    page.keyboard.press("Enter")
    tab_to("[name=account_id]")
    page.keyboard.type(account)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert shown(page) == reader.ids(account_id=account)[:50]
    tab_to("#timeline ~ details summary")
    page.keyboard.press("Enter")
    assert page.locator("#counts").is_visible()
    tab_to(".im-removals a")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.get_by_role("region", name="Packet").is_visible()


def test_in_chinese(reader: Reader) -> None:
    """As the browser asks; another language is a click away, and stays."""
    page = reader.open(locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.get_by_role("button", name="筛选").is_visible()
    follow(page, page.get_by_role("link", name="English"))
    assert page.locator("html").get_attribute("lang") == "en"
    follow(page, page.get_by_role("button", name="Filter"))
    assert asked(page) == {"lang": ["en"]}


def test_in_the_time_zone_of_the_browser(reader: Reader) -> None:
    """It is asked for at once, and the times are of it."""
    page = reader.open(timezone_id="Asia/Shanghai")
    page.wait_for_url(lambda url: "tz=" in url)
    assert asked(page) == {"tz": ["Asia/Shanghai"]}
    moment = datetime.fromisoformat(reader.removals(limit="1")[0]["received_at"])
    time = page.locator(".im-removals time").first
    assert time.inner_text() == f"{moment + timedelta(hours=8):%Y-%m-%d %H:%M:%S}"


def test_what_strangers_wrote(reader: Reader, running: Running) -> None:
    """It is shown, wherever it comes, and runs nowhere."""
    evil = "</script><img src=x onerror=alert(1)>\"'&"
    packet = {**PACKET, "ownerUserID": evil, "blackUserID": "{{ 7 * 7 }}"}
    assert running.ask("POST", PATH, body=json.dumps(packet))[0] == 200
    page = reader.open()
    assert f"{evil} → {{{{ 7 * 7 }}}}" in page.locator(".im-removals").inner_text()
    follow(page, page.get_by_role("link", name=evil))
    assert evil in page.title()
    follow(page, page.locator(".im-story a time").first)
    assert page.get_by_role("region", name="Packet").is_visible()
    page = reader.open(f"{PAGE}?{urlencode({'account_id': evil, 'platform': evil})}")
    assert page.get_by_label("Account, on either side").input_value() == evil


LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "light phone": {"width": PHONE},
    "dark": {"color_scheme": "dark"},
    "dark phone in Chinese": {"color_scheme": "dark", "width": PHONE, "locale": "zh-CN"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_is_easy_to_use(reader: Reader, look: str) -> None:
    """Every kind of page, with all that opens open: axe-core finds nothing, and it fits."""
    removal = reader.removals(provider="tencent")[0]
    owner, target = removal["owner_id"], removal["target_id"]
    page = reader.open(f"{PAGE}?since=soon", status=400, **LOOKS[look])
    assert_easy(page, look)
    for address in (
        "",
        "?owner_id=nobody",
        f"removal/{removal['id']}",
        f"account?account_id={owner}",
        f"account?account_id={owner}&peer_id={target}",
    ):
        page.goto(PAGE + address)
        assert_easy(page, look)


def assert_easy(page: Page, look: str) -> None:
    background = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert background == ("rgb(33, 37, 41)" if "dark" in look else "rgb(255, 255, 255)")
    assert_fits(page)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert_fits(page)
    assert_accessible(page)


def test_before_the_first_callback(browser: Browser, tmp_path: Path) -> None:
    """What to enter where, on a phone, too."""
    tokens = json.dumps([TOKEN])
    with (
        serving(tmp_path, FLASK_IMCALLBACK_HISTORY_TOKENS=tokens) as running,
        ExitStack() as stack,
    ):
        reader = Reader(browser, running, stack)
        page = reader.open(width=PHONE)
        assert page.get_by_text("Nothing is recorded yet").is_visible()
        assert_easy(page, "phone")
        assert reader.problems == []
