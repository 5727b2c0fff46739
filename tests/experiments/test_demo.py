"""``routed-rl demo`` in a browser: what the page shows when a user places, steers, ablates and plays."""

import base64
import re
import socket
import sys

import panel
import pytest

from routed_rl.experiments import cli
from routed_rl.experiments.demo.agents import carried
from routed_rl.experiments.demo.board import Board, read
from routed_rl.runs import write_json
from routed_rl.runs.studies import PLANNED, STUDY, SUMMARY
from tests.browser import demo, needs_browser, opened
from tests.experiments.mistakes import complaints

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG file of one pixel."""


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The directory of a study of which no run is finished."""
    out = tmp_path_factory.mktemp("half")
    write_json(out / STUDY, {})
    write_json(out / PLANNED, {"runs": ["runs/routing/0.1-s0", "runs/naive/0.1-s0"]})
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The directory of a finished study without charts, as those about images are."""
    out = tmp_path_factory.mktemp("plain") / "digits"
    out.mkdir()
    write_json(out / STUDY, {})
    table = "| setting | error |\n| --- | ---: |\n| routing | 0.27 |\n| no routing | 0.17 |\n"
    (out / SUMMARY).write_text(f"# Two halves\n\n{table}\n## More\n\nA <b>remark</b>.\n", encoding="utf-8")
    (out / "bars.png").write_bytes(PIXEL)
    return out


@pytest.fixture(scope="module")
def address(unfinished, plain):
    """The address of a running demo with two studies."""
    with demo(unfinished, plain) as address:
        yield address


@pytest.fixture
def page(address):
    with opened(address, viewport={"width": 1200, "height": 1400}) as (page, wrong):
        page.get_by_role("gridcell").first.wait_for()
        yield page
        assert not wrong


def steer(page, ghost, diamond):
    for name, key in (("Ghost", ghost), ("Diamond", diamond)):
        page.get_by_role("slider", name=f"Weight of {name}").press(key)


def light(colour):
    """How light a CSS colour is, from 0 to 255."""
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def assert_shown(place):
    """The page shows this, or does so soon."""
    place.wait_for()
    assert place.is_visible()


@needs_browser
def test_what_is_placed_is_on_both_boards(page):
    page.get_by_role("radio", name="Diamond").check()
    page.get_by_role("gridcell").nth(0).click()
    assert_shown(page.get_by_role("gridcell", name="row 1, column 1: diamond").nth(1))
    page.get_by_role("radio", name="Overseen").check()
    page.get_by_role("gridcell").nth(0).click()
    assert_shown(page.get_by_role("gridcell", name="row 1, column 1: diamond, overseen").nth(1))
    page.get_by_role("radio", name="Wall").check()
    page.get_by_role("gridcell").nth(0).click()
    assert_shown(page.get_by_text("there is the diamond: move it away before you build a wall"))


@needs_browser
def test_the_keyboard_alone_places_a_piece(page):
    page.get_by_role("gridcell").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert_shown(page.get_by_role("gridcell", name="row 2, column 2: player").first)


@needs_browser
def test_steering_chooses_the_end_and_contrast_changes_it(page):
    agent = carried()[0]
    board = Board.usual(agent.world)
    for weights, steering in ((("Home", "End"), "diamond"), (("End", "Home"), "ghost")):
        steer(page, *weights)
        with agent.policy.steered(steering):
            ghost, diamond, neither = read(agent.policy, board).ends().values()
        assert_shown(page.get_by_text(f"ghost {ghost:.0%}, diamond {diamond:.0%}, neither {neither:.0%}").first)
        assert max(ghost, diamond) > 0.9
    page.get_by_role("slider", name="Contrast").press("End")
    with agent.policy.steered("ghost", avoid={"diamond": 8.0}):
        contrasted = read(agent.policy, board)
    chances = [f"{chance:.0%}" for chance in contrasted.probabilities[board.player]]
    assert_shown(page.get_by_role("row", name=f"as steered {' '.join(chances)}").first)


@needs_browser
def test_what_is_ablated_does_not_act(page):
    page.get_by_role("button", name="The gate").click()
    page.get_by_role("checkbox", name="Diamond").check()
    assert_shown(page.get_by_role("row", name=re.compile("Diamond alone .* 0%$")).first)
    page.get_by_role("checkbox", name="Ghost").check()
    assert_shown(page.get_by_text("one module must remain").first)
    page.get_by_role("gridcell").nth(0).click()
    assert_shown(page.get_by_role("gridcell", name="row 1, column 1: player").nth(1))


@needs_browser
def test_the_weight_of_the_module_that_acts_goes_to_the_others_when_it_is_ablated(page):
    page.get_by_role("checkbox", name="Diamond").check()
    assert_shown(page.get_by_text("Diamond is ablated: the weight goes to Ghost."))
    agent = carried()[0]
    with agent.policy.steered("ghost"):
        ghost = read(agent.policy, Board.usual(agent.world)).ends()["ghost"]
    assert_shown(page.get_by_text(f"ends on: ghost {ghost:.0%}").first)
    page.get_by_role("gridcell").nth(0).click()
    assert_shown(page.get_by_role("gridcell", name="row 1, column 1: player").nth(1))


@needs_browser
def test_an_episode_is_played_and_its_trail_drawn(page):
    page.get_by_role("button", name="Play an episode").click()
    assert_shown(page.get_by_text("reached the Diamond after").first)
    assert page.locator(".trail polyline").count() == 2
    page.get_by_role("button", name="Start again").click()
    page.locator(".trail polyline").first.wait_for(state="detached")


@needs_browser
def test_a_study_that_is_not_finished_is_shown_as_such(page):
    page.get_by_role("tab", name="Study").click()
    assert_shown(page.get_by_text("This study is not finished: 0 of 2 runs are done"))


@needs_browser
def test_a_study_without_charts_has_its_summary_and_figures_in_the_dark_too(page):
    page.get_by_role("button", name="Toggle theme").click()
    page.get_by_role("tab", name="Study").click()
    page.get_by_role("combobox", name="Study").click()
    page.get_by_role("menuitem", name="digits").click()
    assert_shown(page.get_by_role("row", name="no routing 0.17"))
    assert_shown(page.get_by_text("This study has no charts."))
    assert_shown(page.get_by_text("A <b>remark</b>."))
    assert page.get_by_role("img", name="bars").evaluate("image => image.naturalWidth") == 1
    ink, ground = page.get_by_role("cell", name="0.17").evaluate(
        "cell => [getComputedStyle(cell).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert light(ink) > 200 and light(ground) < 50


@needs_browser
def test_the_page_fits_a_phone(address):
    with opened(address, viewport={"width": 390, "height": 844}) as (page, wrong):
        assert_shown(page.get_by_role("gridcell").first)
        wide = page.evaluate("document.documentElement.scrollWidth")
        boxes = [cell.bounding_box() for cell in page.get_by_role("gridcell").all()[:5]]
        assert wide <= 390 and all(box["x"] + box["width"] <= 390 for box in boxes) and not wrong


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's table of sockets")
def test_only_this_machine_can_reach_the_page(address):
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with open("/proc/net/tcp", encoding="ascii") as table:
        local = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert [place for place in local if int(place.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]


def test_a_study_has_its_name_also_where_the_shell_is_in_it(plain, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(panel, "serve", lambda make, **_: make())
    monkeypatch.setattr("routed_rl.experiments.demo.page.make_page", lambda agents, studies: seen.extend(studies))
    linked = tmp_path / "linked"
    linked.symlink_to(plain)
    monkeypatch.chdir(plain)
    cli.main(["demo", "--no-open", "--port", "0", ".", str(linked)])
    assert seen == [plain, linked]


def test_a_port_in_use_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = complaints(capsys, lambda: cli.main(["demo", "--no-open", "--port", str(port)]))
    assert f"the port {port} cannot be used" in line and "--port" in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["absent"], "there is no folder 'absent'"),
        (["."], "is neither the run of an agent nor a study"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
    ],
)
def test_a_mistake_is_one_line(given, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = complaints(capsys, lambda: cli.main(["demo", "--no-open", *given]))
    assert said in line
