"""A page in a real browser, without a window, which notes whatever goes wrong."""

import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from routed_rl.runs.pool import PYTHON

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def needs_browser(test):
    """Mark a test that opens pages in Chromium."""
    missing = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's package is chromium")
    return pytest.mark.integration(missing(test))


@contextmanager
def demo(*directories):
    """Run ``routed-rl demo`` in a process of its own, and yield its address."""
    command = [*PYTHON, "routed_rl.experiments.cli", "demo", "--no-open", "--port", "0", *map(str, directories)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0]
            _await(urlsplit(address))
            yield address
        finally:
            process.terminate()


def _await(address):
    """Wait until a server listens, at most a minute: it says its address a moment before."""
    for _ in range(600):
        with suppress(ConnectionRefusedError):
            socket.create_connection((address.hostname, address.port)).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens at {address.geturl()}")


@contextmanager
def opened(url, **options):
    """Open a page with something that Bokeh draws. Yield it, and a list of errors and of requests to other machines.

    Args:
        options: of the browser's page: ``viewport``, ``color_scheme``.
    """
    from playwright.sync_api import sync_playwright

    wrong = []

    def request(sent):
        address = urlsplit(sent.url)
        if address.scheme not in ("data", "blob", "file") and address.hostname != "127.0.0.1":
            wrong.append(f"request to {sent.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(**options)
        page.on("request", request)
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        with page.expect_console_message(lambda said: "document idle" in said.text):  # of Bokeh: all is connected
            page.goto(url)
        try:
            yield page, wrong
        finally:
            browser.close()


def column(page, table, number):
    """The texts of a column in a table of the page."""
    return page.locator("table").nth(table).locator(f"tbody tr td:nth-child({number + 1})").all_inner_texts()


def assert_report_opens(path, charts):
    """A study's report opens from disk without an error, with so many charts, all figures, and tables that sort."""
    with opened(path.as_uri(), viewport={"width": 1000, "height": 900}) as (page, wrong):
        page.locator(".bk-Figure").nth(charts - 1).wait_for()
        assert page.locator(".bk-Figure").count() == charts
        images = page.locator("figure img")
        assert images.count() == len(list(path.parent.glob("*.png")))
        assert all(images.evaluate_all("all => all.map(image => image.naturalWidth > 100)"))
        head = page.locator("thead").first.get_by_role("columnheader").nth(1)
        for order, direction in (("ascending", 1), ("descending", -1)):
            head.get_by_role("button").click()
            assert page.locator(f"th[aria-sort={order}]").count() == 1
            cells = [re.match(r"\(?([-−]?[\d.,]+)", cell) for cell in column(page, 0, 1)]
            numbers = [float(cell[1].replace("−", "-").replace(",", "")) for cell in cells if cell]
            assert numbers == sorted(numbers, key=lambda number: direction * number)
            assert all(cells[: len(numbers)]), "what is no number comes after all numbers"
        assert wrong == [], wrong
