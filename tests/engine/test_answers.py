"""What a program may print, what it is told when it prints something else, and how commands are taken apart."""

import json
import time

import numpy as np
import pytest

from radin.engine.answers import AnswerError, parse, shown_lines
from radin.engine.sources import named_files
from radin.engine.template import Template


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("0.91", 0.91),
        ("loading\n  0.5  \n\n", 0.5),
        ("-3", -3.0),
        ("1e-3\r\n", 0.001),
        (".5", 0.5),
        ('{"score": 0.25}', 0.25),
        ('noise {\nmore\n{"score": 1, "loss": 3}\n', 1.0),
        ('{\n  "score": 0.75,\n  "further": {\n    "a": 1\n  }\n}\n', 0.75),
        ('{"score": 1}\nlog\n{\n"score": 2\n}', 2.0),
        ('{"score": 1}\n0.5', 0.5),
    ],
)
def test_a_number_or_an_object_at_the_end_is_the_answer(printed, score):
    assert parse(printed).score == score


NOT_FINITE = ["nan", "NaN", "inf", "-Infinity", '{"score": NaN}', '{"score": -Infinity}', '{"score": 1e999}']


@pytest.mark.parametrize("printed", NOT_FINITE)
def test_a_score_that_is_not_finite_is_nan(printed):
    assert np.isnan(parse(printed).score)


def test_an_object_may_say_more():
    found = parse(
        '{"score": 0.5, "stderr": 0.1, "examples": 40, "further": {"a": 0.3, "b": {"score": 1, "stderr": 0.2}}}'
    )
    assert (found.score, found.stderr, found.examples, found.values) == (0.5, 0.1, 40, None)
    assert found.further["a"][0] == 0.3
    assert np.isnan(found.further["a"][1])
    assert found.further["b"] == (1.0, 0.2)
    answer = found.answer(2.5)
    assert (answer.score, answer.stderr, answer.examples, answer.seconds) == (0.5, 0.1, 40, 2.5)
    assert answer.further == found.further


def test_values_give_score_and_standard_error():
    values = [0, 1, 1, 0.5, True, 0]
    answer = parse(json.dumps({"score": round(3.5 / 6, 3), "values": values})).answer(1.0)
    assert answer.score == pytest.approx(3.5 / 6, abs=1e-15)
    assert answer.stderr == pytest.approx(np.std(values, ddof=1) / np.sqrt(6))
    assert np.array_equal(answer.values, values)
    assert answer.examples == 6
    assert parse('{"score": 0.5, "stderr": 0.4, "values": [0, 1]}').answer(1.0).stderr == 0.4
    broken = parse('{"score": 0.5, "values": [0, null]}').answer(1.0)
    assert np.isnan(broken.score)
    assert broken.values is None


@pytest.mark.parametrize(
    ("score", "mean", "fits"),
    [(0.91, 0.9123, True), (0.9, 0.9123, False), (1, 0.6, False), (0.912, 0.9123, True), (0.912, 0.9129, False),
     (91.2, 91.24, True), (91.23, 0.9123, False), (0.9123, 0.91230004, True)],
)  # fmt: skip
def test_a_score_must_be_the_mean_of_its_values_to_the_digits_given(score, mean, fits):
    printed = json.dumps({"score": score, "values": [mean, mean]})
    if fits:
        assert parse(printed).answer(1.0).score == mean
    else:
        with pytest.raises(AnswerError, match=f'"score" is {score:g}, but the mean of its 2 "values" is {mean:g}'):
            parse(printed)


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("", "it printed nothing"),
        ("91.2%", "its last line '91.2%' is a percentage: print 91.2 or 0.912"),
        ("0,91", "its last line '0,91' has a decimal comma: print 0.91"),
        ("tensor(0.9100, device='cuda:0')", "is not a plain number: print float(...) of it, 0.9100"),
        ("np.float64(0.5)", "is not a plain number: print float(...) of it, 0.5"),
        ("score: 0.91", "its last line 'score: 0.91' says more than a number: print 0.91 alone"),
        ("0.91\ndone", "its last line 'done' is not a number"),
        ("1_000", "its last line '1_000' is not a number"),
        ("{'score': 1}", "ends no whole JSON object"),
        ('{"acc": 1, "n": 2}', 'its JSON object has no "score"; it has \'acc\', \'n\''),
        ("{}", 'its JSON object has no "score"; it has nothing'),
        ("[0.5]", "its last line '[0.5]' is not a number"),
        ('{"score": null}', '"score" must be a number; it is null'),
        ('{"score": true}', '"score" must be a number; it is true'),
        ('{"score": "0.5"}', '"score" must be a number without quotes; it is "0.5"'),
        ('{"score": 1, "stderr": -1}', '"stderr" is negative'),
        ('{"score": 1, "values": []}', '"values" must be a list with one number per example; it is []'),
        ('{"score": 1, "values": [1, "a"]}', '"values" must hold one number per example; value 1 is "a"'),
        ('{"score": 1, "further": [1]}', '"further" must be an object'),
        ('{"score": 1, "further": {"x": {"stderr": 1}}}', "\"further\": 'x' has no \"score\""),
        ('{"score": 1, "further": {"x": "good"}}', '"further": \'x\' must be a number; it is "good"'),
        ('{"score": 1, "examples": -1}', '"examples" must be how many were scored; it is -1'),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_told_what_to_print(printed, said):
    with pytest.raises(AnswerError) as caught:
        parse(printed)
    assert said in str(caught.value)


def test_a_line_longer_than_what_is_kept_is_told_apart():
    with pytest.raises(AnswerError, match="its last line is longer than the 1,000 characters that are kept"):
        parse("1, " * 333 + "1", whole=False)


def test_text_is_shown_without_what_could_change_a_terminal():
    text = (
        "first\n\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07end\n10%\r50%\r100%\r\n\n\tdeep\u202e\x00\n" + "y" * 400 + "\n"
    )
    assert shown_lines(text, 10) == ["first", "red end", "100%", "    deep", "y" * 297 + "..."]
    assert shown_lines(text, 2) == ["    deep", "y" * 297 + "..."]
    assert shown_lines("", 3) == []


def test_a_template_fills_values_in_as_the_quotes_around_them_need():
    template = Template.parse('X={slot} a {soup} "b {soup}" \'c {soup}\' \\"{soup} {{x}} ${{HOME}}')
    assert template.placeholders == {"slot", "soup"}
    filled = template.fill({"soup": "o'n $x \"", "slot": "3"})
    assert filled == """X=3 a 'o'"'"'n $x "' "b o'n \\$x \\"" 'c o'\\''n $x "' \\"'o'"'"'n $x "' {x} ${HOME}"""


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("./a.sh {soup}", ["./a.sh"]),
        ("CUDA_VISIBLE_DEVICES={slot} python b.py --config c.json {soup}|tail -n1", ["b.py", "c.json"]),
        ("sh -c 'python b.py {soup} && ./a.sh'", ["b.py", "./a.sh"]),
        ("cd sub && python d.py {soup} --c=../c.json", ["d.py", "../c.json"]),
        ("python -m sub.d {soup}", ["sub/d.py"]),
        ("./a.sh {soup} 2> c.json; tee b.py", ["./a.sh"]),
        ("./a.sh {soup} --output_dir=c.json --log-file b.py -o c.json", ["./a.sh"]),
        ("./a.sh {soup} --layout c.json --login b.py", ["./a.sh", "c.json", "b.py"]),
        ("python 'don't {soup}", []),
        ("python nothing.py {soup}", []),
    ],
)
def test_the_files_that_a_command_names(tmp_path, command, names):
    (tmp_path / "sub").mkdir()
    for name in ("a.sh", "b.py", "c.json", "sub/d.py", "python"):
        (tmp_path / name).write_text(name)
    found = named_files(command, tmp_path)
    assert list(found) == names
    assert all(len(content) == 64 for content in found.values())


def test_a_large_file_is_known_by_size_and_time(tmp_path):
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate((64 << 20) + 1)
    before = named_files("x data.bin", tmp_path)
    assert before["data.bin"].startswith("67108865 bytes of ")
    (tmp_path / "data.bin").touch()
    assert named_files("x data.bin", tmp_path) != before


def test_a_long_line_of_digits_takes_no_time():
    started = time.process_time()
    for last in ("9" * 2_000_000 + "x", "score=" + "9" * 2_000_000 + "x", "f(" + "1" * 2_000_000 + "x)"):
        with pytest.raises(AnswerError):
            parse(last)
    assert time.process_time() - started < 2
