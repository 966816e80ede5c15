"""The report as a file, a page, a table and lines on the terminal: every case is there, and nothing from elsewhere."""

import io
import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from rich.console import Console

from benchmarks import compare, frame, page, plots, report, summary, terminal
from benchmarks.compiled import Compiled
from benchmarks.host import HostTime
from benchmarks.modelled import Modelled
from benchmarks.report import Report
from benchmarks.rows import COPY, Key, Row
from benchmarks.timing import Times
from benchmarks.training import Comparison, Run

GB = 10**9
PROVIDERS = ("tritonbn", "torch, cuDNN", "apex")


def key(number=1, **options):
    given = {"layer": f"layer <{number}> & more", "layout": "channels_first", "kind": "batch_norm forward"} | options
    return Key("resnet50", given["layer"], (32, 8 * number, 7, 7), "float16", given["layout"], given["kind"])


KEYS = [
    key(number, layout=layout, kind=f"batch_norm {kind}")
    for number in (1, 2)
    for layout in ("channels_first", "channels_last")
    for kind in ("forward", "backward")
]


def row(of, provider, microseconds=None, why=""):
    times = microseconds and Times(microseconds * 0.9, float(microseconds), microseconds * 1.1)
    fields = {"errors": {"y": 1e-4}, "kernels": ("a_kernel",), "peak_bytes": 100, "saved_bytes": 64}
    unfit = why.startswith("not <installed>")
    return Row(of, provider, 8000, 2000, why, unfit, **fields, cold=times, warm=times, host=times)


def made(measured=True, **options):
    """A report of all KEYS; ours takes 10 us, and then 20, cuDNN twice as long, a copy 8, and apex is not there."""
    times = {"tritonbn": (10, 20), "torch, cuDNN": (20, 40)}
    rows = [
        row(k, p, times[p][k.shape[1] > 8]) if measured and p in times else row(k, p, None, "not <installed>")
        for k in KEYS
        for p in PROVIDERS
    ]
    rows += [row(k, COPY, 8) for k in KEYS if measured]
    fields = {
        "environment": {"date": "2026-01-01", "GPU": "glass", "commit": "abc", "tritonbn": "1"},
        "measured_on": "glass" if measured else None,
        "copy_bandwidth": GB if measured else None,
        "rows": rows,
        "training": [Comparison("digits", 32, Run([2.0, 1.0], 0.5), Run([2.0, 1.25], 0.5))],
        "compiled": [Compiled(k, "H100", "resident 1x1x8", 1, 80, 0, 16, 9e-6, 4e-6) for k in KEYS],
        "modelled": [Modelled(k, gpu, "resident", 4e-6, 8e-6) for k in KEYS for gpu in ("H100", "A100", "V100")],
        "host": [HostTime("forward", 15.0, 20.0)],
    }
    return Report(**fields | options)


class Parser(HTMLParser):
    """Tags, their attributes, and the words of cells; everything that is opened is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def parsed(html):
    parser = Parser()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.fixture
def undrawn(monkeypatch):
    """A page without pictures, which take seconds to draw."""
    monkeypatch.setattr(page, "pictures", lambda report: [])


@pytest.mark.parametrize("measured", [True, False])
def test_the_page_has_every_case_and_nothing_from_elsewhere(measured):
    html = page.render(made(measured))
    parser = parsed(html)
    assert sum(tag == "tr" and attributes.get("class") == "case" for tag, attributes in parser.tags) == len(KEYS)
    assert all(parser.text.count(k.layer) == 4 for k in KEYS), "escaped once, and read back as it was"
    addresses = [
        value for _, attributes in parser.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) == (4 if measured else 2)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"<(script|link|iframe|object)|url\(|@import|https?://", html)
    assert ("There is no GPU here" in html) is not measured
    titles = [attributes["title"] for tag, attributes in parser.tags if tag == "td" and "title" in attributes]
    assert titles.count("not <installed>") == len(KEYS) * (1 if measured else 3)


def test_a_report_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    report.write(made(), path)
    assert report.read(path) == made()
    path.write_text(path.read_text().replace('"provider"', '"who"'))
    with pytest.raises(ValueError, match="expected a report"):
        report.read(path)


def test_what_is_no_number_is_read_back_as_none(tmp_path):
    nowhere = Modelled(key(), "H100", "none", 4e-6, math.inf)
    given = made(False, training=[Comparison("digits", 32, Run([math.nan]), Run([1.0]))], modelled=[nowhere])
    report.write(given, tmp_path / "report.json")
    again = report.read(tmp_path / "report.json")
    assert again.training[0].ours.losses == [None]
    assert again.modelled[0].modelled is None
    assert page.render(given)
    assert page.render(made(False, modelled=[again.modelled[0]]))
    assert compare.changes(again, given) == []


def test_what_others_say_is_no_markup():
    said = "OSError: [/usr/lib/x] bad [bold]"
    new = made()
    new.rows[0] = row(KEYS[0], "tritonbn", None, said)
    text = printed(terminal.show_changes, compare.changes(made(), new)) + printed(terminal.show, new)
    assert text.count(said) == 2


def test_times_of_unseen_kernels_are_told(undrawn):
    unseen = row(KEYS[0], "tritonbn", 10)
    unseen.kernels = ()
    assert "of 1 times nobody knows whose they are" in printed(terminal.show, made(rows=[unseen]))
    assert "the profiler saw no kernel" in page.render(made(rows=[unseen]))
    assert "nobody knows" not in printed(terminal.show, made())


def test_suites_that_come_twice_are_together(undrawn):
    given = made()
    given.rows += [row(Key("mlp", "", (2, 3), "float16", "channels_first", "batch_norm forward"), "tritonbn", 1)]
    given.rows += made().rows[:1]
    assert [name for name, _ in page.suites(given)] == ["resnet50", "mlp"]
    assert parsed(page.render(given)).tags.count(("details", {"class": "suite"})) == 1


def test_a_time_of_nothing_is_no_bandwidth(undrawn):
    assert row(KEYS[0], "tritonbn", 1e-9).bandwidth > 0
    still = Row(KEYS[0], "tritonbn", 8000, 2000, cold=Times(0, 0, 0))
    assert still.bandwidth is None
    assert page.render(made(rows=[still]))


def test_many_inputs_are_drawn_as_the_worst(monkeypatch):
    flat = frame.frame(made())
    assert [len(axes.get_yticks()) for axes in plots.speed_up(flat).axes] == [4, 4]
    monkeypatch.setattr(plots, "MOST_INPUTS", 1)
    given = made()
    given.rows[1] = row(KEYS[0], "torch, cuDNN", 5)
    drawn = [[tick.get_text() for tick in axes.get_yticklabels()] for axes in plots.speed_up(frame.frame(given)).axes]
    assert [len(each) for each in drawn] == [1, 1]
    assert drawn[0] == ["resnet50 32x8x7x7 f16 forward"]


def test_the_table_has_the_numbers_and_the_environment():
    flat = frame.frame(made())
    assert len(flat) == len(KEYS) * (len(PROVIDERS) + 1)
    first = flat.iloc[0]
    assert (first["shape"], first.cold_p20, first.cold_p50, first.cold_p80) == ("32x8x7x7", 9, 10, 11)
    assert first.gbps == pytest.approx(8000 / 10e-6 / 1e9)
    assert first.of_copy == pytest.approx(0.8)
    assert math.isnan(first.graph_p50)
    assert (first.gpu, first.commit, first.date, first.saved_bytes) == ("glass", "abc", "2026-01-01", 64)
    assert flat.iloc[2].why == "not <installed>"
    again = pd.read_csv(io.StringIO(flat.to_csv(index=False)))
    assert list(again.columns) == list(flat.columns)


def test_the_summary_is_geometric_and_names_the_worst_case():
    made_now = made()
    made_now.rows[1] = row(KEYS[0], "torch, cuDNN", 5)
    line, other = summary.speed_ups(frame.frame(made_now)).itertuples()
    assert (line.peer, line.kind, line.cases) == ("torch, cuDNN", "batch_norm forward", len(KEYS) / 2)
    assert (line.slower_in, line.worst, line.alone) == (1, 0.5, 0)
    assert line.speed_up == pytest.approx((0.5 * 2**3) ** (1 / 4))
    assert (other.kind, other.speed_up, other.slower_in) == ("batch_norm backward", pytest.approx(2), 0)
    assert KEYS[0].layer in line.worst_case
    parts = summary.of_floor(frame.frame(made_now)).set_index("provider")
    assert parts.loc["tritonbn", "mean"] == pytest.approx(math.sqrt(0.8 * 0.4))
    assert parts.loc["torch, cuDNN", "most"] == pytest.approx(1.6)
    made_now.rows[0] = row(KEYS[0], "tritonbn", None, "broken")
    made_now.rows[4] = row(KEYS[1], "torch, cuDNN", None, "broken")
    lines = summary.speed_ups(frame.frame(made_now)).itertuples()
    assert [(line.cases, line.alone) for line in lines] == [(len(KEYS) / 2 - 1, 1), (len(KEYS) / 2 - 1, 0)]
    parts = summary.of_floor(frame.frame(made_now)).set_index("provider")
    assert parts.loc["torch, cuDNN", "cases"] == len(KEYS) - 1
    assert parts.loc["torch, cuDNN", "ours"] == pytest.approx((0.8**2 * 0.4**4) ** (1 / 6)), "where both have run"
    assert summary.speed_ups(frame.frame(made(measured=False))).empty


def printed(show, *arguments):
    out = io.StringIO()
    show(*arguments, Console(file=out, width=400))
    return out.getvalue()


def test_the_terminal_shows_all_of_it():
    report = made()
    report.rows[4] = row(report.rows[4].key, report.rows[4].provider, None, "broken")
    text = printed(terminal.show, report)
    assert all(k.layer in text for k in KEYS)
    assert re.search(r"10\.0 +20\.0 2\.00x", text)
    assert "[1] broken" in text
    assert "apex: not <installed>" in text
    assert text.count("apex") == 1, "no column of nothing"
    assert re.search(r"torch, cuDNN +batch_norm forward +4 +2\.00x +0 +2\.00x +0 +resnet50", text)
    assert "a plain copy of 1 GiB: 1 GB/s" in text
    assert "greatest difference of the losses over 2 steps: 2.50e-01" in text
    without = printed(terminal.show, made(measured=False))
    assert "nothing on this page is a GPU time" in without
    assert "cold L2" not in without


def test_wrong_values_show_and_count(undrawn):
    wrong = row(key(), "tritonbn", None, "wrong: dx is off by 1.0e+00")
    assert made().is_right
    assert not made(checked=[wrong]).is_right
    assert not made(rows=[wrong]).is_right
    assert not made(rows=[row(key(), "tritonbn, split", None, "had not finished after 7 s")]).is_right
    assert made(rows=[row(key(), "tritonbn, split", None, "not <installed>")]).is_right
    assert not made(failures=["training: ZeroDivisionError: "]).is_right
    replayed = row(key(), "tritonbn", 10)
    replayed.not_captured = "WrongError: wrong: y is off by nan"
    assert not made(rows=[replayed]).is_right, "nobody may replay it"
    assert "in a graph: WrongError: wrong: y is off by nan" in page.render(made(rows=[replayed]))
    assert "WrongError: wrong: y is off by nan" in printed(terminal.show, made(rows=[replayed]))
    assert made(rows=[row(key(), "apex", None, "wrong: y is off")]).is_right, "others may be wrong"
    failed = Compiled(key(), "H100", "resident", 0, 0, 0, 0, None, 4e-6, "PassManager failed")
    assert not made(compiled=[failed]).is_right
    right = row(key(), "tritonbn")
    text = printed(terminal.show, made(measured=False, checked=[right, wrong], compiled=[failed]))
    assert "ONLY 1" in text
    assert "wrong: dx is off by 1.0e+00" in text
    assert "PassManager failed" in text
    html = page.render(made(measured=False, checked=[right, wrong], compiled=[failed]))
    assert html.count("wrong: dx is off") == html.count("PassManager failed") == 1


def test_two_reports_compared():
    old, new = made(), made()
    assert compare.changes(old, new) == []
    assert printed(terminal.show_changes, []).strip() == "compared: 0 became worse, 0 better"
    new.rows[0] = row(KEYS[0], "tritonbn", 14)  # 10 before: their fifths do not meet
    new.rows[3] = row(KEYS[1], "tritonbn", 10.8)  # they meet
    new.rows[4] = row(KEYS[1], "torch, cuDNN", 10)
    new.rows[6] = row(KEYS[2], "tritonbn", None, "wrong")
    new.compiled[0] = Compiled(KEYS[0], "H100", "resident", 2, 80, 8, 4, 9e-6, 4e-6)
    new.modelled[0] = Modelled(KEYS[0], "H100", "resident", 4e-6, 9e-6)
    new.host[0] = HostTime("forward", 10.0, 20.0)
    found = compare.changes(old, new)
    assert [change.ratio for change in found] == sorted((change.ratio for change in found), reverse=True)
    told = {(change.what, change.before, change.after) for change in found}
    assert ("batch_norm forward, cold, us", "10.0", "14.0") in told
    assert ("batch_norm backward, cold, us", "20.0", "10.0") in told
    assert ("batch_norm forward", "10.0", "wrong") in told
    assert ("batch_norm forward, launches", "1", "2") in told
    assert ("batch_norm forward, spills", "0", "8") in told
    assert ("batch_norm forward, bytes an access", "16", "4") in told
    assert ("batch_norm forward, modelled, us", "8.0", "9.0") in told
    assert ("host time / torch.nn's", "0.75", "0.50") in told
    assert not any("10.8" in change.after for change in found)
    assert sum(change.is_regression for change in found) == len(found) - 3, "the warm times of both, too"
    text = printed(terminal.show_changes, found)
    assert "compared: 7 became worse, 3 better" in text
    elsewhere = made(measured_on="another")
    elsewhere.rows[0] = row(KEYS[0], "tritonbn", 99)
    assert compare.changes(old, elsewhere) == [], "another GPU's times say nothing"
