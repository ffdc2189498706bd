import base64
import html.parser
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vrl_jax.report import glossary
from vrl_jax.report.page import write_report
from vrl_jax.report.plots import wilson_interval
from vrl_jax.report.reading import phase_offsets, read_run, smooth

HOSTILE = '<script>alert("x")</script>'


def picture(width=56, height=28) -> str:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 128).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def token(text, dependency, kind=None):
    return {
        "text": text,
        "logprob": -0.1,
        "dependency": dependency,
        "entropy": 0.4,
        "kind": kind,
    }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder):
    """A run of the digits' kind with every file that a report can show."""
    folder.mkdir(exist_ok=True)
    cold = [
        {"phase": "cold_start", "step": step, "time_s": step, "sft/loss": 2 / step}
        for step in range(1, 11)
    ]
    rl = [
        {
            "phase": "rl",
            "step": step,
            "time_s": 10 + 2 * step,
            "critic/score/mean": 0.5 + step / 100,
            "reward/accuracy": 0.4 + step / 100,
            "actor/grad_norm": None if step == 3 else math.nan if step == 4 else 1.0,
            "my/own_metric": step**2,
        }
        for step in range(1, 21)
    ]
    write_lines(folder / "metrics.jsonl", cold + rl)
    write_lines(
        folder / "evaluations.jsonl",
        [
            evaluation("cold start", "cold_start", 10, 0.61),
            evaluation("halfway", "rl", 10, 0.7),
            evaluation("after RL", "rl", 20, 0.87) | {"val/reward_score": 0.9},
        ],
    )
    write_lines(
        folder / "examples.jsonl",
        [
            {
                "id": "digits/0",
                "question": "<image>What is the sum?",
                "image_png": picture(),
                "answer": "7",
                "response": "4 + 3 = 7",
                "reward": 1.0,
                "tokens": [
                    token("4", 3.2, "seen"),
                    token(" + 3 =", 0.0),
                    token(" 7", 0.1, "derived"),
                    token("<|im_end|>", 9.0),
                ],
            },
            {"question": HOSTILE, "answer": "7", "response": HOSTILE, "reward": 0.0},
        ],
    )
    objects = {
        "config": {"recipe": "vppo", "claim": "It looks.", "optimizer": {"lr": 3e-4}},
        "dependency": {
            "seen": {"mean": 3.0, "count": 64},
            "derived": {"mean": 0.25, "count": 32},
        },
        "data_report": {"used": 4096, "dropped": {"broken picture": 3}},
    }
    for name, value in objects.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


PAID = ((0, -0.5), (20, 1.7))


def evaluation(name, phase, step, accuracy):
    return {
        "name": name,
        "phase": phase,
        "step": step,
        "val/accuracy": accuracy,
        "val/accuracy_shuffled_images": 0.06,
        "val/count": 512,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "digits")
    return write_report(run).read_text()


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_write_report_shows_what_was_learned(page):
    assert "<h1>vppo · digits</h1>" in page
    assert "It looks." in page
    assert "raised the accuracy by 26 points" in page
    assert "accuracy falls to 6%" in page
    assert "<b>12 times</b>" in page  # 3.0 / 0.25
    assert "broken picture" in page
    assert "optimizer.lr" in page
    assert "val/reward_score" in page


def test_write_report_needs_nothing_from_outside(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png"))
    assert "default-src 'none'" in page


def test_write_report_escapes_what_the_model_wrote(tmp_path):
    run = make_run(tmp_path / HOSTILE.replace("/", ""))
    rows = [json.loads(x) for x in (run / "examples.jsonl").read_text().splitlines()]
    rows[0]["tokens"][0]["text"] = HOSTILE
    rows[0]["image_png"] = '" onerror="alert(1)'
    rows[0]["id"] = "\ud800" + HOSTILE
    write_lines(run / "examples.jsonl", rows)
    write_lines(
        run / "metrics.jsonl", [{"phase": "rl", "step": 1, HOSTILE: 1.0, "$x^{": 2}]
    )
    page = write_report(run).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert all("onerror" not in attributes for _, attributes in Elements(page).found)


def test_write_report_shades_tokens_by_visual_dependency(page):
    tokens = [
        attributes
        for tag, attributes in Elements(page).found
        if tag == "span" and "visual dependency" in (attributes.get("title") or "")
    ]
    # sqrt(S / 10), and 0 for the special token whatever it measured.
    assert [t["style"] for t in tokens] == [
        "--d: 0.566",
        "--d: 0.0",
        "--d: 0.1",
        "--d: 0.0",
    ]
    assert [t["class"].split() for t in tokens] == [
        ["token", "seen"],
        ["token"],
        ["token", "derived"],
        ["token", "special"],
    ]
    assert "visual dependency 3.2 · log-prob -0.1 · entropy 0.4" in tokens[0]["title"]


def test_write_report_enlarges_small_pictures(page):
    (image,) = (attrs for tag, attrs in Elements(page).found if tag == "img")
    assert image["width"] == "280"  # 5 screen pixels for each of the 56
    assert image["class"] == "enlarged"


def test_write_report_shows_every_metric_and_counts_missing_values(page):
    names = ("sft/loss", "critic/score/mean", "actor/grad_norm", "my/own_metric")
    for name in names:
        assert f"<code>{name}</code>" in page
    assert "Other metrics" in page
    assert "2 of 20 values are not finite" in page


def test_write_report_leaves_out_sections_without_a_file(tmp_path):
    row = {"phase": "rl", "step": 1, "bad": math.nan, "text": "hello"}
    write_lines(tmp_path / "metrics.jsonl", [row])
    page = write_report(tmp_path).read_text()
    assert "All curves" in page
    assert "1 of 1 values are not finite" in page
    assert "<code>text</code>" not in page
    for title in ("Headline", "Learning curve", "What it sees", "<h2>Data", "again"):
        assert title not in page


def test_write_report_says_when_the_effect_is_not_clear(tmp_path):
    run = make_run(tmp_path / "run")
    write_lines(
        run / "evaluations.jsonl",
        [
            evaluation("cold start", "cold_start", 10, 0.60),
            evaluation("after RL", "rl", 20, 0.62)
            | {"val/accuracy_shuffled_images": 0.61},
        ],
    )
    page = write_report(run).read_text()
    assert "no clear effect of reinforcement learning" in page
    assert "answers without looking" in page


def test_a_run_without_rewards_is_told_from_its_beginning(tmp_path):
    """Of demonstrations alone, measured on the way too: no reinforcement learning."""
    run = make_run(tmp_path / "run")
    measured = [(0, 0.1), (10, 0.86), (20, 0.87)]
    write_lines(
        run / "evaluations.jsonl",
        [evaluation("sft", "sft", step, share) for step, share in measured],
    )
    page = write_report(run).read_text()
    assert "Training raised the accuracy by 77 points" in page
    assert "after training" in page and "einforcement learning raised" not in page


def test_write_report_of_rewards_that_are_no_shares(tmp_path):
    """Means of 1.7 and -0.5, nothing asked of other pictures: there is no interval."""
    run = make_run(tmp_path / "run")
    nothing = {"val/accuracy_shuffled_images": None}
    write_lines(
        run / "evaluations.jsonl",
        [evaluation("rl", "rl", step, mean) | nothing for step, mean in PAID],
    )
    assert "val/accuracy" in write_report(run).read_text()


def test_write_report_tolerates_a_line_cut_by_a_kill(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"phase": "rl", "é'.encode()[:-1])
    assert len(read_run(run).metrics) == 30
    assert "The last line of metrics.jsonl is cut" in write_report(run).read_text()


def test_write_report_replaces_the_page_whole(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    (run / "dependency.json").write_text("{")
    with pytest.raises(ValueError, match=r"dependency\.json must hold JSON"):
        write_report(run)
    assert (run / "report.html").read_bytes() == first
    assert not list(run.glob("*.partial"))


def test_read_run_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run folder, but .*/nowhere is none"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl is missing or empty"):
        read_run(tmp_path)
    write_lines(tmp_path / "metrics.jsonl", [{"phase": "rl", "step": 1}, {"step": 2}])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 .* phase missing"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"phase"\n{"phase": "rl", "step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 must hold JSON"):
        read_run(tmp_path)


def png(folder, name, size, colour):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name, "PNG")
    return f"{folder.name}/{name}"


def turn(text, *images, chosen=True, **facts):
    return {"text": text, "chosen": chosen, "images": images, "facts": facts}


def episode(reward, *turns, **others):
    return {
        "step": 20,
        "id": "charts/0",
        "prompt": "<|im_start|>user\nWhich number?",
        "images": [],
        "reward": reward,
        "reward_details": {"overall": reward, "accuracy": reward},
        **({"turns": turns} if turns else {}),
        **others,
    }


def test_examples_of_several_turns_shade_what_the_policy_wrote(tmp_path):
    run = make_run(tmp_path / "run")
    (first, *_) = (json.loads(x) for x in (run / "examples.jsonl").open())
    tokens = [token("look", 2.5), token("<|im_end|>", 0.0), token(HOSTILE, 0.1)]
    told = {"text": f"<image>{HOSTILE}", "chosen": False, "tokens": []}
    turns = [
        {"text": "look", "chosen": True, "images": [], "tokens": tokens[:2]},
        {**told, "images": [picture(8, 8), '" onerror="alert(1)']},
        {"text": HOSTILE, "chosen": True, "images": [], "tokens": tokens[2:]},
        {"text": "not measured", "chosen": True, "images": [], "tokens": []},
    ]
    write_lines(run / "examples.jsonl", [{**first, "tokens": tokens, "turns": turns}])
    page = write_report(run).read_text()
    shown = page.split("<h2>What it sees")[1].split("</section>")[0]
    found = Elements(shown).found
    boxes = [
        attributes["class"]
        for tag, attributes in found
        if tag == "div" and (attributes.get("class") or "").split()[:1] == ["turn"]
    ]
    assert boxes == ["turn chosen", "turn", "turn chosen", "turn chosen"]
    shades = [
        attributes["style"]
        for tag, attributes in found
        if tag == "span" and "visual dependency" in (attributes.get("title") or "")
    ]
    assert shades == ["--d: 0.5", "--d: 0.0", "--d: 0.1"]  # sqrt(S / 10)
    assert shown.count("&lt;script&gt;") == 2 and "<script" not in page
    assert all("onerror" not in attributes for _, attributes in found)
    sources = [a["src"].split(",")[1] for tag, a in found if tag == "img"]
    assert sources[:2] == [first["image_png"], picture(8, 8)]
    assert "trained" not in shown and "not measured" in shown
    # The last is text as it is told, the others are tokens alone.
    places = [shown.index(text) for text in (">look<", "&lt;script", "not measured")]
    assert places == sorted(places)


def test_examples_whose_turns_are_damaged_are_told(tmp_path):
    run = make_run(tmp_path / "run")
    row = {"question": "?", "answer": "7", "response": "7", "reward": 1.0}
    write_lines(run / "examples.jsonl", [{**row, "turns": [{"chosen": True}]}])
    with pytest.raises(ValueError, match=r"examples\.jsonl: the turns of None must"):
        write_report(run)


def conversing(run, *episodes, step=20):
    (run / "rollouts").mkdir(exist_ok=True)
    write_lines(run / "rollouts" / f"rl_{step}.jsonl", episodes)
    return write_report(run).read_text()


def section(page):
    return page.split("<h2>Conversations</h2>")[1].split("</section>")[0]


def pictures(text):
    """(size, colour) of each picture shown, in order."""
    shown = []
    for tag, attributes in Elements(text).found:
        if tag == "img":
            data = base64.b64decode(attributes["src"].split("base64,")[1])
            with Image.open(io.BytesIO(data)) as picture:
                shown.append((picture.size, picture.convert("RGB").getpixel((0, 0))))
    return shown


def test_conversations_show_turns_and_pictures_in_order(tmp_path):
    run = make_run(tmp_path / "run")
    images = run / "rollouts" / "images"
    chart = png(images, "chart", (560, 280), (255, 0, 0))
    part = png(images, "part", (20, 10), (0, 255, 0))
    page = conversing(
        run,
        episode(0.5, turn("FIRST"), turn("middling", chosen=False)),
        episode(
            1.0,
            turn("FIRST"),
            turn("SECOND <image>", part, chosen=False),
            turn("a hint", chosen=False, model="reader"),
            turn("THIRD"),
            images=[chart],
            ground_truth="7",
        ),
        episode(
            0.0,
            turn("WORST"),
            turn("Error: there is no tool 'Zom'.", chosen=False),
            turn("LAST"),
            images=[chart],
            finished=False,
            facts={"calls/unknown": 1},
        ),
    )
    text = section(page)
    words = ("Which number?", "best of 3: reward 1", "FIRST", "SECOND", "a hint")
    words = (*words, "THIRD", "worst of 3: reward 0", "WORST", "no tool", "LAST")
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "middling" not in text
    # The chart at half its size, then the part, whose pixels are squares of 14.
    assert pictures(text) == [((280, 140), (255, 0, 0)), ((20, 10), (0, 255, 0))]
    widths = [a.get("width") for tag, a in Elements(text).found if tag == "img"]
    assert widths == ["280", "280"]
    turns = [
        attributes["class"]
        for tag, attributes in Elements(text).found
        if tag == "div" and (attributes.get("class") or "").split()[:1] == ["turn"]
    ]
    told, policy = "turn", "turn chosen"
    best, worst = [policy, told, told, policy], [policy, "turn error", policy]
    assert turns == [told, *best, *worst]
    assert text.count("<b>policy</b> · trained") == 4
    assert "<b>reader</b> · not trained" in text
    assert text.count("✗ error") == 1
    assert "not finished" in text and "calls/unknown 1" in text
    assert "answer: <b>7</b>" in text


def test_an_episode_of_one_turn_is_compared_with_those_of_several(tmp_path):
    """One that called its tool, and one that answered at once: who was paid?"""
    run = make_run(tmp_path / "run")
    talked = (turn("CALL"), turn("part", chosen=False), turn("SEEN"))
    page = conversing(
        run,
        episode(0.0, response="AT ONCE"),
        episode(1.0, *talked),
        episode(0.5, response="ANOTHER ROW", id="charts/1"),
    )
    text = section(page)
    places = [text.index(x) for x in ("best of 2", "SEEN", "worst of 2", "AT ONCE")]
    assert places == sorted(places)
    assert "ANOTHER ROW" not in text  # to which none had several turns


def test_conversations_are_text_of_strangers(tmp_path):
    run = make_run(tmp_path / "run")
    hostile = [turn(HOSTILE, f'"{HOSTILE}', chosen=False, model=HOSTILE)]
    page = conversing(run, episode(0.0, turn(HOSTILE), *hostile, id=HOSTILE))
    assert "<script" not in page
    assert section(page).count("&lt;script&gt;") == 5
    assert "default-src 'none'" in page


def test_conversations_name_a_picture_that_cannot_be_shown(tmp_path):
    run = make_run(tmp_path / "run")
    there = png(tmp_path / "own", "picture.png", (8, 8), (1, 2, 3))
    (tmp_path / "broken").write_bytes(b"no picture")
    names = ("images/gone", str(tmp_path / there), str(tmp_path / "broken"), "x" * 999)
    text = section(conversing(run, episode(None, turn("one"), turn("two", *names))))
    assert "images/gone: there is no such file." in text
    assert "broken: A picture" in text and "cannot be decoded" in text
    assert text.count('class="missing"') == 3
    assert pictures(text) == [((8, 8), (1, 2, 3))]


def test_conversations_are_bounded_and_say_what_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    part = png(run / "rollouts" / "images", "part", (9, 9), (0, 0, 0))
    long = [turn("x" * 2500, *[part] * 5), *[turn(f"t{n}", part) for n in range(29)]]
    others = [episode(0.0, turn("a"), turn("b"), id=f"p{n}") for n in range(9)]
    text = section(conversing(run, episode(1.0, *long), *others))
    assert "x" * 2000 in text and "x" * 2001 not in text
    assert "500 more characters, left out" in text
    assert len(pictures(text)) == 12
    assert text.count("1 more pictures, left out") == 16  # 24 turns, 8 with pictures
    assert "6 more turns, left out" in text
    assert text.count("one of 1") == 6


def test_conversations_are_of_the_last_step_and_of_several_turns(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Conversations" not in conversing(run, episode(1.0))
    conversing(run, episode(1.0, turn("early"), turn("b")), step=9)
    page = conversing(run, episode(1.0, turn("late"), turn("b")), step=10)
    assert "Conversations" not in page  # the newest, of step 20, has one turn
    (run / "rollouts" / "rl_20.jsonl").unlink()
    text = section(write_report(run).read_text())
    assert "late" in text and "early" not in text


def test_conversations_that_are_damaged_are_told(tmp_path):
    run = make_run(tmp_path / "run")
    conversing(run, episode(1.0, turn("whole"), turn("b")))
    with (run / "rollouts" / "rl_20.jsonl").open("a") as file:
        file.write('{"step": 20, "id')
    page = write_report(run).read_text()
    assert "The last line of rl_20.jsonl is cut" in page and "whole" in section(page)
    with pytest.raises(ValueError, match=r"rl_20\.jsonl: the turns of charts/0 must"):
        conversing(run, episode(1.0, "no turn", turn("b")))
    with pytest.raises(ValueError, match=r"rl_20\.jsonl, line 1 .* reward missing"):
        conversing(run, {"step": 1, "id": "a", "prompt": ""})


def test_phase_offsets_put_restarting_phases_in_a_row():
    def rows(phase, *steps):
        return [{"phase": phase, "step": step} for step in steps]

    restarting = rows("cold_start", 1, 100) + rows("rl", 1, 120)
    assert phase_offsets(restarting) == {"cold_start": -100.0, "rl": 0.0}
    continuing = rows("cold_start", 1, 100) + rows("rl", 101, 220)
    assert phase_offsets(continuing) == {"cold_start": 0.0, "rl": 0.0}


def test_smooth_is_the_mean_of_the_finite_neighbours():
    # By hand: windows of 3, cut at the ends, NaN left out.
    values = np.array([1.0, 2.0, np.nan, 6.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.5, 4.0, 6.0])
    np.testing.assert_array_equal(smooth(values, 1), values)
    assert np.isnan(smooth(np.full(3, np.nan), 3)).all()


def test_wilson_interval_by_hand():
    # 50 of 100: 0.5 -+ 1.96 sqrt(0.0025 + 0.0098^2) / 1.038416.
    assert wilson_interval(0.5, 100) == pytest.approx((0.403830, 0.596170), abs=1e-6)
    low, high = wilson_interval(1.0, 10)
    assert 0.7 < low < high <= 1.0
    assert wilson_interval(0.5, 0) == (0.5, 0.5)


def test_arrange_returns_every_name_once():
    names = ["zzz", "actor/new", "actor/entropy", "timing_s/gen", "reward/boxes"]
    groups = glossary.arrange(names)
    found = [name for _, _, members in groups for name, _ in members]
    assert sorted(found) == sorted(names)
    assert [title for title, _, _ in groups] == [
        "Reward",
        "Policy",
        "Time and size",
        "Other metrics",
    ]


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, vrl_jax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
