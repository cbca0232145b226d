"""What goes wrong on people's machines with captions: wrong flags end in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import write_text_files
from wrong_flags import Commands, assert_sentence, named

FEATURES, CONVERT = "language/extract_t5_feature.py", "language/convert_t5_features.py"
CODES, TRAIN = "autoregressive/train/extract_codes_t2i.py", "autoregressive/train/train_t2i.py"
GRID, MANY = "autoregressive/sample/sample_t2i.py", "autoregressive/sample/sample_t2i_ddp.py"
SMALL, DIGITS = "language/train_small_t5.py", "dataset/write_coloured_digits.py"
JUDGE = "evaluations/score_coloured_digits.py"

ENCODER = " --t5-path {t5} --t5-model-type tiny --t5-precision none"
SAMPLER = "--vq-ckpt {vq} --gpt-ckpt {gpt} --device cpu --precision none" + ENCODER
GOOD = {
    FEATURES: "--data-path {lists} --t5-path {out}/new --t5-model-path {t5} --t5-model-type tiny --num-workers 0 "
    "--device cpu --precision none",
    CONVERT: "--published {published} --data-path {lists} --t5-path {out}/new",
    CODES: "--data-path {lists} --code-path {out}/new --vq-ckpt {vq} --image-size 16 --num-workers 0 --device cpu",
    TRAIN: "--data-path {lists} --code-path {codes} --t5-feat-path {features} --gpt-model GPT-1M --image-size 16 "
    "--global-batch-size 2 --num-workers 0 --device cpu --mixed-precision none --results-dir {out}/runs --max-steps 1 "
    "--preview-every 0",
    GRID: SAMPLER + " --prompts seven --output {out}/grid.png",
    MANY: SAMPLER + " --prompt-csv {prompts} --num-fid-samples 2 --sample-dir {out}/many",
    SMALL: "--data-path {lists} --output {out}/small --steps 1 --width 16 --heads 2",
    DIGITS: "--output {out}/digits --train-pictures 2 --test-pictures 1",
    JUDGE: "--samples {samples} --real {digits} --prompts {asked}",
}
COMMANDS = Commands(GOOD)
FAULTS = [
    (FEATURES, "--data-path {nowhere}", "--data-path .*nowhere: there is no such file or folder"),
    (FEATURES, "--data-path {empty}", "--data-path .*empty: no .jsonl lists"),
    (FEATURES, "--data-start 4", "--data-start 4"),
    (FEATURES, "--caption-key long", "no 'long' in it"),
    (FEATURES, "--t5-model-type huge", "--t5-model-type huge: neither a folder"),
    (FEATURES, "--t5-path {torn}", "--t5-path: cannot make the folder .*torn"),
    (FEATURES, "--dtype-of-store fp8", "invalid choice 'fp8' for argument '--dtype-of-store'"),
    (FEATURES, "--max-bad 2", "--max-bad 2.0: is a share"),
    (FEATURES, "--batch-size 0", "--batch-size 0: must be at least 1"),
    (CONVERT, "--published {nowhere}", "--published .*nowhere"),
    (CONVERT, "--published {empty}", "--published .*empty"),
    (CODES, "--data-path {nowhere}", "--data-path .*nowhere: there is no such file or folder"),
    (CODES, "--image-size 18", "--image-size 18: must be a multiple"),
    (CODES, "--image-size 64", "2 of 2 pictures cannot be used .2 too small., .*smaller than --image-size 64"),
    (CODES, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (CODES, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (TRAIN, "--data-path {empty}", "--data-path .*empty: no .jsonl lists"),
    (TRAIN, "--dataset imagenet", "--dataset imagenet: this command trains on lists"),
    (TRAIN, "--code-path {empty}", "--code-path .*empty"),
    (TRAIN, "--t5-feat-path {empty}", "--t5-feat-path .*empty"),
    (TRAIN, "--image-size 32", "--image-size 32: .*holds codes of 16-px"),
    (TRAIN, "--t5-feature-dim 64", "--t5-feature-dim 64"),
    (TRAIN, "--vocab-size 8", "--vocab-size 8"),
    (TRAIN, "--short-share 2", "--short-share 2.0"),
    (TRAIN, "--gpt-ckpt {vq}", "--gpt-ckpt .*not the weights of this model"),
    (TRAIN, "--gpt-ckpt {torn}", "--gpt-ckpt .*truncated"),
    (GRID, "--gpt-ckpt {nowhere}", "--gpt-ckpt .*nowhere: there is no such file"),
    (GRID, "--gpt-ckpt {vq}", "--gpt-ckpt .*holds a tokenizer, not a GPT"),
    (GRID, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (GRID, "--t5-path {empty}", "empty/tiny"),
    (GRID, "--prompt-file {prompts}", "--prompts and --prompt-file: give one"),
    (GRID, "--image-size 18", "--image-size 18"),
    (MANY, "--prompt-csv {nowhere}.tsv", "--prompt-csv .*nowhere.tsv: there is no such file"),
    (MANY, "--prompt-csv {torn}", "--prompt-csv .*torn.pt: not a list of prompts by its name"),
    (MANY, "--prompt-csv {columns}", "--prompt-csv .*columns.tsv, line 1: no column of prompts"),
    (MANY, "--num-fid-samples 0", "--num-fid-samples 0: must be at least 1"),
    (MANY, "--sample-dir {torn}", "--sample-dir: cannot write into the folder .*torn"),
    (SMALL, "--data-path {nowhere}", "--data-path .*nowhere: there is no such file or folder"),
    (SMALL, "--width 15", "--width 15: must be a multiple of --heads"),
    (SMALL, "--output {empty}/../lists", "--output .*lists: holds something else already"),
    (DIGITS, "--train-pictures 0", "--train-pictures 0: must be at least 1"),
    (DIGITS, "--output {torn}", "--output .*torn.pt: holds something else"),
    (JUDGE, "--samples {empty}", "--samples .*empty: has no folder images"),
    (JUDGE, "--real {nowhere}", "nowhere"),
    (JUDGE, "--prompts {columns}", "--prompts .*columns.tsv: expected the columns Prompt, digit"),
    (JUDGE, "--prompts {prompts}", "--prompts .*prompts.tsv: expected the columns Prompt, digit"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Models, two captioned pictures, their codes and features, pictures to judge, and things of no use."""
    root = write_text_files(tmp_path_factory.mktemp("text_faults"))
    names = ("vq.pt", "gpt.pt", "t5", "lists", "codes", "features", "published", "empty", "nowhere", "torn.pt",
             "prompts.tsv", "columns.tsv", "digits", "samples", "asked.tsv")  # fmt: skip
    found = {name.partition(".")[0]: root / name for name in names}
    for name in ("lists", "empty", "published/list", "samples/images"):
        (root / name).mkdir(parents=True)
    random, lines = np.random.default_rng(0), []
    for i, text in enumerate(("a red cube", "two dogs")):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(root / f"lists/{i}.png")
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(root / f"samples/images/{i:06d}.png")
        np.save(root / f"published/list/{i}.npy", random.random((1, 3, 32), np.float32))
        lines.append({"image_path": f"{i}.png", "text": text})
    (root / "lists/list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "samples/result.jsonl").write_text(
        "".join(json.dumps({"text": "a red 7", "image_path": f"images/{i:06d}.png"}) + "\n" for i in range(2))
    )
    found["torn"].write_bytes(found["gpt"].read_bytes()[:5000])
    found["prompts"].write_text("Prompt\na red cube\ntwo dogs\n")
    found["columns"].write_text("A\tB\n1\t2\n")
    found["asked"].write_text("Prompt\tdigit\tcolour\tground\na red 7\t7\tred\tblue\n")
    for entry, more in ((CODES, f"--code-path {root}/codes"), (FEATURES, f"--t5-path {root}/features"),
                        (DIGITS, f"--output {root}/digits --test-pictures 120")):  # fmt: skip
        assert COMMANDS.call(entry, more, places=found, out=root) == 0
    return found


@pytest.mark.parametrize("entry", GOOD, ids=named)
def test_the_flags_that_faults_start_from_work(entry, places, tmp_path):
    assert COMMANDS.call(entry, places=places, out=tmp_path) == 0


@pytest.mark.filterwarnings("ignore")  # of pictures that are passed over, before they are too many
@pytest.mark.parametrize("entry, flags, words", FAULTS, ids=named)
def test_a_wrong_flag_ends_in_a_sentence_that_names_it(entry, flags, words, places, tmp_path, capsys):
    capsys.readouterr()
    assert COMMANDS.call(entry, flags, places=places, out=tmp_path) == 2
    assert_sentence(capsys.readouterr().err, words)
