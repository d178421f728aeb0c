"""The page of a comparison in a real browser: it renders, fits, has no errors and asks no network."""

import json
import shutil

import pytest
import reports

from minigrad.compare import report

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install minigrad[browser]")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt install chromium chromium-driver"
)

DESK, PHONE = 1280, 390  # pixels


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "hide-scrollbars"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return report.save(reports.comparison(), folder)[0].as_uri()


def show(driver, address, width=DESK, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    driver.get(address)


def requests(driver, address):
    """The addresses that the page asked for; the browser's own pages have theirs."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [request["request"]["url"] for request in asked if request["documentURL"] == address]


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_and_fits(driver, address, width, scheme):
    requests(driver, address)  # forget those of earlier tests
    show(driver, address, width, scheme)
    assert driver.get_log("browser") == []
    asked = requests(driver, address)
    assert address in asked and all(url.startswith(("file:", "data:")) for url in asked)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    shown = driver.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".filter(r => r.width > 0).map(r => [r.width, r.height])"
    )
    drawn = len(report.PICTURES)
    assert len(shown) == drawn and all(w > 0.7 * min(width, 960) and h > 150 for w, h in shown)


def test_light_and_dark_have_their_own_colours(driver, address):
    seen = {}
    for scheme in ("light", "dark"):
        show(driver, address, DESK, scheme)
        seen[scheme] = driver.execute_script(
            "const axis = document.querySelector('figure .wide svg text');"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(axis).fill]"
        )
    (light, light_text), (dark, dark_text) = seen["light"], seen["dark"]
    assert light != dark and light_text != dark_text
    assert light_text != light and dark_text != dark


def test_text_of_the_pictures_can_be_read_on_a_phone(driver, address):
    show(driver, address, PHONE)
    smallest = driver.execute_script(
        "return Math.min(...[...document.querySelectorAll('figure .narrow svg text')]"
        ".map(t => t.getBoundingClientRect().height).filter(height => height > 0))"
    )
    assert smallest >= 8  # pixels


def test_a_link_leads_to_its_chapter_and_a_table_unfolds(driver, address):
    show(driver, address)
    driver.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    driver.find_element("css selector", "nav a[href='#size']").click()
    top = driver.execute_script("return document.getElementById('size').getBoundingClientRect().top")
    assert -1 <= top < 900
    table = driver.find_element("css selector", "#size details table")
    assert not table.is_displayed()
    driver.find_element("css selector", "#size summary").click()
    assert table.is_displayed()


def test_it_prints_with_its_tables(driver, address):
    show(driver, address)
    assert len(driver.print_page()) > 20_000
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert driver.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")
