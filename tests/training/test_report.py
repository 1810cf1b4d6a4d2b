"""The report is one whole, offline, safe page whatever the log holds, and its plots show what was logged."""

import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import NUM_STEPS, record
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import UsageError
from pelagos.training import plots
from pelagos.training.figures import length_name, percent, smooth, theme, thin
from pelagos.training.metrics import Event, History, MetricsLog, RunInfo, StepRecord, read_history, write_run_info
from pelagos.training.report import write_report
from pelagos.training.report_style import STYLE

pytest.importorskip("matplotlib")

INFO = RunInfo(
    recipe="nano",
    num_parameters=16_400_000,
    num_active_parameters=6_100_000,
    num_steps=NUM_STEPS,
    num_tokens=NUM_STEPS * 16384,
    hardware="one box",
)
EVALUATION = {
    "step": 550,
    "bits_per_byte": {"stdlib": 1.71, "sqlite": 1.66},
    "recall": {"lengths": [1024, 65536], "depths": [0, 0.5, 1], "accuracy": [[1, 0.5], [1, None], [0.9, 0.25]]},
    "tasks": {"kv": 0.98, "count": 0.31},
    "qat": {"full": 2.31, "fp4_weights": 2.315, "fp4": 2.32, "exported": 2.4},
    "tool_calls": {"num_right": 40, "num_all": 41, "low": 0.874, "high": 0.996},
    "held_out": {
        "bits_per_byte": 1.7,
        "mtp": {"acceptance": 0.61, "accuracy": 0.3, "num_tokens": 8176},
        "expert_load": {"0": 1.2, "1": 1.4, "10": 1.6},
    },
    "attention": {"sparse": 3.0603, "dense": 3.0, "indexer_recall": {"1": 0.934, "10": None}},
}
SKIPPED = Event(step=101, kind="skipped", reason="the gradient is not finite")
ROLL_BACK = Event(step=245, kind="rolled_back", to_step=230, reason="loss 9.81 above 4.20")
ENTRIES = [
    *(record(step) for step in range(5, 101, 5)),
    SKIPPED,
    *(record(step) for step in range(105, 240, 5)),
    record(240, loss=1e6, gradient_norm=1e9),
    ROLL_BACK,
    *(record(step) for step in range(235, NUM_STEPS + 1, 5)),
]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page and fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def found(self, tag: str) -> list[str]:
        return [text for at, text in self.texts if at == tag]


def report(folder: Path, entries: list[StepRecord | Event], info: RunInfo | None = INFO) -> str:
    with MetricsLog(folder) as log:
        for entry in entries:
            log.write(entry)
    if info:
        write_run_info(folder, info)
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return report(folder, ENTRIES)


def test_a_finished_run_has_all_plots_and_facts(whole: str) -> None:
    page = Page(whole)
    assert page.found("title") == ["nano: training report"]
    assert page.found("h1") == ["nano"]
    assert page.found("h3") == [
        "Bits per byte by source",
        "Recall",
        "Tasks",
        "Four-bit weights",
        *(plot.title for plot in plots.PLOTS),
    ]
    assert len(page.found("figcaption")) == len(page.found("h3")) == whole.count("<svg")
    assert {"nano", "16.4M in all, 6.1M active per token", "9,011,200 of 9,011,200", "one box"} <= set(page.found("td"))
    assert {"stdlib", "1.710", "sqlite", "1.660"} <= set(page.found("td"))
    assert "40 of 41 (87% to 100% with 95% confidence)" in page.found("td")
    assert "61% accepted, 30% right, of 8,176 tokens" in page.found("td")
    assert "3.0603 with top rows, 3.0000 with all (+2.01%)" in page.found("td")
    cells = page.found("td")
    assert cells[cells.index("0", cells.index("1.660")) :][:7] == ["0", "1.20", "1", "1.40", "93.4%", "10", "1.60"]
    assert "2:30:20" in page.found("b")
    assert page.found("li") == [
        "step 101: batch skipped: the gradient is not finite",
        "step 245: rolled back to step 230: loss 9.81 above 4.20",
    ]


def test_the_stages_add_up(whole: str) -> None:
    cells = Page(whole).found("td")
    rows = [cells[cells.index(name) : cells.index(name) + 4] for name in ("short", "middle", "long", "longest")]
    assert rows == [
        ["short", "1–245", "4.01M", "256"],
        ["middle", "246–410", "2.7M", "1,024"],
        ["long", "411–510", "1.64M", "4,096"],
        ["longest", "511–550", "655k", "16,384"],
    ]


def test_the_page_asks_nobody_for_anything(whole: str) -> None:
    assert "://" not in whole
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|\burl\((?!#)", whole)
    for tag, name, value in Page(whole).attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#") or (tag == "image" and value.startswith("data:image/png;base64,"))


def test_links_within_the_page_lead_somewhere(whole: str) -> None:
    ids = Counter(value for _, name, value in Page(whole).attributes if name == "id")
    assert ids
    assert set(ids.values()) == {1}
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', whole)) <= set(ids)


def test_colours_follow_the_page(whole: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    used = set(re.findall(r"var\((--[\w-]+)\)", drawings))
    light, dark = STYLE.split("@media", 1)
    assert {"--ink", "--muted", "--grid", "--series-1", "--series-5"} <= used
    for variable in used | set(re.findall(r"var\((--[\w-]+)\)", STYLE)):
        assert f"{variable}: #" in light
        assert f"{variable}: #" in dark
    fixed = set(re.findall(r"#[0-9a-f]{6}\b", drawings))
    assert fixed <= {"#000000", "#ffffff"}  # numbers on a heat map, whose colours do not change


def test_the_same_log_makes_the_same_page(tmp_path: Path, whole: str) -> None:
    import matplotlib

    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0, "text.usetex": True}):
        assert report(tmp_path, ENTRIES) == whole
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & $x_1$ \\frac"
    info = RunInfo(**(vars(INFO) | {"recipe": evil, "hardware": evil}))
    entries = [record(1), record(2, stage=evil), record(9, stage=evil), Event(step=9, kind="skipped", reason=evil)]
    evaluation = {"bits_per_byte": {evil: 1.0}, "tasks": {evil: 1.0}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    text = report(tmp_path, entries, info)
    assert "<script" not in text
    page = Page(text)
    assert page.found("h1") == [evil]
    assert page.found("text").count(evil) >= 2 + len(page.found("h3")) - 2  # bars, and the stage in every other plot


MINIMAL = StepRecord(
    step=3, tokens=24, seconds=0.0, stage="a", sequence_length=4, batch_tokens=8, loss=2.5, learning_rate=1e-3
)


@pytest.mark.parametrize("info", [INFO, None])
def test_a_run_without_steps(tmp_path: Path, info: RunInfo | None) -> None:
    page = Page(report(tmp_path, [], info))
    assert "No step has been logged yet." in page.found("p")
    assert page.found("h3") == []


def test_a_run_of_one_step_that_measured_little(tmp_path: Path) -> None:
    page = Page(report(tmp_path, [MINIMAL], info=None))
    assert page.found("h1") == [tmp_path.name]
    assert page.found("h3") == ["Loss and its parts", "Learning rate and batch"]


@pytest.mark.parametrize("num_steps", [1, 41])
def test_a_run_without_sparse_layers(tmp_path: Path, num_steps: int) -> None:
    page = Page(report(tmp_path, [record(step, csa_layers=()) for step in range(1, num_steps + 1)]))
    assert page.found("h3") == [plot.title for plot in plots.PLOTS if plot.title != "Indexer recall"]
    assert f"Step {num_steps} of 550" in page.found("p")[1]


def test_numbers_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        ("loss", "bits_per_byte", "gradient_norm", "tokens_per_second", "stream_gain"), float("nan")
    )
    broken = record(50, **nothing, expert_load={0: float("inf")}, router_bias={1: (float("nan"), 0.0)})
    for entries in ([broken], [record(49), broken, record(51)]):
        folder = tmp_path / str(len(entries))
        folder.mkdir()
        missing = {"Bits per byte", "Gradient norm"} if len(entries) == 1 else set()
        page = Page(report(folder, entries))
        assert set(page.found("h3")) == {plot.title for plot in plots.PLOTS} - missing


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be the folder of a training run"):
        write_report(tmp_path)


def test_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"need the package matplotlib: pip install 'pelagos\[train\]'"):
        report(tmp_path, [MINIMAL])
    assert (tmp_path / "report.html").read_text() == "old"


# --- what the plots show ---


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("history")
    with MetricsLog(folder) as log:
        for entry in ENTRIES:
            log.write(entry)
    return read_history(folder)


def test_stage_boundaries_are_vertical_lines_in_every_plot(history: History) -> None:
    starts = [250, 415, 515]  # the first logged steps of the later stages
    with theme("test"):
        for plot in plots.PLOTS:
            for axes in plot.draw(history).axes:
                if axes.get_label() != "<colorbar>":
                    steps = [
                        line.get_xdata()[0]
                        for line in axes.lines
                        if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1
                    ]
                    assert steps == starts
        names = [text.get_text() for text in plots.loss(history).axes[0].texts]
    assert names == ["middle", "long", "longest"]


def test_skipped_steps_and_roll_backs_are_marked(history: History) -> None:
    with theme("test"):
        [axes] = plots.gradient_norm(history).axes
    [skipped] = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(skipped.get_xdata()) == [101]
    [stretch] = axes.patches
    assert (stretch.get_x(), stretch.get_width()) == (230, 15)


def test_the_curve_is_what_was_logged_and_undone_pieces_do_not_flatten_it(history: History) -> None:
    with theme("test"):
        axes = plots.loss(history).axes[0]
    steps = [entry.step for entry in history.steps]
    assert list(axes.lines[0].get_xdata()) == steps
    assert list(axes.lines[0].get_ydata()) == [entry.loss for entry in history.steps]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert {tuple(line.get_xdata()) for line in dotted} == {(235, 240)}
    assert axes.get_ylim()[1] < 1.5 * max(entry.loss for entry in history.steps)


@pytest.mark.parametrize("num_records", [5, 240, 1000])
def test_the_heat_map_holds_the_mean_load_of_each_layer(num_records: int) -> None:
    records = tuple(record(2 * step, expert_load={4: float(step), 7: 1.0}) for step in range(1, num_records + 1))
    with theme("test"):
        axes = plots.expert_load(History(steps=records, abandoned=(), events=())).axes[0]
    image = np.asarray(axes.images[0].get_array())
    num_columns = min(num_records, 240)
    assert image.shape == (2, num_columns)
    assert image[1] == pytest.approx(np.ones(num_columns))
    expected = np.linspace(1, num_records, num_columns)
    assert image[0] == pytest.approx(expected, abs=num_records / num_columns / 2 + 0.5)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "7"]


def test_a_layer_measured_less_often_leaves_no_holes() -> None:
    loads = ({0: 1.0}, {}, {0: 3.0, 1: 2.0}, {0: 4.0})
    records = tuple(record(step, expert_load=load) for step, load in enumerate(loads, 1))
    with theme("test"):
        image = plots.expert_load(History(steps=records, abandoned=(), events=())).axes[0].images[0].get_array()
    assert image.filled(np.nan) == pytest.approx(np.array([[1, 1, 3, 4], [np.nan, np.nan, 2, 2]]), nan_ok=True)


floats = st.floats(-1e6, 1e6) | st.just(float("nan"))


@given(st.lists(floats, min_size=1, max_size=300), st.integers(10, 40))
def test_thinning_keeps_order_ends_and_extremes(values: list[float], limit: int) -> None:
    x, y = np.arange(float(len(values))), np.array(values)
    thin_x, thin_y = thin(x, y, limit)
    assert len(thin_x) <= max(limit, 2)
    assert (np.diff(thin_x) > 0).all()
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])
    assert np.array_equal(thin_y, y[thin_x.astype(int)], equal_nan=True)
    if np.isfinite(y).any():
        assert (np.nanmin(thin_y), np.nanmax(thin_y)) == (np.nanmin(y), np.nanmax(y))


@pytest.mark.parametrize("seed", range(5))
def test_thinning_keeps_spikes_of_one_point(seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=5000)
    places = np.random.default_rng(seed).integers(1, 4999, 2)
    y[places] = 100.0, -100.0
    x, _ = thin(np.arange(5000.0), y)
    assert set(places) <= set(x)
    assert 700 < len(x) <= 800


def test_smoothing_reaches_a_thirtieth_to_both_sides() -> None:
    spike = np.zeros(319)
    spike[150] = 21.0
    assert np.flatnonzero(smooth(spike)).tolist() == list(range(140, 161))
    assert smooth(spike).max() == pytest.approx(1.0)


@given(st.lists(floats, min_size=1, max_size=200), st.sets(st.integers(1, 150), max_size=3))
def test_smoothing_is_the_mean_of_what_is_near(values: list[float], breaks: set[int]) -> None:
    cuts = sorted(place for place in breaks if place < len(values))
    y = np.array(values)
    expected = []
    for place, value in enumerate(values):
        first = max([cut for cut in cuts if cut <= place], default=0)
        last = min([cut for cut in cuts if cut > place], default=len(values)) - 1
        reach = min(len(values) // 30, place - first, last - place)
        expected.append(np.nan if np.isnan(value) else np.nanmean(y[place - reach : place + reach + 1]))
    assert smooth(y, cuts) == pytest.approx(np.array(expected), nan_ok=True, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "name"), [(256, "256"), (1024, "1K"), (65536, "64K"), (1 << 20, "1M"), (1500, "1,500"), (1536, "1,536")]
)
def test_lengths_have_short_names(number: int, name: str) -> None:
    assert length_name(number) == name


@pytest.mark.parametrize(("share", "text"), [(0.5, "50%"), (0.0125, "1.25%"), (1, "100%"), (0, "0%")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
