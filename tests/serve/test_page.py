"""The chat page in a real headless Chromium, against a server that answers as the test says."""

import re
import threading
from collections.abc import Iterator

import pytest

from tests.serve.browser import ask, attach, expect, last_position, open_browser, open_page, picture, set_slider
from tests.serve.scripted_server import Reply, ScriptedServer


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def page(browser, server) -> Iterator:
    with open_page(browser, server.url) as page:
        yield page


def media(question: dict) -> list[str]:
    parts = [part for message in question["messages"] if message["role"] == "user" for part in message["content"]]
    return [part["type"] for part in parts if part["type"] != "text"]


def test_a_picture_is_asked_about_and_the_answer_streams(page, server):
    reply = Reply(go_on=threading.Event())
    server.replies.append(reply)
    attach(page, picture())
    expect(page.locator("#attachments img")).to_have_attribute("alt", "square.png")
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()

    answer = page.locator(".answer .text")
    expect(answer).to_have_text("A")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    reply.go_on.set()
    expect(answer).to_have_text("A red square.")

    figures = page.locator(".answer dl")
    expect(figures).to_contain_text(re.compile(r"Prompt\s*542 tokens\s*Answer\s*3 tokens\s*Tiles\s*2"))
    expect(figures).to_contain_text(re.compile(r"Last position\s*157\s*Time\s*0.41 s"))
    expect(page.locator(".answer h3")).to_have_text("v2pe_fix, stride 64")
    sent = server.questions[0]
    assert sent["model"] == "Scripted-2B"
    assert sent["stream"] is True
    assert sent["max_tiles"] == 12
    assert sent["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert sent["messages"][0]["content"][1] == {"type": "text", "text": "What is this?"}


def test_follow_up_turns_carry_earlier_pictures_and_answers(page, server):
    ask(page, "What is this?", picture())
    ask(page, "And this?", picture("other.png"))
    ask(page, "Which came first?")
    roles = [message["role"] for message in server.questions[-1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert media(server.questions[-1]) == ["image_url", "image_url"]
    assert server.questions[-1]["messages"][1]["content"] == "A red square."


def test_the_slider_moves_the_last_position(page, server):
    positions = []
    for step in (0, 4, 8):
        set_slider(page, "#first-choice", step)
        ask(page, "What is this?", picture())
        positions.append(float(last_position(page)))
        page.get_by_role("button", name="New chat").click()
    assert [question["rope_pos_id_stride"] for question in server.questions] == [1, 16, 256]
    assert positions == [9 + 2 + 1 + 19, 9 + 32 + 1 + 19, 9 + 512 + 1 + 19]


def test_a_typed_stride_is_sent_and_moves_the_slider(page, server):
    page.get_by_label("Typed").first.fill("0.5")
    expect(page.locator("#first-choice output")).to_contain_text("advances 1/512")
    assert page.locator("#first-choice input[type=range]").input_value() == "0"
    ask(page, "What is this?", picture())
    assert server.questions[0]["rope_pos_id_stride"] == 0.5


def test_an_impossible_stride_is_not_sent_and_is_pointed_at(page, server):
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_label("Typed").first.fill("-4")
    page.locator("summary").click()  # closes the settings
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Typed").first).to_be_focused()
    assert server.questions == []
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is this?")


def test_default_positions_take_no_stride(page, server):
    page.get_by_label("Version").first.select_option("default")
    expect(page.get_by_label("Typed").first).to_be_disabled()
    ask(page, "What is this?", picture())
    assert server.questions[0]["rope_pos_id_version"] == "default"
    assert server.questions[0]["rope_pos_id_stride"] is None
    assert last_position(page) == "541"


def test_two_strides_are_compared_side_by_side_on_one_scale(page, server):
    page.get_by_label("Compare two strides").check()
    set_slider(page, "#first-choice", 4)
    set_slider(page, "#second-choice", 8)
    ask(page, "What is this?", picture())
    assert sorted(question["rope_pos_id_stride"] for question in server.questions) == [16, 256]
    assert [last_position(page, 0), last_position(page, 1)] == ["61", "541"]
    left, right = (page.locator(".answer").nth(column).bounding_box() for column in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    tokens, positions = ([ruler_width(page, column, row) for column in (0, 1)] for row in (0, 1))
    assert tokens[0] == pytest.approx(tokens[1], abs=1)
    assert positions[1] == pytest.approx(tokens[1], abs=1)
    assert positions[0] == pytest.approx(tokens[0] * 62 / 542, abs=5)  # strokes have width


def ruler_width(page, answer: int, row: int) -> float:
    return page.locator(f".answer:nth-child({answer + 1}) .ruler").nth(row).bounding_box()["width"]


def test_each_compared_answer_continues_with_its_own_history(page, server):
    page.get_by_label("Compare two strides").check()
    ask(page, "First?", picture())
    first = {question["rope_pos_id_stride"] for question in server.questions}
    assert first == {64, 256}
    answers = page.locator(".answer .text").all_inner_texts()
    server.questions.clear()
    server.replies.extend([Reply(words=("one",)), Reply(words=("two",))])
    ask(page, "Second?")
    by_stride = {question["rope_pos_id_stride"]: question["messages"][1]["content"] for question in server.questions}
    assert by_stride == {64: answers[0], 256: answers[1]}
    server.questions.clear()
    second = page.locator(".answer .text").all_inner_texts()[2:]
    ask(page, "Third?")
    by_stride = {question["rope_pos_id_stride"]: question["messages"][3]["content"] for question in server.questions}
    assert sorted(second) == ["one", "two"]
    assert by_stride == {64: second[0], 256: second[1]}


def test_the_strip_shows_and_tells_how_far_tokens_advance(page):
    set_slider(page, "#first-choice", 4)
    ask(page, "What are these?", picture(), picture("other.png"))
    legend = page.locator(".legend li").all_inner_texts()
    assert legend == [
        "Text: 50 tokens × 1 = 50 positions",
        "Picture 1: 512 tokens × 1/16 = 32 positions",
        "Picture 2: 512 tokens × 1/16 = 32 positions",
    ]
    expect(page.locator("figcaption")).to_have_text("1,074 tokens on 114 positions (one line for 20 tokens)")
    titles = page.locator(".band title").all_text_contents()
    assert titles[1] == "Picture 1: 512 tokens × 1/16 = 32 positions: 10 to 42"
    colours = {page.locator(".band").nth(band).get_attribute("class") for band in (1, 3)}
    assert len(colours) == 2


def test_many_pictures_share_a_row_of_the_legend(page):
    ask(page, "What are these?", *(picture(f"{number}.png") for number in range(9)))
    rows = page.locator(".legend li").all_inner_texts()
    assert len(rows) == 2
    assert rows[1].startswith("9 pictures or frames: 4,608 tokens × 1/4 = 1,152 positions")


@pytest.mark.parametrize("status", [400, 413, 429])
def test_a_refused_question_comes_back_with_its_pictures(page, server, status):
    server.replies.append(Reply(status=status, message="not now"))
    ask(page, "What is <b>this</b>?", picture())
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(f"not now ({status})")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is <b>this</b>?")
    expect(page.locator("#attachments img")).to_have_count(1)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .text")).to_have_text("A red square.")
    expect(alert).to_be_empty()
    assert media(server.questions[-1]) == ["image_url"]


def test_a_server_that_is_away_is_told_and_the_question_stays(page, server):
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    ask(page, "What is this?", picture())
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is this?")
    expect(page.locator("#attachments img")).to_have_count(1)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(break_off="out of memory"), "out of memory"),
        (Reply(is_cut=True), "The connection broke before the answer ended."),
    ],
)
def test_an_answer_that_breaks_off_keeps_its_words_and_can_be_tried_again(page, server, reply, problem):
    server.replies.append(reply)
    ask(page, "What is this?", picture())
    expect(page.locator(".answer .text")).to_have_text("A red square.")
    expect(page.locator(".answer .note")).to_have_text(problem)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .note")).to_be_hidden()
    expect(page.locator(".answer .text")).to_have_text("A red square.")
    assert server.questions[0] == server.questions[1]


def test_words_of_a_proxy_are_not_shown(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=413, body="<html><h1>413</h1></html>"))
    ask(page, "What is this?", picture())
    expect(page.get_by_role("alert")).to_have_text("the question is too large; remove a picture (413)")


def test_one_of_two_compared_answers_may_fail_alone(page, server):
    server.replies.extend([Reply(status=429, message="queue is full"), Reply()])
    page.get_by_label("Compare two strides").check()
    ask(page, "What is this?")
    expect(page.locator(".answer .note:visible")).to_have_count(1)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer figure:visible")).to_have_count(2)


def test_stop_keeps_what_came_and_leaves_the_server(page, server):
    server.replies.append(Reply(go_on=threading.Event()))
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .text")).to_have_text("A")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    assert server.clients_that_left.wait(5)
    ask(page, "And now?")
    assert server.questions[-1]["messages"][1] == {"role": "assistant", "content": "A "}


def test_the_words_of_model_and_person_are_never_html(page, server):
    evil = '<img src=x onerror="document.title=1"><script>document.title = 2</script>'
    server.replies.append(Reply(words=(evil[:9], evil[9:])))
    ask(page, evil, picture(f"{evil.replace('/', '')}.png"))
    expect(page.locator(".answer .text")).to_have_text(evil)
    expect(page.locator("article h2")).to_have_text(evil)
    assert page.title() == "V2PE chat"


def test_files_are_dropped_pasted_and_removed(page, server):
    for kind, target in (("drop", "document.body"), ("paste", "document.getElementById('question')")):
        page.evaluate(
            """([kind, bytes, target]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], kind + ".png", { type: "image/png" }));
                const options = { bubbles: true, cancelable: true };
                eval(target).dispatchEvent(kind === "drop"
                    ? new DragEvent("drop", { ...options, dataTransfer: data })
                    : new ClipboardEvent("paste", { ...options, clipboardData: data }));
            }""",
            [kind, list(picture()["buffer"]), target],
        )
    expect(page.locator("#attachments img")).to_have_count(2)
    page.get_by_role("button", name="Remove drop.png").click()
    ask(page, "What is this?")
    assert media(server.questions[0]) == ["image_url"]


def test_a_video_is_sent_as_video_and_other_files_are_refused(page, server):
    attach(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is neither a picture nor a video")
    ask(page, "What happens?", {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": b"\0" * 64})
    assert media(server.questions[0]) == ["video_url"]
    assert server.questions[0]["messages"][0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")


def test_new_chat_forgets_the_conversation(page, server):
    ask(page, "What is this?", picture())
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    ask(page, "And?")
    assert len(server.questions[-1]["messages"]) == 1


def test_the_api_key_is_asked_for_once(page, server):
    server.key = "secret"
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("A red square.")
    page.reload()
    expect(page.locator("#model")).to_have_text("Scripted-2B")
    ask(page, "Again?")
    assert len(server.questions) == 2


def test_a_key_that_is_not_given_gives_the_question_back(page, server):
    server.key = "secret"
    page.get_by_label("Question", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("the API key is wrong or missing")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is this?")


def test_enter_sends_and_shift_enter_breaks_the_line(page, server):
    page.get_by_label("Question", exact=True).press_sequentially("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("A red square.")
    assert server.questions[0]["messages"][0]["content"] == [{"type": "text", "text": "one\ntwo"}]
    expect(page.get_by_label("Question", exact=True)).to_be_focused()


@pytest.mark.parametrize("width", [390, 2560])
def test_the_page_fits_narrow_and_wide_screens(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_label("Compare two strides").check() if width > 900 else page.locator("summary").click()
    ask(page, "Averyveryverylongwordthatcannotbebrokenanywhereatallandgoesonandon" * 3, picture())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for strip in page.locator(".strip svg").all():
        box = strip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_in_both_colour_schemes(page, server, scheme):
    page.emulate_media(color_scheme=scheme)
    server.replies.append(Reply(break_off="out of memory"))
    ask(page, "What is this?", picture())
    ask(page, "And now?")
    assert page.evaluate(CONTRASTS_BELOW, 4.5) == []


CONTRASTS_BELOW = """(least) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (colour) => rgba(colour).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const background = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const { backgroundColor } = getComputedStyle(e);
            if (rgba(backgroundColor)[3]) return backgroundColor;
        }
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!words || !element.checkVisibility() || element.matches(":disabled, title")) continue;
        const style = getComputedStyle(element);
        const pair = [light(element.closest("svg") ? style.fill : style.color), light(background(element))].sort();
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (contrast < least) found.push(`${element.outerHTML.slice(0, 60)}: ${contrast.toFixed(2)}`);
    }
    return found;
}"""


def test_every_control_has_a_name(page):
    page.get_by_label("Compare two strides").check()
    attach(page, picture())
    expect(page.locator("#attachments img")).to_have_count(1)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")]
            .filter((e) => !(e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_events_are_read_whatever_the_pieces_they_come_in(page, size):
    stream = ": note\r\n\r\ndata: á\ndata:b\n\nevent: x\ndata: [DONE]\r\rdata: end".encode()
    events = page.evaluate(
        """async ([bytes, size]) => {
            const { readEvents } = await import("/page/sse.js");
            const body = new ReadableStream({ start(controller) {
                for (let i = 0; i < bytes.length; i += size) {
                    controller.enqueue(new Uint8Array(bytes.slice(i, i + size)));
                }
                controller.close();
            } });
            const events = [];
            for await (const data of readEvents(body)) events.push(data);
            return events;
        }""",
        [list(stream), size],
    )
    assert events == ["á\nb", "[DONE]", "end"]
