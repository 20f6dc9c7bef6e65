"""The page as text: what is on it, and that data stays text."""

import re

from eval.metrics.estimate import Estimate
from eval.report.excerpt import Part
from eval.report.gallery import Card, Response
from eval.report.labels import name_runs
from eval.report.page import NamedResult, render_page
from eval.report.pictures import Picture, Thumbnail
from eval.report.published import ComparedRow, Comparison, Percent
from tests.eval.report.results import make_result


def render(results, **options):
    return render_page(results, name_runs(results), **options)


def test_page_is_self_contained_and_escaped():
    page = render([make_result(), make_result("default", None, 0.25)], title="A <b> & c")
    assert "A &lt;b&gt; &amp; c" in page
    assert "<data>" not in page
    assert page.count("<svg") == 3
    for loader in ('src="http', 'href="http', "url(http", "<script", "<link", "@import"):
        assert loader not in page


def test_settings_are_facts_that_a_person_can_read():
    settings = {"benchmark": {"prompt": "{q}?", "columns": {"image": ["p", "q"], "id": None}}, "temperature": 1 / 3}
    result = make_result(settings=settings)
    result.content["judge"] = {"model": "m", "again": {"kappa": {"score": 0.912345, "interval": [0.8, 1.0]}}}
    result.info.update({"benchmark": "my.yaml", "benchmark_content": '{"prompt": "{q}?"}'})
    facts = NamedResult("run", result).facts
    expected = {
        **{"benchmark": "my.yaml", "benchmark: prompt": "{q}?", "benchmark: columns: image": "p, q"},
        **{"judge: model": "m", "judge: again: kappa: score": "0.9123", "judge: again: kappa: interval": "0.8, 1.0"},
        "temperature": "0.3333",
    }
    assert expected.items() <= facts.items()
    assert not any("{" in value for name, value in facts.items() if name != "benchmark: prompt")
    assert not {"benchmark_content", "benchmark: columns: id"} & {*facts}


def test_strides_of_one_checkpoint_are_drawn_in_one_plot():
    plain = make_result("default", None, 0.25)
    strides = [make_result(stride=stride) for stride in (1 / 16, 64)]
    page = render([plain, *strides], title="t")
    assert page.count("by stride") == 1
    assert ">1/16</text>" in page
    assert "by stride" not in render([plain, strides[0]], title="t")
    other = make_result(stride=256, checkpoint="def")
    assert "by stride" not in render([strides[0], other], title="t")


def test_text_of_data_and_models_stays_text():
    evil = '<script>alert("x")</script>"\'><img src=x onerror=alert(1)>'
    response = Response(evil, evil, 0.0, evil, evil)
    pictures = (Picture(evil, None), Picture(evil, Thumbnail(evil, 1, 1), is_needed=True))
    card = Card(evil, [Part(evil), Part(evil, True)], evil, {evil: evil}, evil, evil, (response,), pictures)
    result = make_result(task=f"g/{evil}", checkpoint=evil, settings={evil: evil}, version=evil)
    row = ComparedRow(evil, evil, {evil: Percent(1.0, (0.0, 2.0))}, evil, evil, True)
    table = Comparison(evil, (evil,), (row,), (evil,))
    page = render(
        [result],
        title=evil,
        comparisons=[table],
        averages={evil: {evil: Estimate(1.0, 0.1, 9)}},
        cards={result.task: [card] * 20},
    )
    assert page.count("<script>") == 1
    assert page.count('<script type="application/json">') == 1
    assert page.count("</script>") == 2
    assert "<img src=x" not in page
    assert not re.search(r"<[^>]*onerror[^>]*=", re.sub(r'"[^"]*"', "", page))
    assert "script-src 'sha256-" in page


def test_tables_without_an_own_row_are_left_out():
    table = Comparison("Published", ("X",), (ComparedRow("a", "", {"X": Percent(1.0)}),))
    assert "Published" not in render([make_result()], title="t", comparisons=[table])


def test_the_page_shows_the_baselines():
    floors = {
        "count": 60,
        "empty": 0.125,
        "letters": {"B": 0.375},
        "letter": {"response": "B", "score": 0.375},
        "majority": {"response": "a very long gold answer", "score": 0.625},
    }
    page = render([make_result(floors=floors)], title="t")
    assert "0.625\n<small>[0.498, 0.736] a very long gol…</small>" in page
    assert "<dt>constant answer B</dt><dd>0.375</dd>" in page
    assert "<dt>constant answer (nothing)</dt><dd>0.125</dd>" in page


def test_a_perfect_score_has_an_interval_too():
    page = render([make_result(accuracy=1.0)], title="t")
    assert "<b>1.000</b> <small>[0.839, 1.000], n 20</small>" in page
    assert "±0.000" not in page
