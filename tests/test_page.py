"""The local page in headless Chromium: what it draws, that nothing in it becomes HTML, that it needs nobody else."""

from __future__ import annotations

import json
import os
import re
import shutil
import socketserver
import threading
import time
from pathlib import Path

import pytest

from observer_agent.dashboard import Page, Server, static_pages
from observer_agent.demo.stage import free_port
from tests.site import Site, metric
from tests.states import definition, state

pytestmark = pytest.mark.slow

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic --window-size=1280,1000"
).split()
HOSTILE = [
    "<img src=x onerror=window.harmed=1>",
    '"><script>window.harmed=1</script>',
    "\N{RIGHT-TO-LEFT OVERRIDE}dessap sdrawkcab\N{RIGHT-TO-LEFT ISOLATE}",
    "x" * 10_000,
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}\N{FIRE} emoji",
    "javascript:window.harmed=1",
    "</bdi></table><h1>out</h1>",
    "{{7*7}}${7*7}",
]
STYLES = Path(__file__).parent.parent / "observer_agent" / "dashboard" / "static" / "page.css"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    missing = [name for name in (CHROMIUM, DRIVER) if not shutil.which(name)]
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"THE PAGE IS NOT TESTED: {missing} missing")
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
def browser(driver):
    """A clean browser: no cookies, nothing stored, logs read, a wide window, the light scheme."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    shape(driver, 1280, "light")
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    return driver


def shape(driver, width, scheme):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


class Stage:
    """A server of the page's own files with a state that the test makes up."""

    def __init__(self):
        self.state = state([])
        self.asked = 0
        self.port = free_port()
        self.server = None
        self.start()

    def start(self):
        pages = {**static_pages(guarded=False), "/api/state": self._answer}
        self.server = Server("127.0.0.1", self.port, pages, None)
        self.server.start()

    def stop(self):
        if self.server:
            self.server.stop()
            self.server = None

    def _answer(self):
        self.asked += 1
        return Page(200, "application/json", json.dumps(self.state).encode())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture
def stage():
    made = Stage()
    yield made
    made.stop()


def until(what, seconds=20.0):
    """What it gives at last. Between two documents the driver answers with errors of several kinds: not yet."""
    from selenium.common.exceptions import WebDriverException

    end, pause, refused = time.monotonic() + seconds, threading.Event(), None
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except WebDriverException as error:
            refused = error
        pause.wait(0.05)
    raise AssertionError(f"not within {seconds} s") from refused


def run(browser, script, *arguments):
    return browser.execute_script("return " + script, *arguments)


def text(browser, selector):
    """The text of an element; empty while there is none."""
    return run(browser, "document.querySelector(arguments[0])?.textContent ?? ''", selector)


def rows(browser):
    return run(browser, "[...document.querySelectorAll('#rows tr')].map(row => row.querySelector('bdi').textContent)")


def opened(browser, url, count=None):
    browser.get(url)
    until(lambda: run(browser, "performance.getEntriesByName('render').length"))
    if count is not None:
        assert len(rows(browser)) == count


def drawn(browser, url):
    """Milliseconds from the answer to the last of 500 rows painted; a busy machine has five tries to keep the bound."""
    took = []
    while len(took) < 5:
        opened(browser, url, 500)
        took.append(run(browser, "performance.getEntriesByName('render')[0].duration"))
        if took[-1] < 1000:
            break
    assert took[-1] < 1000, took
    return took[-1]


def next_turn(stage, browser):
    """Waits until the page has asked again and drawn what it heard."""
    before = stage.asked
    until(lambda: stage.asked > before + 1)


def complaints(browser):
    return [line for line in browser.get_log("browser") if line["level"] in ("WARNING", "SEVERE")]


def addresses(browser):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {url for url in asked if not url.startswith(("about:", "data:"))}


def press(browser, key):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(browser).send_keys(getattr(Keys, key)).perform()


# -- drawing


def test_500_definitions_under_a_second_and_hostile_titles_stay_text(browser, stage):
    titles = [HOSTILE[n % len(HOSTILE)] for n in range(500)]
    stage.state = state([definition(n, title) for n, title in enumerate(titles)])
    took = drawn(browser, stage.url)
    print(f"500 definitions: {took:.0f} ms from the answer to the last row painted")
    assert sorted(rows(browser)) == sorted(titles)
    assert not run(browser, "window.harmed")
    assert run(browser, "document.querySelectorAll('bdi *, #log b, img, iframe, main script, main h1').length") == 0
    assert "<b>bold</b>" in text(browser, "#log")
    next_turn(stage, browser)
    assert not run(browser, "window.harmed") and complaints(browser) == []
    assert run(browser, "document.documentElement.scrollWidth <= window.innerWidth")


def test_it_asks_its_own_server_and_nobody_else(browser, stage):
    stage.state = state([definition(1, "https://elsewhere.example/x.png")])
    opened(browser, stage.url, 1)
    next_turn(stage, browser)
    found = addresses(browser)
    assert {stage.url, stage.url + "page.js", stage.url + "page.css", stage.url + "api/state"} == found
    for name in ("page.html", "page.js", "page.css", "login.html"):
        assert "//" not in re.sub(r"(?m)^\s*//.*$| // .*$", "", (STYLES.parent / name).read_text()), name


def test_the_policy_stops_a_script_that_gets_into_the_page(browser, stage):
    opened(browser, stage.url)
    run(browser, "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harmed=1\">')")
    add = (
        "(() => { const s = document.createElement('script'); s.text = 'window.harmed=1'; document.body.append(s) })()"
    )
    run(browser, add)
    until(lambda: any("Content Security Policy" in line["message"] for line in complaints(browser)))
    assert not run(browser, "window.harmed")


def test_more_than_500_definitions_are_cut_until_they_are_asked_for(browser, stage):
    stage.state = state([definition(n, status="healthy" if n < 3499 else "unhealthy") for n in range(3500)])
    opened(browser, stage.url, 500)
    assert rows(browser)[0] == "Definition 03499" and text(browser, "#shown") == "500 of 3,500"
    run(browser, "document.getElementById('all').click()")
    assert len(rows(browser)) == 3500


def test_a_turn_patches_rows_and_keeps_focus_scroll_and_what_is_open(browser, stage):
    stage.state = state([definition(n) for n in range(500)])
    opened(browser, stage.url, 500)
    run(browser, "document.querySelectorAll('#rows tr').forEach((row, n) => { row.mine = n })")
    run(browser, "document.querySelectorAll('#rows details')[400].open = true")
    run(browser, "document.querySelectorAll('#rows summary')[400].focus()")
    run(browser, "window.scrollTo(0, 4000)")
    stage.state = state(
        [definition(n, value=n + 0.25, status="degraded" if n == 450 else "healthy") for n in range(500)]
    )
    until(lambda: "400.25" in text(browser, "#rows tr:nth-child(401)"))
    assert run(browser, "[...document.querySelectorAll('#rows tr')].every((row, n) => row.mine === n)")
    assert run(browser, "document.activeElement === document.querySelectorAll('#rows summary')[400]")
    assert run(browser, "document.querySelectorAll('#rows details[open]').length") == 1
    assert run(browser, "window.scrollY") == 4000
    assert "400.25" in text(browser, "#rows tr:nth-child(401) dl")
    run(browser, "document.activeElement.blur()")
    until(lambda: rows(browser)[0] == "Definition 00450")
    assert run(browser, "document.querySelector('#rows tr').mine") == 450
    assert run(browser, "window.scrollY") == 4000


def test_definitions_come_and_go(browser, stage):
    stage.state = state([definition(1), definition(2)])
    opened(browser, stage.url, 2)
    stage.state = state([definition(2), definition(3)])
    until(lambda: rows(browser) == ["Definition 00002", "Definition 00003"])
    stage.state = state([])
    until(lambda: "no definitions yet" in text(browser, "#none"))


def test_what_a_broken_definition_and_a_failed_reading_show(browser, stage):
    failed = definition(1, status="no_data", value=None, reason="ECONNREFUSED", fault="target")
    broken = definition(2, status="no_data", value=None, reason="invalid_config", problem="port: must be 1 to 65535")
    stage.state = state([failed, broken, definition(3, status=None, value=None, last_run_at=None)])
    opened(browser, stage.url, 3)
    found = run(browser, "[...document.querySelectorAll('#rows tr')].map(row => row.innerText)")
    assert "no data" in found[0] and "ECONNREFUSED (target)" in found[0]
    assert "port: must be 1 to 65535" in found[1]
    assert "not yet" in found[2] and "never" in found[2]


def test_what_comes_in_beside_the_readings(browser, stage):
    otlp = {"listens_on": None, "problem": "Address already in use", "points": 0, "streams": 0}
    relay = {"listens_on": "127.0.0.1:10102", "problem": None, "waiting": 1234, "delivered": 5, "lost": {"full": 2}}
    custom = {"names": ["one", "two"], "refused": [{"origin": "/x.py", "problem": "<b>loading</b> it raised X"}]}
    stage.state = state([definition(1)])
    opened(browser, stage.url, 1)
    assert "OTLP" not in text(browser, "#process")
    stage.state = state([definition(1)], otlp=otlp, relay=relay, custom_probes=custom)
    until(lambda: "OTLP" in text(browser, "#process"))
    shown = text(browser, "#process")
    assert "does not listen, 0 points, 0 streams, Address already in use" in shown
    assert "on 127.0.0.1:10102, 1,234 waiting, 5 delivered" in shown and "full 2" in shown
    assert "2: one, two" in shown and "/x.py: <b>loading</b> it raised X" in shown
    bad = run(browser, "[...document.querySelectorAll('#process .bad')].map(node => node.textContent)")
    assert [each.split(" ")[0] for each in bad] == ["does", "full", "/x.py:"]


# -- using it


def test_filter_and_sort_by_keyboard(browser, stage):
    stage.state = state([definition(n, status="unhealthy" if n == 3 else "healthy") for n in range(5)])
    opened(browser, stage.url, 5)
    assert rows(browser)[0] == "Definition 00003"
    run(browser, "document.body.focus()")
    order = []
    for _ in range(14):
        press(browser, "TAB")
        order.append(run(browser, "(e => e.id || e.dataset.sort || e.tagName + e.className)(document.activeElement)"))
    assert order[:4] == ["Askip", "theme", "filter", "only"]
    assert order[4:12] == ["status", "title", "type", "value", "reason", "took", "last", "next"]
    assert order[12] == "SUMMARY"
    run(browser, "document.querySelector('[data-sort=value]').focus()")
    press(browser, "ENTER")
    press(browser, "SPACE")
    assert rows(browser) == [f"Definition 0000{n}" for n in (4, 3, 2, 1, 0)]
    assert run(browser, "document.querySelector('[data-sort=value]').parentNode.ariaSort") == "descending"
    assert run(browser, "document.querySelectorAll('[aria-sort]').length") == 1
    outline = "getComputedStyle(document.querySelector('[data-sort=value]')).outlineStyle"
    assert run(browser, outline) == "solid"
    run(browser, "document.getElementById('filter').focus()")
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys("00002").perform()
    assert rows(browser) == ["Definition 00002"] and text(browser, "#shown") == "1 of 5"
    next_turn(stage, browser)
    assert rows(browser) == ["Definition 00002"]
    assert run(browser, "document.activeElement.id") == "filter"


def test_the_skip_link_leads_to_the_definitions(browser, stage):
    opened(browser, stage.url)
    press(browser, "TAB")
    press(browser, "ENTER")
    assert run(browser, "document.activeElement.id") == "definitions"


def test_the_theme_follows_the_system_until_one_is_chosen(browser, stage):
    ground = "getComputedStyle(document.body).backgroundColor"
    opened(browser, stage.url)
    light = run(browser, ground)
    shape(browser, 1280, "dark")
    dark = run(browser, ground)
    assert light != dark
    run(browser, "(s => { s.value = 'light'; s.dispatchEvent(new Event('change')) })(document.getElementById('theme'))")
    assert run(browser, ground) == light
    opened(browser, stage.url)
    assert run(browser, ground) == light and run(browser, "document.getElementById('theme').value") == "light"
    run(browser, "localStorage.clear()")


def test_it_fits_a_narrow_screen(browser, stage):
    stage.state = state([definition(n, HOSTILE[n % len(HOSTILE)]) for n in range(20)])
    shape(browser, 360, "light")
    opened(browser, stage.url, 20)
    run(browser, "document.querySelectorAll('#rows details').forEach(each => { each.open = true })")
    next_turn(stage, browser)
    assert run(browser, "document.documentElement.scrollWidth") <= 360


def test_what_a_screen_reader_needs(browser, stage):
    stage.state = state([definition(1)])
    opened(browser, stage.url, 1)
    assert run(browser, "document.documentElement.lang") == "en"
    assert run(browser, "document.title") == "web-1: observer-agent"
    assert run(browser, "['header', 'main', 'footer'].every(tag => document.querySelectorAll(tag).length === 1)")
    assert run(browser, "[...document.querySelectorAll('main section')].every(s => s.ariaLabelledByElements.length)")
    assert run(browser, "[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent)")
    assert run(browser, "[...document.querySelectorAll('th')].every(th => th.scope)")
    assert run(browser, "[...document.querySelectorAll('input, select')].every(e => e.labels.length === 1)")
    assert run(browser, "[...document.querySelectorAll('svg')].every(s => s.ariaLabelledByElements[0].textContent)")
    assert run(browser, "[...document.querySelectorAll('meter')].every(m => m.ariaLabel)")
    assert run(browser, "[...document.querySelectorAll('[aria-live], [role=status]')].map(e => e.id)") == ["state"]
    levels = run(browser, "[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels[0] == "H1" and set(levels[1:]) == {"H2"}
    ids = run(browser, "[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if node.get("role", {}).get("value") in ("button", "link", "textbox", "searchbox", "combobox", "image", "table")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_the_charts_say_in_words_what_they_draw(browser, stage):
    opened(browser, stage.url)
    assert text(browser, "#depth-text") == "Waiting: 12, at most 12"
    assert text(browser, "#pushes-text") == "Delivered: 18, at most 9 in ten seconds. Lost: 3"
    assert run(browser, "document.querySelector('#depth .line').getAttribute('d')").count("L") == 2
    assert run(browser, "document.querySelector('#pushes .bars').getAttribute('d')").count("V") == 2


def test_every_pair_of_colours_can_be_read():
    pairs = [(f"--{name}", on) for name in "text muted link good warn bad".split() for on in ("--ground", "--surface")]
    for scheme in (0, 1):
        for fore, back in [*pairs, ("--on-alarm", "--alarm")]:
            assert contrast(colours()[fore][scheme], colours()[back][scheme]) >= 4.5, (fore, back, scheme)
        for fore in ("--edge", "--link"):
            assert contrast(colours()[fore][scheme], colours()["--surface"][scheme]) >= 3.0, (fore, scheme)


def colours():
    found = re.findall(r"(--[a-z-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\)", STYLES.read_text())
    assert len(found) >= 11
    return {name: (light, dark) for name, light, dark in found}


def contrast(one, other):
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# -- the agent goes and comes


def test_it_says_since_when_nobody_answers_and_recovers_by_itself(browser, stage):
    stage.state = state([definition(1)])
    opened(browser, stage.url, 1)
    assert run(browser, "document.getElementById('state').dataset.state") == "good"
    stage.stop()
    until(lambda: "does not answer since" in text(browser, "#sentence"))
    assert run(browser, "document.getElementById('state').dataset.state") == "gone"
    assert rows(browser) == ["Definition 00001"]
    stage.start()
    until(lambda: text(browser, "#sentence").startswith("Delivering"))
    assert run(browser, "document.getElementById('state').dataset.state") == "good"


def test_a_problem_comes_first(browser, stage):
    good = state([definition(1)])
    cloud = {
        **good["cloud"],
        "delivering": False,
        "problem": "the cloud does not take this key (status 401: <i>no</i>)",
    }
    stage.state = {**good, "cloud": cloud, "summary": f"NOT delivering: {cloud['problem']}. 1 definition."}
    opened(browser, stage.url, 1)
    assert "NOT delivering: the cloud does not take this key (status 401: <i>no</i>)" in text(browser, "#state")
    assert run(browser, "document.title").startswith("! ")
    assert run(browser, "document.querySelectorAll('i').length") == 0


def test_a_hidden_page_asks_nothing(browser, stage):
    opened(browser, stage.url)
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => arguments[0]})"
    fire = "; document.dispatchEvent(new Event('visibilitychange'))"
    browser.execute_script(hide + fire, True)
    until(lambda: run(browser, "performance.getEntriesByName('render').length"))
    before = stage.asked
    threading.Event().wait(5.0)  # two turns and a half; that nothing happens has no event to wait for
    assert stage.asked <= before + 1
    before = stage.asked
    browser.execute_script(hide + fire, False)
    until(lambda: stage.asked > before + 1)


# -- a real agent


class Answers(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture
def target():
    with Answers(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_real_agent_with_500_definitions(browser, site, target):
    site.open_hub([])
    document = [metric(f"m-{n}", "tcp", {"host": "127.0.0.1", "port": target}, "60s", "60s") for n in range(500)]
    for n, each in enumerate(document):
        each["title"] = HOSTILE[n % len(HOSTILE)]
    file = site.folder / "local.yaml"
    file.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": document}))
    site.start_agent(DEFINITIONS_FILE=str(file))
    site.until(lambda: (site.state() or {}).get("counts", {}).get("healthy", 0) == 500, 60)
    took = drawn(browser, f"http://127.0.0.1:{site.page}/")
    print(f"500 definitions of a real agent: {took:.0f} ms")
    assert text(browser, "#sentence") == "Delivering. 500 definitions: 500 healthy."
    assert not run(browser, "window.harmed") and complaints(browser) == []
    site.kill_agent()
    until(lambda: "does not answer since" in text(browser, "#sentence"))
    site.start_agent(DEFINITIONS_FILE=str(file))
    until(lambda: text(browser, "#sentence").startswith("Delivering"), 40)


def test_the_token_opens_the_page_and_logging_out_closes_it(browser, site):
    from selenium.webdriver.common.by import By

    site.open_hub([])
    site.start_agent(DEBUG_DASHBOARD_TOKEN="open-sesame-42")
    url = f"http://127.0.0.1:{site.page}"
    site.until(lambda: "listens on" in site.log)

    def type_in(token):
        field = browser.find_element(By.ID, "token")
        assert field.get_attribute("type") == "password"
        field.send_keys(token)
        browser.find_element(By.TAG_NAME, "button").click()

    browser.get(url + "/")
    assert browser.current_url == url + "/login" and complaints(browser) == []
    type_in("wrong")
    until(lambda: "This is not the token" in browser.page_source)
    type_in("open-sesame-42")
    until(lambda: browser.current_url == url + "/")
    until(lambda: text(browser, "#sentence").startswith("Delivering"), 40)
    (cookie,) = browser.get_cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("observer_agent", True, "Strict")
    assert "sesame" not in cookie["value"] and run(browser, "document.cookie") == ""
    assert "sesame" not in browser.page_source and "sesame" not in site.log
    browser.find_element(By.CSS_SELECTOR, "form[action='/logout'] button").click()
    until(lambda: browser.current_url == url + "/login")
    browser.add_cookie({"name": "observer_agent", "value": cookie["value"]})
    browser.get(url + "/")
    assert browser.current_url == url + "/login"
