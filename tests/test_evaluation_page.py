"""The page: self-contained, complete, honest, and safe with odd input."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vol3d.evaluation.case import Case, choose_cases, mark
from vol3d.evaluation.chart import loss_chart, loss_charts, nice_ticks, reliability_chart
from vol3d.evaluation.compare_page import task_view
from vol3d.evaluation.page import format_p, format_score, render_page, title_of, write_page
from vol3d.evaluation.page_tables import table_of

LEFT = "left pleural effusion"


def score(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


def evaluation():
    report = {
        "finding_f1": score(0.74, 0.70, 0.78),
        "laterality_accuracy": score(None, note="no finding with a side was reported"),
        "bleu_4": score(0.31, 0.3, 0.32),
        "per_finding": {
            LEFT: {"f1": score(0.8, 0.7, 0.9), "support": 41},
            "ascites": {"f1": score(0.9, 0.8, 0.95), "support": 7},
        },
        "baselines": {"blind": {"finding_f1": 0.21}, "always_normal": {"finding_f1": 0.0}},
        "not_in_truth": {"gallstones": 3},
        "collapse": {"unique_share": 0.01, "most_common_share": 0.99, "empty": 2, "collapsed": True},
    }
    return {
        "model": "runs/demo/model",
        "manifest": "phantoms/manifest.jsonl",
        "studies": 200,
        "patients": 180,
        "seconds": 41.0,
        "version": "0.1.0",
        "notes": ["A note of the run."],
        "tasks": {
            "report": report,
            "segmentation": {"hd95_mm": score(12.3, 10.0, 140.0), "dice": score(0.9, 0.8, 1.0)},
        },
        "faithfulness": {"twins": {"changed": score(0.71, 0.6, 0.8), "unchanged": score(0.84, 0.8, 0.9), "pairs": 60}},
        "leakage": {"patients_across_splits": [], "near_duplicate_reports": ["a", "b", "c", "d"]},
    }


def case(**changes):
    pictures = [np.zeros(shape, dtype=np.uint8) for shape in ((20, 24), (30, 24), (30, 20))]
    given = {
        "study": "s1",
        "slices": pictures,
        "truth": "FINDINGS:\nThere is a left pleural effusion. No ascites.",
        "generated": "FINDINGS:\nThere is ascites.",
        "truth_keys": {LEFT},
        "predicted_keys": {"ascites"},
        "overlays": [picture > 0 for picture in pictures],
        "note": "worst",
    }
    return Case(**(given | changes))


HISTORY = [{"step": s, "train/loss": 3.0 / (1 + s), "val_loss": "" if s % 2 else str(2.0), "lr": 1} for s in range(10)]


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or left open."""

    EMPTY = ("meta", "img", "line", "polyline", "br")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_whole_page(tmp_path):
    out = write_page(evaluation(), [case()], HISTORY, tmp_path / "new" / "evaluation.html")
    assert [path.name for path in out.parent.iterdir()] == ["evaluation.html"]
    html = out.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())
    for expected in (
        "0.74", "0.70 – 0.78", "0.21", "Always normal", LEFT, "41 true", "Nothing here may guide the care of a patient",
        "A note of the run.", "no finding with a side was reported", "gallstones (3)", "The model repeats itself",
        "2 of its reports are empty", "HD95 (mm)", "140", "Changed finding changes", "Near duplicate reports",
        "4 (a, b, c, …)", "patient's right is on the left", "train loss", "worst", "What the scores mean",
    ):  # fmt: skip
        assert expected.replace("'", "&#39;") in text or expected in text, expected
    assert html.index("ascites</span>") < html.index("pleural effusion</span>")  # best finding first


def test_nothing_is_fetched_and_nothing_runs():
    html = render_page(evaluation(), [case()], HISTORY)
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', html))
    assert len(re.findall("<img", html)) == 3


def test_text_from_a_model_is_text():
    html = render_page(evaluation() | {"model": "<b>m</b>"}, [case(generated="<script>alert(1)</script> & more")])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>m</b>" not in html


def test_marks():
    def keys_of(sentence):
        return {key for key in (LEFT, "ascites") if key in sentence}

    text = "FINDINGS:\nLungs: A left pleural effusion of 3.5 mm. Clear.\nThere is ascites."
    lines = mark(text, {LEFT, "ascites"}, {LEFT}, "missed", keys_of)
    assert lines[0] == [("FINDINGS:", "head")]
    assert lines[1] == [("Lungs: ", "head"), ("A left pleural effusion of 3.5 mm.", "agree"), (" ", ""), ("Clear.", "")]
    assert lines[2] == [("There is ascites.", "missed")]
    both = mark("left pleural effusion and ascites", {LEFT, "ascites"}, {LEFT}, "invented", keys_of)
    assert both == [[("left pleural effusion and ascites", "invented")]]
    assert mark("", set(), set(), "missed", keys_of) == []


def test_marks_lose_no_word():
    text = "IMPRESSION:\n1. Left effusion.\n\nSee 3.5 cm mass... Done"
    lines = mark(text, set(), set(), "missed", lambda sentence: set())
    assert "\n".join("".join(piece for piece, _ in line) for line in lines) == text


def test_case_shows_its_keys_and_edges():
    html = render_page(evaluation(), [case()])
    assert f"− {LEFT}" in html
    assert "+ ascites" in html
    assert html.count('class="edge from">R<') == 2
    assert html.count('class="edge from">A<') == 1


def test_a_case_with_bad_pictures_is_named():
    with pytest.raises(
        ValueError, match=r"study 's1': 3 two-dimensional uint8 pictures are needed, got 1 \(\(4, 4\) float64\)"
    ):
        render_page(evaluation(), [case(slices=[np.zeros((4, 4))])])


def test_a_page_of_almost_nothing():
    html = render_page({"model": "m", "tasks": {}})
    assert "Nothing here may guide the care" in html
    assert "Finding by finding" not in html


def test_choice_of_cases():
    truths = [{"a"}, {"a", "b"}, set(), {"a"}, {"b"}, {"a"}, {"c"}, {"d"}, {"a", "b", "c"}]
    predicted = [{"a"}, {"a"}, set(), {"b"}, {"b"}, {"a"}, {"c"}, set(), {"a", "b", "c"}]
    chosen = choose_cases(truths, predicted, 8)
    assert [note for _, note in chosen] == ["worst"] * 2 + ["median"] * 2 + ["best"] * 2 + ["random"] * 2
    assert len({i for i, _ in chosen}) == 8
    assert chosen[0][0] == 3
    assert 2 not in [i for i, note in chosen if note == "best"]  # a normal study shows least
    assert len(choose_cases(truths[:2], predicted[:2], 8)) == 2
    assert choose_cases([], [], 8) == []


def test_probes_and_calibration_are_shown():
    noise = {"f1_change": score(-0.1, -0.2, 0.05), "same_findings": score(0.8)}
    over = {"value": 0.9, "low": 0.8, "high": 1.0, "p": 0.001}
    blank = score(0.98, 0.95, 1.0, control=0.08, over_control=over)
    told = {"blank": "once the volume is empty", "changed": "BEAF", "same_findings": "exactly the same"}
    probes = {
        "blank": blank,
        "noise": noise,
        "judged": ["blank"],
        "caught": [],
        "not_judged": {"mirror": "no sides"},
        "definitions": told,
    }
    codes = {"ece": score(0.05), "reliability": [{"probability": 0.2, "frequency": 0.3, "labels": 9}]}
    html = render_page({"tasks": {"codes": codes}, "faithfulness": {"probes": probes, "twins": {"pairs": 0}}})
    gone = "Findings are gone from an empty volume"
    shown = (gone, "Change of F1 (noise)", "Same findings (noise)", "-0.10", 'cy="70.0"')
    assert [text for text in shown if text not in html] == []
    assert "once the volume is empty" in html
    assert "over control +0.90 (+0.80 to +1.00), p 0.001" in html
    assert "exactly the same" in html
    assert "above the control in the one that could be judged" in html
    assert "Not judged: sides turn with the mirror (no sides)" in html
    assert "BEAF" not in html  # no twins were scored
    assert reliability_chart([]) is None


def test_only_the_changed_volumes_that_were_shown_are_told():
    nothing = {"value": None, "low": None, "high": None, "note": "not applicable: no mask"}
    asked = {
        "blank": score(1.0),
        "erase": nothing,
        "noise": {"same_findings": score(0.8)},
        "image_dependence": score(0.5),
    }
    page = render_page({"faithfulness": {"report": asked}})
    assert "empty ones, after which what it says must change; and a little noise, after which it should stay." in page
    alone = render_page({"faithfulness": {"retrieval": {"image_dependence": score(0.5)}}})
    assert "shown changed volumes" not in alone
    assert "another patient&#39;s volume, its control" in alone.replace("patient's", "patient&#39;s")


def test_loss_chart():
    chart = loss_chart(HISTORY)
    assert [curve["name"] for curve in chart["curves"]] == ["train loss", "val loss"]
    assert chart["curves"][0]["points"].startswith("0.0,0.0")  # the highest loss at the first step, top left
    assert chart["curves"][1]["points"].count(",") == 5
    assert loss_chart([]) is None
    assert loss_chart([{"step": 1, "loss": "nan"}]) is None
    assert loss_chart([{"loss": 0.0}, {"loss": 0.0}])["curves"][0]["last"] == 0


def test_each_loss_has_its_own_panel_and_a_long_fall_a_logarithmic_scale():
    rows = [
        {"step": step, "train/report_loss": 6 / (1 + step), "val/report_loss": 3.0, "train/maps_loss": 0.2}
        for step in range(60)
    ]
    charts = loss_charts(rows)
    assert [chart["title"] for chart in charts] == ["report loss", "maps loss"]
    assert [curve["name"] for curve in charts[0]["curves"]] == ["train report loss", "val report loss"]
    assert (charts[0]["log"], charts[1]["log"]) == (True, False)
    assert [text for _, text in charts[0]["y"]] == ["0.1", "0.3", "1", "3", "10"]
    # Halfway down the decades from 10 to 0.1 lies 1.
    assert charts[0]["y"][2][0] == pytest.approx(50)


@pytest.mark.parametrize(("low", "high"), [(0, 598), (0, 0.0031), (10, 11), (-2, 3), (0, 1e6)])
def test_ticks_are_round_and_few(low, high):
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    outer = nice_ticks(low, high, beyond=True)
    assert outer[0] <= low
    assert outer[-1] >= high - 1e-9
    steps = np.diff(ticks)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-6


def test_one_name_with_two_definitions_is_told_by_task():
    blocks = {name: {"brier": score(0.1), "definitions": {"brier": f"of {name}"}} for name in ("codes", "outcomes")}
    leakage = {"reports_seen_in_training": ["a"], "test_reports": 9, "clean": True}
    html = render_page({"tasks": blocks, "leakage": leakage})
    assert "<dt>Brier</dt><dd>of codes</dd><dt>Brier (Outcomes)</dt><dd>of outcomes</dd>" in html
    assert "<dd>1 of 9 (a)</dd>" in html
    assert "Clean" not in html


def test_numbers_and_names_as_shown():
    assert [format_p(p) for p in (0.0004, 0.0123, 1.0)] == ["< 0.001", "0.012", "1.000"]
    assert [format_score(v) for v in (0.755, None, float("nan"), 1234.5)] == ["0.76", "–", "–", "1,234"]
    names = ("finding_f1", "recall@1", "m3d_soft_dice", "bleu_2", "macro_auroc", "subgroup_gap")
    assert [title_of(name) for name in names] == [
        "Finding F1", "R@1", "Soft Dice, M3D", "BLEU-2", "Macro AUROC", "Subgroup gap",
    ]  # fmt: skip


def test_bars_of_one_list_are_of_one_score():
    """An outcome that nobody had has a Brier score and no C-index: it has no bar among the C-indices."""
    none, some = {"value": None, "low": None, "high": None}, {"value": 0.7, "low": 0.6, "high": 0.8}
    outcomes = {"stroke": {"c_index": none, "brier@365": some}, "death": {"c_index": some, "brier@365": some}}
    [bars] = table_of("outcomes", {"c_index": some, "per_outcome": outcomes})["bars"]
    assert (bars["metric"], [row["title"] for row in bars["rows"]]) == ("C-index", ["death"])


def test_an_open_answer_is_no_report():
    """One name, two scores: all of a report's findings, and the words of an answer."""
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    block = {"exact_match": score, "per_kind": {"place": {"exact_match": score}}}
    table = table_of("vqa_open", block)
    assert (table["rows"][0]["title"], table["bars"][0]["metric"]) == ("Exact match", "Exact match")
    assert table_of("report", {"exact_match": score})["rows"][0]["title"] == "All findings right"
    both = {"report": {"exact_match": score}, "vqa_open": block | {"definitions": {"exact_match": "the same words"}}}
    assert "<dt>Exact match</dt><dd>the same words</dd>" in render_page({"tasks": both})
    view = task_view("vqa_open", {"exact_match": score, "wins": 1, "ties": 0, "losses": 0, "counted": "questions"})
    assert view["rows"][0]["title"] == "Exact match"
