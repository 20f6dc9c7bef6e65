"""Our scorers against outputs of the published ones, file by file.

GOLDEN_DIR points these tests at another folder of files with the same names and fields. A case fails here unless the
number agrees; where we differ on purpose, the test says why.
"""

import json
import os
from pathlib import Path

import pytest

from eval.metrics import (
    anls,
    choice,
    documents,
    dude,
    due,
    exact,
    longvideobench,
    longvqa,
    lvbench,
    milebench,
    mlvu,
    mm_niah,
    mmbench,
    mmlongbench,
    mmmu,
    mvbench,
    pope,
    relaxed,
    seed,
    slidevqa,
    videomme,
    videomme_v2,
    vnbench,
    vqa,
    wtq,
)
from eval.metrics.lexicon import load_lexicon
from eval.metrics.text import contains_word, normalise_m4c
from eval.tasks import longvideobench as longvideobench_task
from eval.tasks import videomme_v2 as videomme_v2_task
from internvl.data.video import VideoInfo, sample_segments

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent))
LEXICON = load_lexicon()


def load(name):
    path = GOLDEN_DIR / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    return json.loads(path.read_text(encoding="utf-8"))


def each(name):
    """One test per case of a file; none, which is reported as skipped, without the file."""
    cases = load(name)["cases"] if (GOLDEN_DIR / f"{name}.json").is_file() else []
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases])


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def is_error(expected):
    """Whether the published scorer ended with an error."""
    return expected is None or (isinstance(expected, dict) and "raises" in expected)


def test_every_file_is_used():
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.name for path in GOLDEN_DIR.glob("*.json") if f'"{path.stem}"' not in source] == []


def test_all_files_are_here():
    assert len(list(Path(__file__).parent.glob("*.json"))) == 53


# One picture, short answers -----------------------------------------------------------------------------------------


@each("chartqa_relaxed")
def test_relaxed_accuracy(case):
    for protocol, field in (("official", "expected"), ("upstream", "upstream_v2pe")):
        assert relaxed.score(case["references"], case["prediction"], protocol=protocol) == case[field], protocol


def test_mean_relaxed_accuracy():
    golden = load("chartqa_relaxed")
    for protocol, field in (("official", "mean_expected"), ("upstream", "mean_upstream_v2pe")):
        scores = (relaxed.score(case["references"], case["prediction"], protocol=protocol) for case in golden["cases"])
        assert mean(scores) == pytest.approx(golden["aggregate"][field]), protocol


@each("anls_doc_info")
def test_anls(case):
    assert anls.score(case["references"], case["prediction"]) == pytest.approx(case["expected"])


def test_mean_anls():
    golden = load("anls_doc_info")
    scores = (anls.score(case["references"], case["prediction"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"]["score"])


@each("textvqa_vqascore")
def test_m4c_accuracy(case):
    assert normalise_m4c(case["prediction"]) == case["normalized"]
    assert vqa.score_m4c(case["references"], case["prediction"]) == pytest.approx(case["expected"])
    assert vqa.score_vqa(case["references"], case["prediction"]) == pytest.approx(case["official_vqa"])


@each("vqav2_official")
def test_vqa_accuracy(case):
    assert vqa.score(case["references"], case["prediction"], protocol="official") == pytest.approx(case["expected"])
    assert vqa.score(case["references"], case["prediction"], protocol="upstream") == pytest.approx(case["m4c"])


@pytest.mark.parametrize(
    ("name", "m4c", "official"),
    [("textvqa_vqascore", "mean_expected", "mean_official_vqa"), ("vqav2_official", "mean_m4c", "mean_expected")],
)
def test_mean_vqa_accuracies(name, m4c, official):
    golden = load(name)
    for score, field in ((vqa.score_m4c, m4c), (vqa.score_vqa, official)):
        scores = (score(case["references"], case["prediction"]) for case in golden["cases"])
        assert mean(scores) == pytest.approx(golden["aggregate"][field])


@each("exact_match")
def test_exact_match(case):
    assert exact.score(case["references"], case["prediction"]) == case["expected"]


@each("gqa")
def test_gqa(case):
    assert exact.normalise_gqa(case["prediction"]) == case["normalized"]
    assert exact.score_gqa(case["references"], case["prediction"]) == case["expected"]


@pytest.mark.parametrize(
    ("name", "score", "field"), [("exact_match", exact.score, "mean"), ("gqa", exact.score_gqa, "accuracy")]
)
def test_mean_exact_matches(name, score, field):
    golden = load(name)
    scores = (score(case["references"], case["prediction"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"][field])


# Multiple choice ----------------------------------------------------------------------------------------------------


@each("mcq_letter")
def test_letters(case):
    letter = choice.cut_letter(case["prediction"], case["options"])
    score = choice.score(case["answer"], case["prediction"], options=case["options"], protocol="upstream")
    if is_error(case["expected_extracted"]):
        # On purpose: the published script ends on an empty response; here it is wrong, and the run goes on.
        assert score == 0
    else:
        assert letter == case["expected_extracted"]
        assert score == case["expected"]
    assert (choice.find_letter(case["prediction"], case["options"]) or False) == case["vlmevalkit_can_infer"]


def test_mean_letter_accuracies():
    golden = load("mcq_letter")
    cases, aggregate = golden["cases"], golden["aggregate"]
    valid = [case for case in cases if not is_error(case["expected_extracted"])]
    assert len(valid) == aggregate["n"]
    scores = (choice.score(c["answer"], c["prediction"], options=c["options"], protocol="upstream") for c in valid)
    assert mean(scores) == pytest.approx(aggregate["acc_over_non_raising"])
    scores = (choice.score(c["answer"], c["prediction"], options=c["options"], protocol="official") for c in cases)
    assert mean(scores) == pytest.approx(aggregate["acc_vlmevalkit_exact_matching"])


def score_passes(case):
    return [
        choice.score(row["answer"], row["prediction"], options=row["options"], protocol="official")
        for row in case["passes"]
    ]


@each("mmbench_circular")
def test_circular_questions(case):
    for row in case["passes"]:
        assert (choice.find_letter(row["prediction"], row["options"]) or False) == row["extracted"]
    rows = [(7 + number * mmbench.INDEX_STEP, score) for number, score in enumerate(score_passes(case))]
    assert mmbench.merge_passes(rows) == {7: case["expected"]}


def test_circular_accuracy():
    golden = load("mmbench_circular")
    rows = [
        (question + number * mmbench.INDEX_STEP, score, {})
        for question, case in enumerate(golden["cases"])
        for number, score in enumerate(score_passes(case))
    ]
    summary = mmbench.summarise(rows)
    assert summary["accuracy"] == pytest.approx(golden["aggregate"]["circular_acc"])
    assert summary["vanilla_accuracy"] == pytest.approx(golden["aggregate"]["vanilla_acc_all_passes"])


@each("mmmu_mc")
def test_mmmu_options(case):
    letter = mmmu.find_option(case["prediction"], case["options"])
    # On purpose: where the official script draws an option at random, there is none here (so the answer is wrong).
    assert letter == (None if case["expected_extracted"] == "RANDOM" else case["expected_extracted"])
    if is_error(case["upstream_post_process"]):
        assert choice.cut_letter(case["prediction"], case["options"]) == ""  # see test_letters
    else:
        assert choice.cut_letter(case["prediction"], case["options"]) == case["upstream_post_process"]


@each("mmmu_open")
def test_mmmu_open_answers(case):
    parsed = mmmu.parse_open(case["prediction"])
    assert sorted(map(str, parsed)) == sorted(map(str, case["expected_parsed"]))
    assert mmmu.score_open(case["references"], case["prediction"]) == case["expected"]


def test_mean_mmmu_open_accuracy():
    golden = load("mmmu_open")
    scores = (mmmu.score_open(case["references"], case["prediction"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"]["acc"])


def test_mmmu_table():
    golden = load("mmmu_aggregate")
    rows = [
        (
            case["data_id"],
            float(case["parsed"] == case["answer"])
            if case["question_type"] == "multiple-choice"
            else mmmu.score_open(case["answer"], case["parsed"]),
        )
        for case in golden["cases"]
    ]
    assert mmmu.summarise(rows) == golden["aggregate"]


@each("seed_image")
def test_seed(case):
    upstream = seed.score(case["answer"], case["prediction"], protocol="upstream")
    if is_error(case["expected_letter"]):
        assert upstream == 0  # on purpose: upstream's script ends on an empty response
    else:
        assert seed.find_letter(case["prediction"], protocol="upstream") == case["expected_letter"]
        assert upstream == case["expected"]
    assert seed.score(case["answer"], case["prediction"], protocol="official") == case["lmms_eval"]


def test_seed_table():
    golden = load("seed_image")
    cases = [case for case in golden["cases"] if not is_error(case["expected_letter"])]
    rows = [(c["question_type_id"], seed.score(c["answer"], c["prediction"], protocol="upstream")) for c in cases]
    summary = seed.summarise(rows)
    named = {f"Data type T{kind}": entry for kind, entry in summary["by_type"].items()} | {
        f"{name} accuracy": summary[name.lower()] for name in ("Total", "Image", "Video")
    }
    printed = dict(line.split(": ") for line in golden["aggregate"]["upstream_stdout"] if line.endswith("%"))
    assert {name: f"{100 * entry['score']:.2f}%" for name, entry in named.items() if entry is not None} == printed


@each("pope")
def test_pope_answers(case):
    assert pope.parse_yes_no(case["prediction"]) == case["expected_parsed"]
    assert pope.score(case["label"], case["prediction"]) == case["expected"]


def test_pope_metrics():
    golden = load("pope")
    rows = [(case["label"], pope.score(case["label"], case["prediction"])) for case in golden["cases"]]
    assert pope.summarise_category(rows) == pytest.approx(golden["aggregate"])


# Many pictures ------------------------------------------------------------------------------------------------------


@each("mm_niah_is_correct")
def test_mm_niah_answers(case):
    for protocol, field in (("official", "expected"), ("upstream", "v2pe")):
        score = mm_niah.is_correct(case["answer"], case["response"], protocol=protocol)
        assert score == pytest.approx(case[field]), protocol


@pytest.mark.parametrize(("protocol", "field"), [("official", "mean_expected"), ("upstream", "mean_v2pe")])
def test_mean_mm_niah_accuracy(protocol, field):
    golden = load("mm_niah_is_correct")
    scores = (mm_niah.is_correct(case["answer"], case["response"], protocol=protocol) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"][field])


def summarise_needles(cases, protocol):
    rows = [
        (c["context_length"], c["placed_depth"], mm_niah.is_correct(c["answer"], c["response"], protocol=protocol))
        for c in cases
    ]
    return mm_niah.summarise_grid(mm_niah.build_grid(rows))


def test_mm_niah_scores_by_length():
    golden = load("mm_niah_aggregate")
    expected = dict(golden["aggregate"]["official_scores_json"])
    summary = summarise_needles(golden["cases"], "official")
    assert summary["context_ranges"] == expected.pop("context_ranges")
    for task, scores in expected.items():
        assert summary["scores"] == pytest.approx(scores, abs=1e-9), task


def test_mm_niah_weighted_numbers():
    golden = load("mm_niah_aggregate")
    expected = golden["aggregate"]["v2pe_scores_json"]
    summary = summarise_needles(golden["cases"], "upstream")
    for key in ("average", "weighted_acc", "sample_number_array", "weighted_avg_acc"):
        assert summary[key] == pytest.approx(expected[key]), key


@each("milebench_rouge")
def test_milebench_rouge(case):
    assert milebench.score(case["gt"], case["prediction"], rule="rouge") == pytest.approx(case["expected"])


@each("milebench_needle")
def test_milebench_needles(case):
    assert milebench.score(case["gt"], case["prediction"], rule="needle") == case["expected_needle"]
    assert milebench.score(case["gt"], case["prediction"], rule="contains") == case["expected_mmcoqa"]


@each("milebench_multichoice")
def test_milebench_options(case):
    # Not changed on purpose: the empty response is option C by the official rule; the robust score stands beside it.
    texts = [milebench.process(text) for text in case["choice_list"]]
    assert milebench.match_option(milebench.process(case["prediction"]), texts) == case["expected_extracted"]
    score = milebench.score(case["gt"], case["prediction"], rule="choice", choices=case["choice_list"])
    assert score == case["expected"]
    assert milebench.find_level(case["num_images"]) == case["level"]


@pytest.mark.parametrize(
    ("name", "rule", "read", "field"),
    [
        ("milebench_rouge", "rouge", lambda aggregate: aggregate, "Rouge-L f"),
        ("milebench_needle", "needle", lambda aggregate: aggregate["needle"], "Accuracy"),
        ("milebench_needle", "contains", lambda aggregate: aggregate["mmcoqa"], "Accuracy"),
        ("milebench_multichoice", "choice", lambda aggregate: aggregate, "Accuracy"),
    ],
)
def test_milebench_levels(name, rule, read, field):
    golden = load(name)
    expected = read(golden["aggregate"])
    rows = [
        (
            milebench.find_level(c["num_images"]),
            milebench.score(c["gt"], c["prediction"], rule=rule, choices=c.get("choice_list", ())),
        )
        for c in golden["cases"]
    ]
    assert mean(score for _, score in rows) == pytest.approx(expected[field])
    for level, (total, count) in expected["image_quantity_level-Result"].items():
        scores = [score for name, score in rows if name == level]
        assert (sum(scores), len(scores)) == (pytest.approx(total), count)
        share = mean(scores) if scores else 0.0
        assert share == pytest.approx(expected["image_quantity_level-Accuracy"][level])


@each("milebench_combine")
def test_milebench_canvases(case):
    canvases = milebench.plan_canvases(case["num_images"], max_images=case["max_img_num"])
    assert [count for count, _ in canvases] == case["expected_groups"]
    assert [list(size) for _, size in canvases[:3]] == case["expected_canvas_sizes_first3"]


# Long-VQA and the scorers that it borrows ---------------------------------------------------------------------------


@each("longvqa_rectify")
def test_longvqa_rewriting(case):
    assert longvqa.rectify(case["input"], task=case["task"], lexicon=LEXICON) == case["expected"]


def score_longvqa(case):
    return longvqa.score(case["answer"], case["prediction"], task=case["task"], protocol="upstream", lexicon=LEXICON)


@each("longvqa_scores")
def test_longvqa_scores(case):
    assert longvqa.find_metric(case["task"]) == case["metric"]
    for text in ("prediction", "answer"):
        assert longvqa.rectify(case[text], task=case["task"], lexicon=LEXICON) == case[f"rectified_{text}"]
    if is_error(case["expected"]):
        # On purpose: the published script ends on it (two empty texts under ANLS); here it is wrong.
        assert score_longvqa(case) == 0
    else:
        assert 100 * score_longvqa(case) == pytest.approx(case["expected"])


def test_longvqa_means():
    golden = load("longvqa_scores")
    for task, expected in golden["aggregate"].items():
        cases = [case for case in golden["cases"] if case["task"] == task and not is_error(case["expected"])]
        rows = [(case["id"], case["answer"], case["prediction"]) for case in cases]
        score = longvqa.score_corpus(rows, task=task, protocol="upstream", lexicon=LEXICON)
        assert 100 * score == pytest.approx(expected), task


def score_longvqa_corpus(rows, tasks):
    """A corpus may mix sets of one metric: each text is rewritten by the rule of its own set."""
    rewritten = [
        (key, *(longvqa.rectify(text, task=task, lexicon=LEXICON) for text in texts))
        for (key, *texts), task in zip(rows, tasks, strict=True)
    ]
    return longvqa.score_corpus(rewritten, task=tasks[0], protocol="official", lexicon=LEXICON)


def test_longvqa_f1():
    golden = load("longvqa_f1")
    cases = golden["cases"]
    for case in cases:
        for text in ("prediction", "answer"):
            assert longvqa.rectify(case[text], task=case["task"], lexicon=LEXICON) == case[f"rectified_{text}"]
    rows = [(case["sid"], case["answer"], case["prediction"]) for case in cases]
    score = score_longvqa_corpus(rows, [case["task"] for case in cases])
    assert 100 * score == pytest.approx(golden["aggregate"]["F1"])


def test_longvqa_bleu():
    golden = load("longvqa_bleu4")
    rows = [(case["id"], case["answer"], case["prediction"]) for case in golden["cases"]]
    score = score_longvqa_corpus(rows, [case["task"] for case in golden["cases"]])
    assert 100 * score == pytest.approx(golden["aggregate"]["BLEU4"])


OWL_FUNCTIONS = {
    "relaxed_accuracy": longvqa.relaxed_accuracy,
    "exact_accuracy": longvqa.exact_accuracy,
    "anls_metric": longvqa.strict_anls,
    "contain_accuracy": lambda target, prediction: float(contains_word(prediction, target)),
}


@each("longvqa_owl_functions")
def test_longvqa_functions(case):
    score = OWL_FUNCTIONS[case["fn"]](case["target"], case["prediction"])
    assert score == (0 if is_error(case["expected"]) else pytest.approx(case["expected"]))  # as in test_longvqa_scores


@each("wtq_official")
def test_wtq(case):
    assert wtq.score(case["reference_values"], case["prediction_values"]) == case["expected"]


def test_mean_wtq_accuracy():
    golden = load("wtq_official")
    scores = (wtq.score(case["reference_values"], case["prediction_values"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"]["mean"])


@each("due_anls_official")
def test_due_anls(case):
    assert anls.score_due(case["references"], case["prediction"]) == pytest.approx(case["expected"])


def score_documents(documents):
    """(values by key, lists of forms by key) of every document -> corpus F1."""
    predictions, references = [], []
    for number, (prediction, reference) in enumerate(documents):
        predictions += [due.Annotation((number, key), frozenset({v})) for key, vs in prediction.items() for v in vs]
        references += [due.Annotation((number, key), frozenset(f)) for key, forms in reference.items() for f in forms]
    return due.compute_f1(predictions, references)


@each("due_f1_official")
def test_due_f1(case):
    assert score_documents([(case["prediction"], case["reference"])]) == pytest.approx(case["expected"])


def test_due_f1_of_all_documents():
    golden = load("due_f1_official")
    documents = [(case["prediction"], case["reference"]) for case in golden["cases"]]
    assert score_documents(documents) == pytest.approx(golden["aggregate"])


# Video --------------------------------------------------------------------------------------------------------------


@each("mvbench_check_ans")
def test_mvbench_answers(case):
    assert mvbench.score(case["gt"], case["prediction"], protocol="upstream") == case["v2pe"]
    official = mvbench.score(case["gt"], case["prediction"], protocol="official")
    if case["prediction"].strip():
        assert official == case["expected"]
    else:
        # On purpose: the published rule takes an empty answer for right, because the empty text is in every option.
        assert official == 0


def test_mean_mvbench_accuracy():
    golden = load("mvbench_check_ans")
    cases = [case for case in golden["cases"] if case["prediction"].strip()]
    num_empty_and_right = sum(case["expected"] for case in golden["cases"] if not case["prediction"].strip())
    total = sum(mvbench.score(case["gt"], case["prediction"], protocol="official") for case in cases)
    assert (total + num_empty_and_right) / len(golden["cases"]) == pytest.approx(golden["aggregate"]["expected"])
    upstream = (mvbench.score(case["gt"], case["prediction"], protocol="upstream") for case in golden["cases"])
    assert mean(upstream) == pytest.approx(golden["aggregate"]["v2pe"])


@each("mvbench_frame_index")
def test_mvbench_frames(case):
    first, last = mvbench.find_frame_range(
        case["bound"], fps=case["fps"], last=case["max_frame"], first=case["first_idx"]
    )
    assert sample_segments(first, last, case["num_segments"]) == case["expected_indices"]


@each("videomme_extract")
def test_videomme_letters(case):
    assert videomme.find_letter(case["prediction"]) == case["expected_extracted"]


def test_videomme_table():
    golden = load("videomme_aggregate")
    rows = [
        videomme.Answered(
            duration=case["duration"],
            domain=case["domain"],
            sub_category=case["sub_category"],
            task_type=case["task_type"],
            is_right=videomme.score(case["answer"], case["prediction"]) == 1,
            has_letter=bool(videomme.find_letter(case["prediction"])),
        )
        for case in golden["cases"]
    ]
    summary = videomme.summarise(rows)
    for title, expected in golden["aggregate"].items():
        group = summary["all" if title == "the entire dataset" else title.removeprefix("video Type: ")]
        entries = [*group["domain"].items(), *group["sub_category"].items(), *group["task_type"].items()]
        # A name that is a domain and a sub-category (Multilingual) is printed twice, the last value is kept.
        printed = {
            name: float(f"{100 * entry['official']:.1f}")
            for name, entry in [*entries, ("Overall", group["overall"])]
            if entry["official"]
        }
        assert printed == expected, title


# Long videos --------------------------------------------------------------------------------------------------------


@each("longvideobench_letter")
def test_longvideobench_letters(case):
    # On purpose: where the published rule draws an option at random, there is none here (so the answer is wrong).
    letter = "" if case["expected_extracted"] == "RANDOM" else case["expected_extracted"]
    assert longvideobench.find_letter(case["prediction"]) == letter
    assert longvideobench.score(case["answer"], case["prediction"]) == case["expected"]


def test_longvideobench_table():
    golden = load("longvideobench_letter")
    table = golden["aggregate"]["table"]
    for field in ("duration_group", "question_category"):
        for name in {case[field] for case in golden["cases"]}:
            scores = [longvideobench.score(c["answer"], c["prediction"]) for c in golden["cases"] if c[field] == name]
            assert {"num": len(scores), "acc": round(mean(scores), 5)} == table[str(name)]
    scores = (longvideobench.score(case["answer"], case["prediction"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"]["score"], abs=1e-5)


@each("longvideobench_subtitles")
def test_longvideobench_subtitles(case, tmp_path):
    file = tmp_path / "subtitles.json"
    file.write_text(json.dumps(case["subtitles"]), encoding="utf-8")
    cues = longvideobench_task.read_cues(file, offset=case["offset"], duration=case["duration"])
    assert "\n".join(longvideobench_task.interleave(case["times"], cues)) == case["expected"]


@each("longvideobench_frames")
def test_longvideobench_frames(case):
    info = VideoInfo(case["num_frames"], case["fps"], case["num_frames"] / case["fps"], 32, 32)
    frames = longvideobench_task.choose_frames(info, case["duration"], case["max_num_frames"])
    if is_error(case["expected"]) or not case["expected"]:
        # On purpose: a frame past the end is the last one, and less than a second is one frame instead of none.
        assert 1 <= len(frames) <= case["max_num_frames"]
        assert max(frames) < case["num_frames"]
    else:
        assert frames == case["expected"]


@each("mlvu_option")
def test_mlvu_options(case):
    assert mlvu.score(case["answer"], case["prediction"]) == case["expected"]
    lenient = mlvu.score_leniently(case["answer"], case["prediction"], options=case["options"])
    assert lenient == case["vlmevalkit"]


def test_mean_mlvu_accuracy():
    golden = load("mlvu_option")
    scores = (mlvu.score(case["answer"], case["prediction"]) for case in golden["cases"])
    assert mean(scores) == pytest.approx(golden["aggregate"]["mean"])


JUDGED = {"sub_scene": mlvu.SUB_SCENE, "summary": mlvu.SUMMARY}


@each("mlvu_judgement")
def test_mlvu_judgements(case):
    if is_error(case["expected"]) or case["expected"] == "nan":
        with pytest.raises(ValueError, match=r"could not convert|is not a finite number"):
            mlvu.read_judgement(case["reply"], JUDGED[case["kind"]])
    else:
        assert mlvu.read_judgement(case["reply"], JUDGED[case["kind"]]) == pytest.approx(case["expected"])


def test_mean_mlvu_judgements():
    golden = load("mlvu_judgement")
    for kind, expected in golden["aggregate"].items():
        cases = [
            case for case in golden["cases"]
            if case["kind"] == kind and case["reply"] and isinstance(case["expected"], int | float)
        ]  # fmt: skip
        assert mean(mlvu.read_judgement(c["reply"], JUDGED[kind]) for c in cases) == pytest.approx(expected), kind


@each("vnbench_try")
def test_vnbench_tries(case):
    assert vnbench.score(case["answer"], case["prediction"]) == case["expected"]


def test_vnbench_table():
    aggregate = load("vnbench_try")["aggregate"]
    rows = [(row["question_id"][:-2], row["type"], vnbench.score(row["gt"], row["pred"])) for row in aggregate["rows"]]
    summary = vnbench.summarise(rows)
    assert {kind: entry["score"] for kind, entry in summary["by_type"].items()} == pytest.approx(aggregate["by_type"])
    assert summary["score"] == pytest.approx(aggregate["overall"])


@each("lvbench_letter")
def test_lvbench_letters(case):
    assert lvbench.polish(case["prediction"]) == case["expected_extracted"]
    assert lvbench.score(case["answer"], case["prediction"]) == case["expected"]


def test_lvbench_table():
    golden = load("lvbench_letter")
    rows = [(case["question_type"], lvbench.score(case["answer"], case["prediction"])) for case in golden["cases"]]
    expected = dict(golden["aggregate"])
    assert mean(score for _, score in rows) == pytest.approx(expected.pop("acc"))
    assert {name: entry["score"] for name, entry in lvbench.summarise(rows).items()} == pytest.approx(expected)


@each("videomme_v2_letter")
def test_videomme_v2_letters(case):
    assert videomme_v2.find_letter(case["prediction"]) == case["expected_extracted"]
    assert videomme_v2.score(case["answer"], case["prediction"]) == (case["expected_extracted"] == case["answer"])


def make_group(rows):
    return videomme_v2.Group(
        tuple(map(bool, (row["score"] for row in rows))),
        rows[-1]["group_type"],
        rows[-1]["group_structure"] or "",
        *(rows[-1][name] or "" for name in ("level", "second_head", "third_head")),
    )


@each("videomme_v2_groups")
def test_videomme_v2_groups(case):
    names = dict.fromkeys(("level", "second_head", "third_head"), "")
    rows = [{**case, **names, "score": score} for score in case["scores"]]
    assert 100 * make_group(rows).score == pytest.approx(case["expected"])


def test_videomme_v2_table():
    aggregate = load("videomme_v2_groups")["aggregate"]
    videos = {}
    for row in aggregate["rows"]:
        videos.setdefault(row["video_id"], []).append(row)
    summary = videomme_v2.summarise(list(map(make_group, videos.values())))
    final = aggregate["final_rating"]

    def read(table):
        return {name: 100 * entry["score"] for name, entry in summary[table].items()}

    assert 100 * summary["score"] == pytest.approx(final["total"])
    assert read("by_level") == pytest.approx({name: final[f"level_{name}"] for name in "123"})
    types = {name: final[f"{name}_score"] for name in ("relevance", "logic")}
    assert read("by_group_type") == pytest.approx(types)
    assert 100 * summary["linear"]["score"] == pytest.approx(final["relevance_linear_score"])
    assert read("by_second_head") == pytest.approx(aggregate["second_head_rating"])
    assert read("by_third_head") == pytest.approx(aggregate["third_head_rating"])


@each("videomme_v2_subtitles")
def test_videomme_v2_subtitles(case):
    words = [videomme_v2_task.Words(**word) for word in case["words"]]
    assert videomme_v2_task.interleave(case["times"], case["end"], words) == case["expected"]


# Long documents -----------------------------------------------------------------------------------------------------

MMLONGBENCH = {
    "mmlongbench_contains": mmlongbench.score_contained,
    "mmlongbench_yes_no": mmlongbench.score_yes_no,
    "mmlongbench_counts": mmlongbench.score_counts,
    "mmlongbench_letter": mmlongbench.score_letter,
    "mmlongbench_label": mmlongbench.score_label,
    "mmlongbench_summary": mmlongbench.score_summary,
    "mmlongbench_document": mmlongbench.score_document,
}


def list_mmlongbench(name):
    """(gold answer as our rule takes it, case) of a file."""
    for case in load(name)["cases"]:
        more = {key: case[key] for key in ("default", "format") if key in case}
        yield {"text": case["answer"], **more} if more else case["answer"], case


@pytest.mark.parametrize("name", MMLONGBENCH)
def test_mmlongbench_answers(name):
    for answer, case in list_mmlongbench(name):
        said = case["prediction"]
        # On purpose: an empty answer is wrong, and so is what ends the published script with an error.
        is_wrong = not said.strip() or is_error(case["expected"])
        expected = 0 if is_wrong else pytest.approx(case["expected"])
        assert mmlongbench.score(answer, said, rule=name.removeprefix("mmlongbench_")) == expected, case["id"]


@pytest.mark.parametrize("name", MMLONGBENCH)
def test_mmlongbench_rules(name):
    for answer, case in list_mmlongbench(name):
        if not is_error(case["expected_direct"]):
            assert MMLONGBENCH[name](answer, case["prediction"]) == pytest.approx(case["expected_direct"]), case["id"]


@pytest.mark.parametrize("name", [name for name in MMLONGBENCH if name != "mmlongbench_yes_no"])
def test_mmlongbench_prefixes(name):
    golden = load(name)
    prefix = golden["notes"].removeprefix("prefix: ")
    for case in golden["cases"]:
        assert mmlongbench.parse(case["prediction"], prefix) == case["expected_parsed"], case["id"]


DOCUMENT_RULES = {"mmlongbench_doc": documents.score_mmlongbench_doc, "longdocurl": documents.score_longdocurl}


def score_published(case):
    """0 for a case on which the published code ends with an error, as its own scripts count it."""
    return 0.0 if is_error(case["expected"]) else case["expected"]


@pytest.mark.parametrize("name", DOCUMENT_RULES)
def test_document_answers(name):
    for case in load(name)["cases"]:
        score = DOCUMENT_RULES[name](case["answer"], case["prediction"], kind=case["answer_format"])
        assert score == pytest.approx(score_published(case)), case["id"]


def test_document_f1():
    golden = load("mmlongbench_doc")
    for group, (_, f1) in golden["aggregate"].items():
        cases = [case for case in golden["cases"] if group in ("all", case["answer_format"])]
        rows = [(case["answer"], case["prediction"], score_published(case)) for case in cases]
        assert documents.measure_f1(rows) == pytest.approx(f1), group


@each("dude")
def test_dude_answers(case):
    answer = {"texts": case["answers"], "is_list": "list" in case["answer_type"]}
    assert dude.score(answer, case["prediction"]) == pytest.approx(case["expected"])


@each("slidevqa")
def test_slidevqa_answers(case):
    answer = {"text": case["answer"], "question": case["question"]}
    if is_error(case["expected"]):
        # On purpose: the published script ends on a question with `how many` or `which` at its end.
        assert slidevqa.score(answer, case["answer"]) == 1
    else:
        assert slidevqa.normalise(case["prediction"], case["question"]) == case["normalized"]
        assert slidevqa.score(answer, case["prediction"]) == pytest.approx(case["expected"])
        assert slidevqa.score_exact(answer, case["prediction"]) == case["expected_em"]
