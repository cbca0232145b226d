"""Weights written for others, in every format from every checkpoint; and the Hub, there and back."""

import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_hub import connected
from support import environment, filled
from test_commands import options_of
from tiny_pipeline import MACHINE, NAMES, TEXT_GPT, options, write_files, write_gpt
from torch import Tensor

from autoregressive import hub as gpt_hub
from autoregressive.export import export
from autoregressive.export_options import Export
from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import build_gpt
from autoregressive.sample.pipeline import load_pipeline
from engine.checkpoint import read_weights, save_safetensors
from engine.config import parse
from engine.distributed import Context
from engine.hub import C2I
from engine.sharded_checkpoint import ShardedWriter
from engine.state import read_state
from tokenizer.tokenizer_image import vq_hub
from tokenizer.tokenizer_image.vq_load import USAGE, identity, without_usage
from tokenizer.tokenizer_image.vq_model import VQ_models

SAMPLING = Sampling(cfg_scale=2.0, top_k=100)
ENDING = {"pt": ".pt", "bare": ".pt", "safetensors": ".safetensors", "hub": ""}
TRAINED = {"steps": 30, "order": {"samples": 47, "global_batch_size": 8}}  # 6 epochs


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """gpt.pt and vq.pt as training leaves them."""
    root = write_files(tmp_path_factory.mktemp("weights"))
    for name in ("gpt", "vq"):
        held = torch.load(root / f"{name}.pt")
        ema = {key: value * 1.25 if value.is_floating_point() else value for key, value in held["model"].items()}
        optimizer = {"state": {0: {"exp_avg": torch.randn(3_000_000)}}}
        torch.save({**held, "ema": ema, "optimizer": optimizer, **TRAINED}, root / f"{name}.pt")
    return root


def written(source: Path, output: Path, **given) -> Path:
    export(Export(str(source), str(output), **given))
    return output


def codes(gpt: Path, vq: Path, **given) -> Tensor:
    pipeline = load_pipeline(*options(gpt.parent, {"gpt_ckpt": str(gpt), **given}, {"vq_ckpt": str(vq)}), MACHINE)
    return pipeline.codes(pipeline.labels([3, 9]), SAMPLING, seed=1)


@pytest.fixture(scope="module")
def expected(files) -> Tensor:
    found = codes(files / "gpt.pt", files / "vq.pt")
    assert len(found.unique()) > 5
    return found


def weights_in(path: Path, entry: str = "model") -> str:
    return identity(read_weights(path, (entry,)).state)


# ---- formats


@pytest.mark.parametrize("form", ENDING)
def test_every_format_holds_the_same_weights_and_draws_the_same_codes(form, files, expected, tmp_path):
    out = {name: written(files / f"{name}.pt", tmp_path / f"{name}{ENDING[form]}", format=form)
           for name in ("gpt", "vq")}  # fmt: skip
    for name, path in out.items():
        assert weights_in(path) == weights_in(files / f"{name}.pt")
        usage = (name, form) in (("vq", "pt"), ("vq", "bare"))  # which published programs want
        assert (USAGE in read_weights(path).state) == usage
        size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
        held = sum(value.nbytes for value in read_weights(path).state.values())
        assert held <= size < 1.2 * held, "the weights and nothing else"
    given = {"image_size": 16, "num_classes": 10} if form == "bare" else {}
    assert torch.equal(codes(*out.values(), **given), expected)
    if form != "bare":
        meta, before = read_weights(out["gpt"]).meta, read_weights(files / "gpt.pt").meta
        assert {**meta, "trained": None} == {**before, "trained": None}
        assert [read_weights(path).trained for path in out.values()] == [{"steps": 30, "epochs": 6.0}] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in out.values())


def test_published_programs_read_the_wrapper_and_the_bare_state(files, tmp_path):
    models = {"gpt": build_gpt("GPT-1M", block_size=16), "vq": VQ_models["VQ-4-tiny"]()}
    for name, model in models.items():
        wrapped = torch.load(written(files / f"{name}.pt", tmp_path / f"{name}.pt"), weights_only=True)
        bare = torch.load(written(files / f"{name}.pt", tmp_path / f"{name}.pth", format="bare"), weights_only=True)
        for state in (wrapped["model"], bare):
            model.load_state_dict(state, strict=True)
            before = torch.load(files / f"{name}.pt")["model"]
            assert all(torch.equal(value, before[key].to(value.dtype)) for key, value in model.state_dict().items())


def test_a_format_is_told_by_the_output_s_ending(tmp_path):
    for name, form in {"a.pt": "pt", "a.pth": "pt", "a.safetensors": "safetensors", "LlamaGen-1.5": "hub"}.items():
        assert Export("x.pt", str(tmp_path / name)).format == form


def test_the_moving_average_is_taken_on_request(files, tmp_path):
    for name in ("gpt", "vq"):
        out = written(files / f"{name}.pt", tmp_path / f"{name}.pt", use_ema=True)
        assert weights_in(out) == weights_in(files / f"{name}.pt", "ema") != weights_in(files / f"{name}.pt")
    with pytest.raises(ValueError, match=r"--use-ema: .*vq\.pt holds no moving average"):
        written(tmp_path / "vq.pt", tmp_path / "again.pt", use_ema=True)


# ---- precision


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_rounded_and_the_pair_still_fits(precision, dtype, files, tmp_path):
    gpt, vq = (written(files / f"{name}.pt", tmp_path / name, precision=precision) for name in ("gpt", "vq"))
    before, after = read_weights(files / "vq.pt").state, read_weights(vq).state
    assert {value.dtype for value in read_weights(gpt).state.values()} == {dtype}
    for name, value in after.items():
        kept = name.startswith("quantize.")  # the codebook decides the codes
        assert value.dtype == (before[name].dtype if kept else dtype)
        assert torch.equal(value, before[name].to(value.dtype))
    assert len(codes(gpt, vq)) == 2, "the rounded tokenizer is the one that the GPT was trained with"
    whole = written(vq, tmp_path / "vq.pt", precision="fp32")
    assert {value.dtype for value in without_usage(read_weights(whole).state).values()} == {torch.float32}
    assert len(codes(files / "gpt.pt", whole)) == 2


def test_a_codebook_is_rounded_on_request(files, tmp_path):
    vq = written(files / "vq.pt", tmp_path / "vq", precision="fp16", round_codebook=True)
    assert {value.dtype for value in read_weights(vq).state.values()} == {torch.float16}
    assert len(codes(files / "gpt.pt", vq)) == 2, "it is the tokenizer that the GPT was trained with"
    with pytest.raises(ValueError, match="--round-codebook: to what"):
        Export("vq.pt", "out", round_codebook=True)


def test_values_that_a_precision_does_not_hold_are_refused(files, tmp_path):
    held = torch.load(files / "gpt.pt")
    held["model"]["output.weight"][0, 0] = 1e5
    torch.save(held, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match=r"--precision fp16: 1 weights \(output.weight, .* fp16 ends at 65504"):
        written(tmp_path / "gpt.pt", tmp_path / "out.pt", precision="fp16")
    written(tmp_path / "gpt.pt", tmp_path / "out.pt", precision="bf16")


# ---- checkpoints of every kind


def test_a_checkpoint_of_a_sharded_run_is_exported(files, tmp_path):
    held = torch.load(files / "gpt.pt")
    tensors = {f"{part}.{name}": value for part in ("model", "ema") for name, value in held[part].items()}
    writer = ShardedWriter(Context(0, 1, torch.device("cpu")))
    writer.save(tmp_path / "0000030", tensors, {"meta": held["meta"], **TRAINED})
    writer.finish()
    for entry in ("model", "ema"):
        out = written(tmp_path / "0000030", tmp_path / f"{entry}.safetensors", use_ema=entry == "ema")
        assert weights_in(out) == weights_in(files / "gpt.pt", entry)
        assert read_weights(out).trained == {"steps": 30, "epochs": 6.0}


@pytest.mark.parametrize("form", ["model", "module", "state_dict", "bare", "folder", "safetensors"])
def test_published_weights_are_recognised_by_names_and_shapes(form, files, tmp_path):
    state = torch.load(files / "gpt.pt")["model"]
    source = tmp_path / {"folder": "run", "safetensors": "gpt.safetensors"}.get(form, "gpt.pt")
    if form == "folder":
        source.mkdir()
        torch.save(state, source / "consolidated.pth")
    elif form == "safetensors":
        save_safetensors(source, state, {})
    else:
        torch.save(state if form == "bare" else {form: state}, source)
    with pytest.raises(ValueError, match=r"--image-size: .* does not say of what size its pictures are; give it"):
        written(source, tmp_path / "out")
    meta = read_weights(written(source, tmp_path / "out", image_size=16, downsample_size=4)).meta
    whole = read_weights(files / "gpt.pt").meta
    assert all(meta[key] == whole[key] for key in ("kind", "model", "config", "image_size", "downsample_size"))


def test_a_published_file_s_name_says_its_size(files, tmp_path):
    torch.save({"model": torch.load(files / "gpt.pt")["model"]}, tmp_path / "c2i_T_256.pt")
    meta = read_weights(written(tmp_path / "c2i_T_256.pt", tmp_path / "out.pt")).meta
    assert (meta["image_size"], meta["downsample_size"], meta["config"]["block_size"]) == (256, 16, 256)


@pytest.mark.parametrize("name", ["VQ-4-tiny", "VQ-8-small"])
def test_a_published_tokenizer_is_recognised(name, tmp_path):
    model = filled(VQ_models[name](codebook_size=64))
    torch.save({"model": model.state_dict()}, tmp_path / "vq.pt")
    meta = read_weights(written(tmp_path / "vq.pt", tmp_path / "out.pt")).meta
    assert (meta["model"], meta["config"]["codebook_size"]) == (name, 64)
    assert identity(vq_hub.from_pretrained(tmp_path / "vq.pt", "cpu").model.state_dict()) == weights_in(
        tmp_path / "out.pt")  # fmt: skip


# ---- the Hub


@pytest.fixture(scope="module")
def folders(files, tmp_path_factory) -> Path:
    """Folders gpt and vq, as they lie on the Hub."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("gpt", "vq"):
        written(files / f"{name}.pt", root / name)
    return root


def test_from_pretrained_gives_the_model_and_its_papers(files, folders):
    gpt, vq = gpt_hub.from_pretrained(folders / "gpt", "cpu", "none"), vq_hub.from_pretrained(folders / "vq", "cpu")
    assert identity(gpt.model.state_dict()) == weights_in(files / "gpt.pt")
    assert identity(vq.model.state_dict()) == weights_in(files / "vq.pt")
    assert (gpt.name, gpt.image_size, gpt.downsample, gpt.class_names) == ("GPT-1M", 16, 4, NAMES)
    assert (vq.name, vq.image_size, vq.checksum) == ("VQ-4-tiny", 16, gpt.tokenizer["checksum"])
    assert gpt.trained == vq.trained == {"steps": 30, "epochs": 6.0}
    ema = gpt_hub.from_pretrained(files / "gpt.pt", "cpu", "bf16", use_ema=True).model.output.weight
    assert torch.equal(ema, read_weights(files / "gpt.pt", ("ema",)).state["output.weight"].bfloat16())


def test_a_training_run_takes_a_folder_of_the_hub_for_weights_alone(folders, files):
    state = read_state(folders / "gpt", "--gpt-ckpt")
    assert identity(state["model"]) == weights_in(files / "gpt.pt") and "optimizer" not in state


def code_of(card: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("name", ["gpt", "vq"])
def test_the_card_s_front_is_valid_and_its_code_runs(name, folders, expected):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folders / name / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "llamagen" and "llamagen" in card.data.tags
    for said in {"gpt": ("GPT-1M", "1.1M parameters, float32", "10: zero, one", "30 steps, 6 epochs"),
                 "vq": ("VQ-4-tiny", "4 x 4 pixels", "30 steps, 6 epochs")}[name]:  # fmt: skip
        assert said in card.text
    code, found = code_of(card.text, "python"), {}
    exec(code.replace(f"USER/{name}", str(folders / name)).replace("TOKENIZER", str(folders / "vq")), found)
    if name == "gpt":
        drawn = found["pipeline"].codes(found["pipeline"].labels([3, 9]), SAMPLING, seed=1)
        assert found["pictures"].shape == (2, 16, 16, 3) and drawn.shape == expected.shape
    else:
        assert found["codes"].shape == (1, 4, 4) and found["again"].shape == (1, 3, 16, 16)
    line = code_of(card.text, "bash").replace("\\\n", " ").split("python3 ")[1].split()
    parse(options_of(line[0]), line[1:])


def test_a_text_conditional_gpt_goes_there_and_back(tmp_path):
    write_gpt(tmp_path / "gpt.pt", TEXT_GPT, encoder={"name": "tiny", "checksum": "abc"})
    gpt = gpt_hub.from_pretrained(written(tmp_path / "gpt.pt", tmp_path / "out"), "cpu", "none")
    assert (gpt.model.config.model_type, gpt.encoder["name"]) == ("t2i", "tiny")
    assert identity(gpt.model.state_dict()) == weights_in(tmp_path / "gpt.pt")
    card = (tmp_path / "out/README.md").read_text()
    assert 'pipeline_tag: "text-to-image"' in card and "tiny, checksum abc" in card
    compile(code_of(card, "python"), "card", "exec")
    line = re.findall(r'"[^"]*"|\S+', code_of(card, "bash").replace("\\\n", " ").split("python3 ")[1])
    parsed = parse(options_of(line[0]), line[1:])
    assert parsed.gpt.cls_token_num == 120 and parsed.encoder.t5_model_type == "tiny"


def test_what_is_pushed_is_what_comes_back(files, tmp_path):
    gpt, vq = gpt_hub.from_pretrained(files / "gpt.pt", "cpu", "none"), vq_hub.from_pretrained(files / "vq.pt", "cpu")
    with connected(tmp_path) as server:
        assert gpt_hub.push_to_hub(gpt, "me/gpt", license="cc-by-4.0") == f"{server.url}/me/gpt"
        vq_hub.push_to_hub(vq, "me/vq", private=True)
        export(Export(str(files / "vq.pt"), str(tmp_path / "out"), push_to_hub="me/vq", use_ema=True))
        assert [asked.get("visibility") for asked in server.created] == [None, "private", None]
        assert set(server.repositories["me/gpt"]) == {"README.md", "config.json", "model.safetensors"}
        assert b'license: "cc-by-4.0"' in server.repositories["me/gpt"]["README.md"]
        back, other = gpt_hub.from_pretrained("me/gpt", "cpu", "none"), vq_hub.from_pretrained("me/vq", "cpu")
    assert identity(back.model.state_dict()) == identity(gpt.model.state_dict())
    assert replace(back, model=gpt.model) == gpt
    assert identity(other.model.state_dict()) == weights_in(files / "vq.pt", "ema")


def test_published_files_are_fetched_by_name(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": torch.load(files / "gpt.pt")["model"]}, tmp_path / "made.pt")
    with connected(tmp_path) as server:
        server.repositories[C2I] = {"c2i_B_256.pt": (tmp_path / "made.pt").read_bytes()}
        gpt = gpt_hub.from_pretrained("c2i_B_256.pt", "cpu", "none")
        assert (tmp_path / "pretrained_models/c2i_B_256.pt").is_file() and gpt.image_size == 256
        with pytest.raises(ValueError, match=r"c2i_B_255\.pt: not among the published files; did you mean c2i_B_256"):
            gpt_hub.from_pretrained("c2i_B_255.pt")


@pytest.mark.parametrize("name", ["./gpt", "runs/gpt.pt", "/nowhere/at/all", "a/b/c"])
def test_a_mistyped_path_is_not_asked_of_the_hub(name):
    with pytest.raises(ValueError, match=f"{re.escape(name)}: there is no such file or folder"):
        gpt_hub.from_pretrained(name, "cpu")


def test_an_average_that_is_not_there_is_not_replaced(tmp_path):
    files = write_files(tmp_path)
    for hub, name in ((gpt_hub, "gpt.pt"), (vq_hub, "vq.pt")):
        with pytest.raises(ValueError, match=rf"--use-ema: .*{name} holds no moving average"):
            hub.from_pretrained(files / name, "cpu", use_ema=True)


def test_what_the_hub_refuses_is_said_with_the_remedy(files, tmp_path, monkeypatch):
    with connected(tmp_path) as server:
        with pytest.raises(ValueError, match="me/none: neither a path of this machine nor a repository .*HF_TOKEN"):
            vq_hub.from_pretrained("me/none")
        server.repositories["me/text"] = {"README.md": b"# none here"}
        with pytest.raises(ValueError, match=r"me/text: the repository at .* has no model\.safetensors"):
            vq_hub.from_pretrained("me/text")
        vq = vq_hub.from_pretrained(files / "vq.pt", "cpu")
        server.repositories["me/public"] = {}
        with pytest.raises(ValueError, match="me/public: is there already, and public; nothing was sent"):
            vq_hub.push_to_hub(vq, "me/public", private=True)
        assert server.repositories["me/public"] == {}
        with pytest.raises(ValueError, match="me/a b: not the name of a repository; give USER/NAME"):
            vq_hub.push_to_hub(vq, "me/a b")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        said = r"--push-to-hub me/vq: could not be pushed \(.*401.*\): log in by .* is whole: `hf upload me/vq"
        with pytest.raises(OSError, match=said):
            written(files / "vq.pt", tmp_path / "out", push_to_hub="me/vq")
        assert weights_in(tmp_path / "out") == weights_in(files / "vq.pt")
    with connected(tmp_path / "other") as server:
        server.shutdown()
        server.server_close()
        with pytest.raises(OSError, match="me/vq: could not be pushed .*is there a network"):
            vq_hub.push_to_hub(vq, "me/vq")
        with pytest.raises(OSError, match="me/vq: no path of this machine, and the Hub could not be reached"):
            vq_hub.from_pretrained("me/vq")


# ---- what is refused, and what is left behind


@pytest.mark.parametrize("name, given, message", [
    ("there.pt", {}, r"--output .*there\.pt: is there already; give another name or remove it"),
    ("full", {}, r"--output .*full: is there already"),
    ("a.bin", {"format": "pt"}, r"--output .*a\.bin: --format pt is a file that ends in \.pt or \.pth"),
    ("a.pt", {"push_to_hub": "me/a"}, "--push-to-hub me/a: goes with --format hub, not pt"),
    ("a", {"push_to_hub": "a"}, "--push-to-hub a: give USER/NAME"),
    ("a.pt", {"ckpt": "full"}, "--ckpt .*full: a folder without weights; expected model.safetensors"),
    ("a.pt", {"ckpt": "nowhere.pt"}, "--ckpt .*nowhere.pt: there is no such file"),
    ("a.pt", {"ckpt": "net.safetensors"}, "--ckpt .*net.safetensors: holds a classifier; give the weights of a GPT"),
    ("a.pt", {"ckpt": "net.pt"}, "--ckpt .*net.pt: holds something else; give the weights of a GPT"),
    ("a.pt", {"image_size": 32}, "--image-size 32: .* was trained on pictures of 16 px"),
])  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(name, given, message, files, tmp_path):
    (tmp_path / "there.pt").write_bytes(b"kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("kept")
    state = {"weight": torch.ones(2)}
    save_safetensors(tmp_path / "net.safetensors", state, {"kind": "classifier"})
    torch.save(state, tmp_path / "net.pt")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    source = tmp_path / given.pop("ckpt") if "ckpt" in given else files / "gpt.pt"
    with pytest.raises(ValueError, match=message):
        written(source, tmp_path / name, **given)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


FULL_DISK = """
import resource, signal, sys
from autoregressive.export import export
from autoregressive.export_options import Export
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for name in ("out.pt", "out.safetensors", "out"):
    try:
        export(Export(sys.argv[1], sys.argv[2] + "/" + name))
    except OSError as error:
        print("said:", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_full_disk_leaves_nothing_half_written(files, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(files / "gpt.pt"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.stdout.count("said: ") == 3 and "File too large" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
