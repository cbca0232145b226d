"""Every command parses the flags in people's scripts, says --help at once, and has no flag that nothing reads."""

import ast
import dataclasses
import importlib.util
import json
import subprocess
import sys
import typing
from functools import cache

import pytest
from support import ROOT, environment
from test_layering import CODE, entries, name, tree

from autoregressive.models.gpt import GPT_CONFIGS
from dataset.captions import CAPTION_KEYS
from engine.config import parse

PUBLISHED = json.loads((ROOT / "tests/golden/command_flags.json").read_text())

# Every command of the project; a new one is added here. Published ones are checked against their flags.
COMMANDS = [
    "app.py",
    "benchmarks/codes.py",
    "benchmarks/evaluation.py",
    "benchmarks/kills.py",
    "benchmarks/sampling.py",
    "benchmarks/serving.py",
    "benchmarks/training.py",
    "benchmarks/training_memory.py",
    "autoregressive/sample/sample_c2i.py",
    "autoregressive/sample/sample_c2i_ddp.py",
    "autoregressive/sample/sample_t2i.py",
    "autoregressive/sample/sample_t2i_ddp.py",
    "autoregressive/serve/sample_c2i.py",
    "autoregressive/serve/sample_t2i.py",
    "autoregressive/serve/server.py",
    "autoregressive/train/convert_codes.py",
    "autoregressive/train/draw_codes.py",
    "autoregressive/train/extract_codes_c2i.py",
    "autoregressive/train/extract_codes_t2i.py",
    "autoregressive/train/train_c2i.py",
    "autoregressive/train/train_c2i_fsdp.py",
    "autoregressive/train/train_t2i.py",
    "dataset/write_coloured_digits.py",
    "evaluations/c2i/evaluator.py",
    "evaluations/c2i/reference.py",
    "evaluations/classifier.py",
    "evaluations/plot_losses.py",
    "evaluations/plot_scaling.py",
    "evaluations/score.py",
    "evaluations/score_coloured_digits.py",
    "evaluations/score_digits.py",
    "evaluations/search.py",
    "evaluations/t2i/evaluation.py",
    "language/convert_t5_features.py",
    "language/extract_t5_feature.py",
    "language/train_small_t5.py",
    "scripts/download.py",
    "scripts/export.py",
    "tokenizer/tokenizer_image/reconstruction_vq_ddp.py",
    "tokenizer/tokenizer_image/vq_demo.py",
    "tokenizer/tokenizer_image/vq_train.py",
    "tokenizer/validation/val_ddp.py",
]
CHECKED = [command for command in COMMANDS if command in PUBLISHED]
# What has no default here either; a name without dashes is a place on the command line.
REQUIRED = {"--code-path": "codes", "--data-path": "data", "--t5-path": "features", "--fake_dir": "samples",
            "ref_batch": "reference.npz", "sample_batch": "samples.npz"}  # fmt: skip
NAMES = {"GPT names": [name for name in GPT_CONFIGS if name[-1] != "M"], "tokenizer names": ["VQ-16", "VQ-8"],
         "list(CAPTION_KEY.keys())": list(CAPTION_KEYS)}  # fmt: skip

# Flags that do not take any value of their type, and one that they take.
VALUES = {"--crop-range": 1.5, "--reconstruction-loss": "l1"}

# Published flags that are another's second name.
ALIASES = {"--drop-path": "--drop-path-rate", "--gpt-resume": "--gpt-ckpt"}

# (command, flag): why its default is another one than the published.
OTHER_DEFAULTS: dict[tuple[str, str], str] = {
    ("evaluations/t2i/evaluation.py", "--ref_dir"): "was required; without it there is a CLIP score now, and no FID",
    ("language/extract_t5_feature.py", "--data-start"): "was required; without it the first list is the first now",
    ("autoregressive/train/extract_codes_t2i.py", "--data-start"): "the same",
    ("autoregressive/sample/sample_t2i_ddp.py", "--prompt-csv"): "a list of our own ships",
    ("autoregressive/train/train_c2i_fsdp.py", "--no-wandb"): "nothing is sent anywhere but with --wandb",
}


@cache
def options_of(command: str) -> type:
    """The dataclass of the entry's last line, `run(main, Options)`."""
    spec = importlib.util.spec_from_file_location(
        f"command_{command.replace('/', '_').removesuffix('.py')}", ROOT / command
    )
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, tree(ROOT / command).body[-1].body[0].value.args[1].id)


def required(command: str) -> list[str]:
    """Arguments that the command does not go without, which old scripts give, too."""
    takes = without_default(options_of(command))
    given = [(flag, value) for flag, value in REQUIRED.items() if field_of(flag) in takes]
    return [word for flag, value in given for word in ((flag, value) if flag[0] == "-" else (value,))]


def field_of(flag: str) -> str:
    return ALIASES.get(flag, flag).removeprefix("--").replace("-", "_")


def parts(options: type) -> list[dict[str, typing.Any]]:
    """Field -> type, for a dataclass and all within it."""
    types = typing.get_type_hints(options)
    inner = [part for each in types.values() if dataclasses.is_dataclass(each) for part in parts(each)]
    return [{field: kind for field, kind in types.items() if not dataclasses.is_dataclass(kind)}, *inner]


def without_default(options: type) -> set[str]:
    """Fields that must be given, of a dataclass and all within it."""
    types, found = typing.get_type_hints(options), set()
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(types[field.name]):
            found |= without_default(types[field.name])
        elif field.default is field.default_factory is dataclasses.MISSING:
            found.add(field.name)
    return found


def flat(options) -> dict[str, typing.Any]:
    """Field -> value, over all nested dataclasses."""
    found = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        found |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def held(options, flag: str):
    """The value behind a published flag; --no-x is the opposite of x."""
    values = flat(options)
    field = field_of(flag)
    value = values[field] if field in values else not values[field.removeprefix("no_")]
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def samples(flag: dict) -> list[tuple[list[str], typing.Any]]:
    """(arguments, value) pairs to try: every published choice, or one value of the type."""
    if flag.get("action") == "store_true":
        return [([flag["flag"]], True)]
    any_value = VALUES.get(flag["flag"], {"int": 3, "float": 0.25, "str": "some/text"}[flag.get("type", "str")])
    choices = flag.get("choices", [any_value])
    return [([flag["flag"], str(value)], value) for value in (NAMES[choices] if isinstance(choices, str) else choices)]


FLAGS = [(command, flag) for command in CHECKED for flag in PUBLISHED[command] if flag["flag"][0] == "-"]


def test_every_command_is_listed():
    assert sorted(map(name, entries())) == sorted(COMMANDS)


@pytest.mark.parametrize("command, flag", FLAGS, ids=lambda each: each if isinstance(each, str) else each["flag"])
def test_published_flags_parse(command, flag):
    options = options_of(command)
    for arguments, value in samples(flag):
        given = parse(options, [*required(command), *arguments])
        assert held(given, flag["flag"]) == value


@pytest.mark.parametrize("command", CHECKED)
def test_a_flag_is_spelt_with_dashes_or_underscores(command):
    published = required(command)
    for flag in PUBLISHED[command]:
        if flag["flag"][0] == "-" and flag["flag"] not in published:
            published += samples(flag)[-1][0]
    swapped = str.maketrans("-_", "_-")
    other = ["--" + word[2:].translate(swapped) if word.startswith("--") else word for word in published]
    assert parse(options_of(command), other) == parse(options_of(command), published)


@pytest.mark.parametrize("command", CHECKED)
def test_defaults_are_the_published_ones(command):
    given = [flag for flag in REQUIRED if field_of(flag) in without_default(options_of(command))]
    plain = parse(options_of(command), required(command))
    for flag in PUBLISHED[command]:
        value = held(plain, flag["flag"])
        default = flag.get("default", False if flag.get("action") == "store_true" else None)
        if value == "auto" or flag["flag"] in given or (command, flag["flag"]) in OTHER_DEFAULTS:
            continue
        assert value == default, f"{command} {flag['flag']}: {value}, published {default}"


VQ = "--vq-ckpt ./pretrained_models/vq_ds16_c2i.pt"
GPT = "--gpt-ckpt ./pretrained_models/c2i_B_384.pt --gpt-model GPT-B"
COMMAND_LINES = [
    f"autoregressive/sample/sample_c2i.py {VQ} {GPT} --image-size 384",
    f"autoregressive/sample/sample_c2i.py {VQ} {GPT} --from-fsdp --image-size 384",
    f"autoregressive/sample/sample_c2i_ddp.py {VQ} {GPT} --image-size 384 --image-size-eval 256 --cfg-scale 2.0",
    "evaluations/c2i/evaluator.py VIRTUAL_imagenet256_labeled.npz samples/NAME.npz",
    "evaluations/t2i/evaluation.py --ref_dir COCO --fake_dir DIR --how_many 30000",
    f"autoregressive/train/extract_codes_c2i.py {VQ} --data-path IMAGENET/train --code-path DIR --ten-crop "
    "--crop-range 1.1 --image-size 384",
    "autoregressive/train/train_c2i.py --cloud-save-path DIR --code-path DIR --image-size 384 --gpt-model GPT-B",
    "autoregressive/train/train_c2i_fsdp.py --cloud-save-path DIR --code-path DIR --image-size 384 --gpt-model GPT-XXL "
    "--gpt-resume DIR/0005000 --data-parallel hsdp --grad-precision bf16",
    "tokenizer/tokenizer_image/vq_train.py --cloud-save-path DIR --data-path DIR --image-size 256 --vq-model VQ-16",
    f"tokenizer/tokenizer_image/reconstruction_vq_ddp.py --data-path DIR --dataset coco {VQ} --image-size 384",
    "tokenizer/validation/val_ddp.py --data-path IMAGENET/val --dataset coco --image-size 512",
    "language/extract_t5_feature.py --data-path LISTS --t5-path DIR --data-start 0 --data-end 99 --caption-key llava "
    "--trunc-caption",
    f"tokenizer/tokenizer_image/vq_train.py --finetune --disc-start 0 {VQ} --dataset t2i_image",
]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_in_people_s_notes_parse(line):
    command, *arguments = line.split()
    parse(options_of(command), arguments)


HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "torch was imported to say --help"
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_said_without_torch_from_any_folder(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(ROOT / command)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": "", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert ast.get_docstring(tree(ROOT / command)).split("\n")[0][:40] in done.stdout


def test_every_flag_is_read_somewhere():
    """By attribute, anywhere but in the option files (there, by a method of its own class alone)."""
    inside = {path for path in CODE if path.stem.endswith("options")}
    nodes = [(path, node) for path in CODE for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
    read = {node.attr for path, node in nodes if path not in inside or ast.unparse(node.value) == "self"}
    for command in COMMANDS:
        unread = {field for part in parts(options_of(command)) for field in part} - read
        assert not unread, f"{command}: nothing reads {unread}"
