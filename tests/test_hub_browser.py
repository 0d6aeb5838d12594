"""The console in headless Chromium: what it draws, how fast, that nothing becomes HTML, that it needs nobody else."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from observer_agent.hub import schema
from observer_agent.hub.console.words import straight
from tests.hub_scene import HOSTILE, latest_row, many, metric_row, put, scene
from tests.test_hub_console import LISTS, detail_pages, hostile
from tests.test_page import CHROMIUM, DRIVER, FLAGS, addresses, complaints, contrast, press, run, shape, text, until
from tests.wire_hub import TestHub, memory_hub, served

STYLES = Path(__file__).parent.parent / "observer_agent" / "hub" / "console" / "static" / "console.css"
SHOTS = os.environ.get(
    "HUB_SHOTS"
)  # where screenshots go: HUB_SHOTS=docs/images SLOW=1 pytest tests/test_hub_browser.py


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    missing = [name for name in (CHROMIUM, DRIVER) if not shutil.which(name)]
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"NO CONSOLE IN A BROWSER: {missing} missing")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def browser(driver: Any) -> Any:
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    shape(driver, 1280, "light")
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    return driver


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        with found.database.write() as conn:
            conn.execute(delete(schema.keys))
            conn.execute(delete(schema.agents))
        yield found


@pytest.fixture
def url(hub: TestHub) -> Iterator[str]:
    with served(hub.app) as where:
        yield where


pytestmark = pytest.mark.slow
OTHERS = ("/console/service?key=shop", f"/console/webhook?id={'h' * 36}", "/status/shop")


def titles(browser: Any) -> list[str]:
    found: list[str] = run(
        browser, "[...document.querySelectorAll('.metrics tbody th bdi')].map(each => each.textContent)"
    )
    return found


def fresh(browser: Any) -> None:
    """Waits for the next answer that the script gets."""
    run(browser, "performance.clearMarks('fresh')")
    until(lambda: run(browser, "performance.getEntriesByName('fresh').length"))


def say(browser: Any, selector: str, value: str, event: str = "input") -> None:
    script = "(e => { e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2], {bubbles: true})) })"
    browser.execute_script(f"{script}(document.querySelector(arguments[0]))", selector, value, event)


# -- drawing


def test_3500_metrics_are_drawn_in_under_a_second(browser: Any, hub: TestHub, url: str) -> None:
    many(hub)
    for path in ("/", "/console/metrics", "/console/metrics?page=18", "/console/agents"):
        took, painted = min(load(browser, url + path) for _ in range(3))
        print(f"{path}: loaded in {took} ms, first painted after {painted:.0f} ms")
        assert 0 < took < 1000 and painted < 1000
    assert complaints(browser) == []


def load(browser: Any, where: str) -> tuple[float, float]:
    """Milliseconds until a page was loaded, and until something was painted."""
    browser.get(where)
    painted = until(lambda: run(browser, "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    return run(browser, "performance.timing.loadEventEnd - performance.timing.navigationStart"), painted


def test_every_page_draws_without_a_complaint_and_asks_nobody_else(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    for path in (*LISTS, *detail_pages(hub)[:8], *OTHERS):
        browser.get(url + path)
        assert complaints(browser) == [], path
        assert run(browser, "document.documentElement.scrollWidth <= window.innerWidth"), path
    assert {re.match("[a-z]+://[^/]+", each)[0] for each in addresses(browser)} == {url}  # type: ignore[index]


def test_hostile_names_stay_text(browser: Any, hub: TestHub, url: str) -> None:
    hostile(hub)
    for path in (*LISTS, *detail_pages(hub), "/status/hostile"):
        browser.get(url + path)
        assert not run(browser, "window.harmed"), path
        assert (
            run(browser, "document.querySelectorAll('main img, main script, main h1 h1, bdi bdi, iframe').length") == 0
        )
        assert run(browser, "document.querySelectorAll('h1').length") == 1, path
    browser.get(f"{url}/console/metrics")
    assert sorted(titles(browser)) == sorted(straight(each) for each in HOSTILE)
    fresh(browser)
    assert sorted(titles(browser)) == sorted(straight(each) for each in HOSTILE)
    assert not run(browser, "window.harmed") and complaints(browser) == []


def test_the_policy_stops_a_script_that_gets_into_the_page(browser: Any, url: str) -> None:
    browser.get(url)
    run(browser, "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harmed=1\">')")
    until(lambda: any("Content Security Policy" in line["message"] for line in complaints(browser)))
    assert not run(browser, "window.harmed")


@pytest.mark.parametrize("width", [360, 400, 768, 1024])
def test_it_fits_a_narrow_screen(browser: Any, hub: TestHub, url: str, width: int) -> None:
    scene(hub)
    put(hub, schema.metrics, [metric_row(n, name) for n, name in enumerate(HOSTILE)])
    shape(browser, width, "light")
    for path in (*LISTS, *detail_pages(hub), *OTHERS, "/nothing"):
        browser.get(url + path)
        assert run(browser, "document.documentElement.scrollWidth") <= width, path


@pytest.mark.parametrize("width", [400, 1400])
def test_hostile_names_fit_too(browser: Any, hub: TestHub, url: str, width: int) -> None:
    hostile(hub)
    shape(browser, width, "dark")
    for path in (*LISTS, *detail_pages(hub), "/status/hostile"):
        browser.get(url + path)
        assert run(browser, "document.documentElement.scrollWidth") <= width, path


# -- using it


def test_tables_stay_fresh_and_keep_what_is_open_and_focused(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.get(f"{url}/console/metrics")
    run(browser, "document.querySelectorAll('.metrics th a')[4].focus()")
    run(browser, "document.getElementById('live').mine = 1")
    with hub.database.write() as conn:
        conn.execute(update(schema.latest).values(value=777.0))
    until(lambda: "777" in text(browser, ".metrics"))
    focused = run(browser, "document.activeElement.textContent")
    assert focused == titles(browser)[4] and run(browser, "document.getElementById('live').mine") == 1
    browser.get(f"{url}/status/shop")
    run(browser, "document.querySelector('details').open = true")
    with hub.database.write() as conn:
        conn.execute(update(schema.latest).values(status="unhealthy"))
    until(lambda: "Something is down" in text(browser, "#state"))
    assert run(browser, "document.querySelector('details').open")


def test_what_is_about_to_be_confirmed_does_not_move(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.get(f"{url}/console/keys")
    run(browser, "document.querySelector('.do details').open = true")
    hub.store.keys.create("aaa-first", "test")
    fresh(browser)
    assert "aaa-first" not in text(browser, ".keys")
    run(browser, "document.querySelector('.do details').open = false")
    until(lambda: "aaa-first" in text(browser, ".keys"))


def test_a_hidden_page_asks_nothing(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.get(f"{url}/")
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => arguments[0]})"
    fire = "; document.dispatchEvent(new Event('visibilitychange'))"
    browser.execute_script(hide + fire, True)
    addresses(browser)
    threading.Event().wait(12)  # a turn and a bit; that nothing happens has no event to wait for
    assert addresses(browser) == set()
    browser.execute_script(hide + fire, False)
    until(lambda: addresses(browser))


def test_it_says_since_when_nobody_answers_and_recovers_by_itself(browser: Any, hub: TestHub) -> None:
    scene(hub)
    with served(hub.app) as url:
        browser.get(url)
        assert run(browser, "document.getElementById('gone').hidden")
    until(lambda: "does not answer since" in text(browser, "#gone"))
    assert "db-1" in text(browser, "#live")


def test_the_filter_shows_as_one_types_and_the_address_keeps_it(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.get(f"{url}/console/metrics")
    say(browser, "#text", "search")
    until(lambda: titles(browser) == ["Search index"])
    assert browser.current_url == f"{url}/console/metrics?text=search"
    say(browser, "#text", "")
    say(browser, "#status", "wrong")
    until(lambda: len(titles(browser)) == 3)
    browser.get(browser.current_url)
    assert len(titles(browser)) == 3 and run(browser, "document.getElementById('status').value") == "wrong"


def test_it_works_without_a_script(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    from selenium.webdriver.common.by import By

    browser.get(f"{url}/console/metrics")
    browser.find_element(By.ID, "text").send_keys("search")
    leave_by(browser, By.CSS_SELECTOR, "#filter button")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".metrics tbody th"))
    assert "text=search" in browser.current_url
    assert [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".metrics tbody th")] == ["Search index"]
    browser.get(f"{url}/console/keys")
    browser.find_element(By.ID, "name").send_keys("by-hand")
    leave_by(browser, By.XPATH, "//button[text()='Create key']")
    (key,) = until(lambda: browser.find_elements(By.CLASS_NAME, "key"))
    assert key.text.startswith("obs_live_")
    assert not browser.find_element(By.ID, "themes").is_displayed()


def test_by_keyboard(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    browser.get(f"{url}/console/metrics")
    order = []
    for _ in range(16):
        press(browser, "TAB")
        order.append(run(browser, "(e => e.id || e.className || e.textContent)(document.activeElement)"))
    pages = ["Overview", "Agents", "Lighthouses", "Metrics", "Services", "Events", "Webhooks", "Keys", "Audit log"]
    assert order == ["skip", "brand", *pages, "theme", "text", "status", "agent", "Disk of the backup host"]
    assert run(browser, "getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.get(f"{url}/console/metrics")
    press(browser, "TAB")
    press(browser, "ENTER")
    assert run(browser, "document.activeElement.id") == "main"


def test_a_webhook_is_changed_and_deleted_by_hand(browser: Any, hub: TestHub, url: str) -> None:
    from selenium.webdriver.common.by import By

    scene(hub)
    browser.get(f"{url}/console/webhooks")
    browser.find_element(By.LINK_TEXT, "on-call").click()
    until(lambda: "/console/webhook?" in browser.current_url)
    assert not browser.find_element(By.ID, "name").is_displayed()
    for wanted in ("change", "delete"):
        browser.find_element(By.CSS_SELECTOR, f"#{wanted} summary").click()
    name = browser.find_element(By.ID, "name")
    name.clear()
    name.send_keys("pager")
    fresh(browser)
    assert name.get_attribute("value") == "pager", "what is being filled in is not taken away by what is kept fresh"
    leave_by(browser, By.XPATH, "//button[text()='Save']")
    assert text(browser, "h1") == "Webhook pager" and "is changed" in text(browser, ".said")
    browser.find_element(By.CSS_SELECTOR, "#delete summary").click()
    leave_by(browser, By.CSS_SELECTOR, "#delete button")
    assert "is deleted" in text(browser, ".said") and "No webhooks yet" in text(browser, "#live")
    assert complaints(browser) == []


def test_the_theme_follows_the_system_until_one_is_chosen(browser: Any, url: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.get(url)
    light = run(browser, ground)
    shape(browser, 1280, "dark")
    assert run(browser, ground) != light
    say(browser, "#theme", "light", "change")
    assert run(browser, ground) == light
    browser.get(f"{url}/console/agents")
    assert run(browser, ground) == light and run(browser, "document.getElementById('theme').value") == "light"
    run(browser, "localStorage.clear()")


def test_what_a_screen_reader_needs(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    put(hub, schema.latest, [latest_row(hub, metric_row(1000, "")["id"], "00000006-0000-4000-8000-000000000000")])
    for path in (*LISTS, *detail_pages(hub)[:9], *OTHERS):
        browser.get(url + path)
        check_for_screen_readers(browser, path)
    assert complaints(browser) == []


def check_for_screen_readers(browser: Any, path: str) -> None:
    assert run(browser, "document.documentElement.lang") == "en" and run(browser, "document.title")
    assert run(browser, "['header', 'main'].every(tag => document.querySelectorAll(tag).length === 1)"), path
    named = "s.ariaLabel || s.ariaLabelledByElements?.length"
    assert run(browser, f"[...document.querySelectorAll('section, nav, [role=search]')].every(s => {named})"), path
    assert run(browser, "[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent)"), path
    assert run(browser, "[...document.querySelectorAll('th')].every(th => th.scope)"), path
    fields = "'input:not([type=hidden]), select'"
    assert run(browser, f"[...document.querySelectorAll({fields})].every(e => e.labels.length === 1)"), path
    assert run(browser, "[...document.querySelectorAll('svg')].every(s => s.ariaLabel || s.ariaHidden)"), path
    marks = "[...document.querySelectorAll('.status, #state')]"
    assert run(browser, f"{marks}.every(s => s.textContent.replace(/[^a-z]/g, '').length > 1)"), path
    levels = run(browser, "[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels[0] == "H1" and set(levels[1:]) <= {"H2"}, path
    ids = run(browser, "[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)), path
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    kinds = ("button", "link", "textbox", "searchbox", "combobox", "image", "table", "navigation", "checkbox")
    roles = [(node.get("role", {}).get("value"), node.get("name", {}).get("value")) for node in tree]
    assert [each for each in roles if each[0] in kinds and not each[1]] == [], path


def leave_by(browser: Any, by: str, what: str) -> None:
    """Presses a button and waits until the page that it stands on is gone and the next is read to its end."""
    from selenium.webdriver.support.expected_conditions import staleness_of

    button = browser.find_element(by, what)
    button.click()
    until(lambda: staleness_of(button)(browser))


def test_the_token_opens_the_console_and_logging_out_closes_it(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    with memory_hub(tmp_path, token="open-sesame-42") as hub, served(hub.app) as url:
        browser.get(f"{url}/console/keys")
        assert browser.current_url == f"{url}/login?next=/console/keys" and complaints(browser) == []
        for token in ("wrong", "open-sesame-42"):
            field = browser.find_element(By.ID, "token")
            assert field.get_attribute("type") == "password" and field == browser.switch_to.active_element
            field.send_keys(token)
            leave_by(browser, By.TAG_NAME, "button")
        until(lambda: browser.current_url == f"{url}/console/keys")
        (cookie,) = browser.get_cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("observer_hub", True, "Strict")
        assert run(browser, "document.cookie") == "" and "sesame" not in browser.page_source
        browser.find_element(By.ID, "name").send_keys("new")
        leave_by(browser, By.XPATH, "//button[text()='Create key']")
        (key,) = until(lambda: browser.find_elements(By.CLASS_NAME, "key"))
        assert key.text.startswith("obs_live_")
        leave_by(browser, By.XPATH, "//button[text()='Log out']")
        until(lambda: browser.current_url == f"{url}/login")
        browser.get(f"{url}/console/keys")
        assert browser.current_url.startswith(f"{url}/login")


def test_a_session_that_ends_leads_to_the_login(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    with memory_hub(tmp_path, token="open-sesame-42") as hub, served(hub.app) as url:
        browser.get(f"{url}/console/agents")
        browser.find_element(By.ID, "token").send_keys("open-sesame-42")
        leave_by(browser, By.TAG_NAME, "button")
        until(lambda: browser.current_url == f"{url}/console/agents")
        hub.clock.advance(13 * 3600)
        until(lambda: browser.current_url == f"{url}/login?next=/console/agents")


# -- colours


def colours() -> dict[str, tuple[str, str]]:
    found = re.findall(r"(--[a-z-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\)", STYLES.read_text())
    assert len(found) >= 11
    return {name: (light, dark) for name, light, dark in found}


def test_every_pair_of_colours_can_be_read() -> None:
    pairs = [(f"--{name}", on) for name in "text muted link good warn bad".split() for on in ("--ground", "--surface")]
    for scheme in (0, 1):
        for fore, back in [*pairs, ("--on-alarm", "--alarm")]:
            assert contrast(colours()[fore][scheme], colours()[back][scheme]) >= 4.5, (fore, back, scheme)
        for fore in ("--edge", "--link", "--bad", "--warn"):
            assert contrast(colours()[fore][scheme], colours()["--surface"][scheme]) >= 3.0, (fore, scheme)


def test_no_file_names_another_host() -> None:
    for file in [*STYLES.parent.iterdir(), *(STYLES.parent.parent / "templates").iterdir()]:
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "").replace('placeholder="https://"', "")
        assert "//" not in re.sub(r"(?m)^\s*//.*$| // .*$", "", text), file.name


# -- the pictures of docs/console.md


@pytest.mark.skipif(not SHOTS, reason="HUB_SHOTS names no folder")
def test_screenshots(browser: Any, hub: TestHub, url: str) -> None:
    scene(hub)
    agent, metric = "00000003-0000-4000-8000-000000000000", metric_row(1001, "")["id"]
    pages = {
        "overview": "/",
        "agent": f"/console/agent?id={agent}",
        "metrics": "/console/metrics",
        "metric": f"/console/metric?id={metric}&range=7d",
        "services": "/console/services",
        "status": "/status/shop",
    }
    for name, path in pages.items():
        for scheme in ("light", "dark"):
            shape(browser, 1280, scheme)
            browser.get(url + path)
            height = min(run(browser, "document.documentElement.scrollHeight"), 640 if name == "metric" else 1000)
            end = run(browser, "(document.querySelector('footer') || document.body).getBoundingClientRect().bottom")
            size = {"width": 1280, "height": int(min(height, end + 20)), "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            file = Path(SHOTS or "") / f"hub-{name}-{scheme}.png"
            browser.save_screenshot(str(file))
            assert file.stat().st_size < 150_000, file
