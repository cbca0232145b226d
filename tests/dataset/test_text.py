"""Lists of prompts: every format that is in use gives the same prompts, and what cannot be read is named."""

import json
from pathlib import Path

import pytest

from dataset.text import read_lines, read_prompts

SHIPPED = Path(__file__).resolve().parents[2] / "evaluations/t2i/prompts.tsv"
PROMPTS = ['a robot says "hello", twice', "\u201cno\u201d in caf\u00e9 letters", "a red, blue and green cube", "42"]
DOUBLED = '"a robot says ""hello"", twice"'

FILES = {
    "parti.tsv": "Prompt\tCategory\tChallenge\tNote\n" + "".join(f"{p}\tArts\tBasic\t\n" for p in PROMPTS),
    "quoted.tsv": f"Category\tcaption\nArts\t{DOUBLED}\n" + "".join(f"Arts\t{p}\n" for p in PROMPTS[1:]),
    "table.csv": f"id,Text,note\n0,{DOUBLED},\n1,{PROMPTS[1]},\n2,\"{PROMPTS[2]}\",x\n\n , ,\n3,42,\n",
    "one_column.csv": "Prompt\n" + "".join(f" {p} \n" for p in PROMPTS),
    "tabs.csv": "Prompt\tNote, if any\n" + "".join(f"{p}\t\n" for p in PROMPTS),
    "list.jsonl": "".join(json.dumps({"image_path": "0.png", "PROMPT": p}) + "\n\n" for p in PROMPTS),
    "lines.txt": "\n\n".join(PROMPTS),
}


def written(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_prompts(name, ends, encoding, tmp_path):
    path = written(tmp_path, name, FILES[name].replace("\n", ends), encoding)
    assert read_prompts(path) == PROMPTS
    assert read_prompts(str(path.rename(path.with_suffix(path.suffix.upper())))) == PROMPTS


def test_prompt_comes_before_caption_before_text(tmp_path):
    for columns in (["text", "Caption", "prompt"], ["text", "CAPTION"], ["TEXT", "x"]):
        path = written(tmp_path, "list.tsv", "\t".join(columns) + "\n" + "\t".join(columns) + "\n")
        wanted = next(column for kind in ("prompt", "caption", "text") for column in columns if column.lower() == kind)
        assert read_prompts(path) == [wanted]


@pytest.mark.parametrize("text", [
    'prompt,n\n"a cat\non a mat",1\nb,2\n', 'Prompt\n"a cat\non a mat"\nb\n', '"Prompt"\n"a cat\non a mat"\n"b"\n',
])  # fmt: skip
def test_a_prompt_of_several_lines_is_one_line(text, tmp_path):
    assert read_prompts(written(tmp_path, "list.csv", text)) == ["a cat on a mat", "b"]


def test_one_column_keeps_its_commas_however_it_is_written(tmp_path):
    for text in ('Prompt\na cat, a dog\n"b, ""c"""\n', 'Prompt\n"a cat, a dog"\n"b, ""c"""\n'):
        assert read_prompts(written(tmp_path, "list.csv", text)) == ["a cat, a dog", 'b, "c"']


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
@pytest.mark.parametrize("more", ["", "\tNote"])
def test_quotes_that_enclose_no_column_belong_to_the_prompt_and_swallow_nothing(name, more, tmp_path):
    prompts = ['"Hello" on a sign', '"never closed', "plain", '"', 'five feet 6"', "last"]
    note = more and "\tx"
    path = written(tmp_path, name, f"Prompt{more}\n" + "".join(f"{prompt}{note}\n" for prompt in prompts))
    assert read_prompts(path) == prompts


@pytest.mark.parametrize(("name", "text"), [
    ("list.tsv", "Prompt\tNote\na\tx\n  \tx\n\nb\tx\n"), ("list.csv", "Prompt,Note\na,x\n,x\n,\nb,x\n"),
    ("list.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n\n{"prompt": "b"}'), ("list.csv", 'Prompt\na\n""\n\n  \nb\n'),
    ("list.tsv", '\nPrompt\na\n""\n\n  \nb\n'),
])  # fmt: skip
def test_an_empty_cell_is_an_empty_prompt_and_an_empty_line_is_nothing(name, text, tmp_path):
    assert read_prompts(written(tmp_path, name, text)) == ["a", "", "b"]


@pytest.mark.parametrize(("name", "text", "error"), [
    ("list.csv", "name,style\na,b\n", "list.csv, line 1: no column of .*prompt, caption, text.* found name, style"),
    ("list.jsonl", '\n{"caption": "a"}\n{"url": "b", "n": 1}\n', r"list.jsonl, line 3: no column .* found url, n"),
    ("list.jsonl", "{}\n", "line 1: no column .* found none"),
    ("list.jsonl", '{"prompt": "a"}\n{"prompt":\n', "line 2: not JSON"),
    ("list.jsonl", '["a"]\n', "line 1: expected an object"),
    ("list.jsonl", '{"text": ["a", "b"]}\n', r'line 1: its prompt is \["a", "b"\], expected text'),
    ("list.csv", "Prompt,Note\na cat, a dog,x\n", "line 2: has 3 columns, the header 2 .Prompt, Note."),
    ("list.tsv", "Note\tPrompt\n\nx\ta\nonly a note\n", "line 4: has 1 columns, the header 2"),
    ("list.csv", 'Prompt,Note\na,x\n"b,y\nc,z\n', "line 3: not readable as a table"),
    ("list.csv", "Prompt\n\n", "list.csv: no prompts in it"),
    ("list.txt", "", "list.txt: no prompts in it"),
    ("list.json", "[]", "list.json: not a list of prompts by its name; expected .csv, .tsv, .jsonl, .txt"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(name, text, error, tmp_path):
    with pytest.raises(ValueError, match=error):
        read_prompts(written(tmp_path, name, text))


def test_files_that_are_none_and_other_encodings_are_named(tmp_path):
    with pytest.raises(ValueError, match="none.csv: there is no such file"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="folder.txt: is a folder"):
        read_prompts(tmp_path / "folder.txt")
    with pytest.raises(ValueError, match="latin.txt: not UTF-8"):
        read_prompts(written(tmp_path, "latin.txt", "caf\u00e9", "latin-1"))


def test_lines_end_at_newlines_alone(tmp_path):
    path = written(tmp_path, "captions.txt", "a\u2028b\n\nc\x0bd\n")
    assert read_lines(path) == ["a\u2028b", "", "c\x0bd"]


def test_the_list_that_ships_is_varied():
    prompts = read_prompts(SHIPPED)
    categories = [line.split("\t")[1] for line in read_lines(SHIPPED)[1:]]
    assert len(prompts) == len(set(prompts)) == len(categories) >= 50
    assert min(categories.count(category) for category in categories) >= 5
    assert sum('"' in prompt for prompt in prompts) >= 4  # the quotes of words to be drawn are part of the prompt
