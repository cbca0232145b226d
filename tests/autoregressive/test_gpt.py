"""The GPT is the published one: names, shapes, logits, losses; what is random is so while training only."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from support import filled

from autoregressive.models.gpt import GPT_CONFIGS, DropPath, GPT_models, ModelArgs, Transformer, build_gpt, gpt_config
from autoregressive.models.mask import key_mask, sequence_mask, trimmed
from autoregressive.models.runners import EagerRunner
from golden.fill import integers, uniform

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = json.loads((GOLDEN / "gpt_configs.json").read_text())
NAMES = json.loads((GOLDEN / "parameter_names.json").read_text())
EXPECTED = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "gpt.npz").items()}
PUBLISHED = [name for name in NAMES["parameters"] if name.startswith("GPT")]
PLAIN = dict(token_dropout_p=0.0, resid_dropout_p=0.0, ffn_dropout_p=0.0, class_dropout_prob=0.0)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def tiny(name: str, **overrides) -> Transformer:
    return filled(Transformer(ModelArgs(**{**CONFIGS[name], **overrides})))


def condition(name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels, or caption features with the rows that hold a token."""
    if name != "tiny_t2i":
        return torch.from_numpy(integers("labels", 10, (3,))), None
    valid = torch.arange(120) >= 120 - EXPECTED["tiny_t2i/caption_lengths"][:, None]
    return torch.from_numpy(uniform("captions", (3, 120, 24))) * valid[..., None], valid


def tokens(vocabulary: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(integers("tokens", vocabulary, shape))


def cached_logits(model: Transformer, cond, codes: torch.Tensor, valid=None) -> torch.Tensor:
    """Logits [B, n, C] of `codes` [B, n], reached one code at a time."""
    runner = EagerRunner(model)
    with torch.inference_mode():
        start = runner.start(cond, codes.shape[1], valid)
        return torch.stack([start, *(runner.step(codes[:, i]) for i in range(codes.shape[1] - 1))], dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_logits_and_loss_are_the_published_ones(name):
    model, codes = tiny(name), tokens(96, (3, 16))
    cond, valid = condition(name)
    counted = None if valid is None else torch.tensor([1, 1, 0])
    mask = None if valid is None else sequence_mask(valid, 120 + 15)
    logits, loss = model(idx=codes[:, :-1], cond_idx=cond, targets=codes, mask=mask, valid=counted)
    close(logits, EXPECTED[f"{name}/train_logits"])
    close(loss, EXPECTED[f"{name}/loss"])
    close(cached_logits(model, cond, codes, valid), EXPECTED.get(f"{name}/cached_logits", logits))


def test_positions_are_the_published_ones():
    close(tiny("tiny_c2i").rotary(torch.device("cpu")), EXPECTED["tiny_c2i/rope"], 1e-6)


@pytest.mark.parametrize("name, size, grid", [("GPT-B", 256, 16), ("GPT-L", 384, 24)])
def test_published_sizes_compute_the_published_logits(name, size, grid):
    with torch.device("meta"):
        model = GPT_models[name](block_size=grid**2, vocab_size=16384, num_classes=1000, cls_token_num=1,
                                 model_type="c2i")  # fmt: skip
    filled(model)
    label, codes = torch.tensor([207]), tokens(16384, (1, grid**2))
    with torch.inference_mode():
        logits, loss = model(idx=codes[:, :-1], cond_idx=label, targets=codes)
    close(loss, EXPECTED[f"{name}-{size}/loss"])
    close(logits[:, EXPECTED[f"{name}-{size}/positions"], ::64], EXPECTED[f"{name}-{size}/train_logits"])
    if name == "GPT-B":
        close(cached_logits(model, label, codes[:, :24])[..., ::64], EXPECTED["GPT-B-256/cached_logits_first24"])


@pytest.mark.parametrize("key", PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(key):
    name, kind = key.split("/")
    with torch.device("meta"):
        model = GPT_models[name](model_type=kind, cls_token_num=1 if kind == "c2i" else 120)
    expected = {}
    for pattern, shape in NAMES[key].items():
        head, braces, tail = pattern.partition("{0..")
        if not braces:
            expected[pattern] = tuple(shape)
        else:
            last, tail = tail.split("}", 1)
            expected |= {f"{head}{i}{tail}": tuple(shape) for i in range(int(last) + 1)}
    assert {parameter: tuple(value.shape) for parameter, value in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == NAMES["parameters"][key]


@pytest.mark.parametrize("name, millions", [("GPT-1M", 1), ("GPT-5M", 5), ("GPT-25M", 25)])
def test_small_presets_have_the_size_of_their_name(name, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in GPT_models[name]().parameters())
    assert 0.75 * millions < count / 1e6 < 1.25 * millions


def test_every_published_size_is_in_the_table():
    assert {key.split("/")[0] for key in PUBLISHED} < set(GPT_CONFIGS)
    with pytest.raises(ValueError, match="--gpt-model GPT-Z.*GPT-XXL"):
        build_gpt("GPT-Z")


def test_a_config_rebuilds_its_model():
    model = tiny("tiny_gqa")
    again = Transformer(ModelArgs(**json.loads(json.dumps(gpt_config(model)))))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_initial_weights_are_small_normals_and_the_first_loss_is_uniform():
    torch.manual_seed(0)
    model = Transformer(ModelArgs(**CONFIGS["tiny_c2i"]))
    codes, (labels, _) = tokens(96, (3, 16)), condition("tiny_c2i")
    assert (model.output.weight == 0).all()
    first, last = model.layers[0], model.layers[-1]
    for value in (model.tok_embeddings.weight, first.attention.wqkv.weight, last.feed_forward.w2.weight):
        assert abs(value.std().item() - 0.02) < 0.001
    _, loss = model(idx=codes[:, :-1], cond_idx=labels, targets=codes)
    assert loss.item() == pytest.approx(np.log(96), abs=1e-5)


def test_a_code_does_not_see_those_after_it():
    model, codes = tiny("tiny_c2i"), tokens(96, (3, 16))
    labels, _ = condition("tiny_c2i")
    before, _ = model(idx=codes[:, :-1], cond_idx=labels)
    changed = codes.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 96
    after, _ = model(idx=changed[:, :-1], cond_idx=labels)
    close(after[:, :9], before[:, :9], 1e-6)
    assert (after[:, 9:] - before[:, 9:]).abs().amax(-1).min() > 1e-3


def test_the_mask_is_causal_without_padding_and_never_hides_a_position_from_itself():
    valid = torch.tensor([[False, True, True], [True, False, False]])
    mask, last = sequence_mask(valid, 5), key_mask(valid, 5)
    for b, row, column in product(range(2), range(5), range(5)):
        seen = column >= 3 or bool(valid[b, column])
        assert mask[b, 0, row, column] == ((seen and column <= row) or column == row)
    assert torch.equal(last[:, 0], mask[:, 0, -1:]), "a code after all of them sees what the last row does"


def test_what_stands_in_a_caption_s_padding_does_not_matter():
    model, codes = tiny("tiny_t2i"), tokens(96, (3, 16))
    captions, valid = condition("tiny_t2i")
    mask = sequence_mask(valid, 135)
    noisy = torch.where(valid[..., None], captions, torch.randn(captions.shape))
    clean, _ = model(idx=codes[:, :-1], cond_idx=captions, mask=mask)
    other, _ = model(idx=codes[:, :-1], cond_idx=noisy, mask=mask)
    close(other[:, 1:], clean[:, 1:], 1e-5)


def test_rows_that_no_caption_uses_may_be_left_out():
    """Condition positions carry no rotation, so what stands before a caption does not count: exact, and most of a
    batch's 120 rows. In training too: gradients are the same."""
    captions, valid = condition("tiny_t2i")
    captions, valid = captions[~valid.all(1)], valid[~valid.all(1)]
    codes, drop, found = tokens(96, (len(captions), 16)), torch.arange(len(captions)) == 1, []
    assert len(valid) > 1 and valid.sum(1).unique().numel() > 1, "captions of several lengths, all below 120"
    for cond, rows in ((captions, valid), trimmed(captions, valid)):
        model, mask = tiny("tiny_t2i", **PLAIN).train(), sequence_mask(rows, rows.shape[1] + 15)
        logits, loss = model(idx=codes[:, :-1], cond_idx=cond, targets=codes, mask=mask, drop=drop)
        loss.backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    assert cond.shape[1] == int(valid.sum(1).max()) == rows.shape[1] < 120
    for whole, short in zip(*found, strict=True):
        close(short, whole, 1e-5)


def test_captions_of_one_length_need_no_mask():
    captions, valid = condition("tiny_t2i")
    one, held = captions[[2]], valid[[2]]
    short, rows = trimmed(one, held)
    assert rows is None and torch.equal(short, one[:, held[0]]) and short.shape[1] < 120
    model, codes = tiny("tiny_t2i"), tokens(96, (1, 16))
    whole, _ = model(idx=codes[:, :-1], cond_idx=one, mask=sequence_mask(held, 135))
    close(model(idx=codes[:, :-1], cond_idx=short)[0], whole, 1e-5)
    nothing, rows = trimmed(captions, torch.zeros_like(valid))
    assert nothing.shape[1] == 1 and not rows.any(), "a row is left to predict the first code from"


def test_drop_replaces_exactly_the_chosen_conditions():
    for name in ("tiny_c2i", "tiny_t2i"):
        model, codes = tiny(name), tokens(96, (3, 16))
        cond, _ = condition(name)
        drop = torch.tensor([True, False, True])
        dropped, _ = model(idx=codes[:, :-1], cond_idx=cond, drop=drop)
        plain, _ = model(idx=codes[:, :-1], cond_idx=cond)
        none, _ = model(idx=codes[:, :-1], cond_idx=model.null_condition(cond))
        close(dropped, torch.where(drop[:, None, None], none, plain), 1e-6)
        assert (none - plain).abs().max() > 1e-2


def test_conditions_are_dropped_while_training_at_their_rate():
    model = tiny("tiny_c2i", **{**PLAIN, "class_dropout_prob": 0.1}).train()
    labels = torch.full((2000,), 3)
    torch.manual_seed(0)
    with torch.no_grad():
        logits, _ = model(idx=torch.zeros(2000, 0, dtype=torch.int64), cond_idx=labels)
        none, _ = model.eval()(idx=torch.zeros(1, 0, dtype=torch.int64), cond_idx=torch.tensor([10]))
    share = ((logits - none).abs().amax((1, 2)) < 1e-5).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.03)
    assert torch.equal(*(model(idx=tokens(96, (3, 15)), cond_idx=labels[:3])[0] for _ in range(2)))


DROPOUTS = ["token_dropout_p", "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate"]


@pytest.mark.parametrize("part", DROPOUTS)
def test_each_dropout_acts_while_training_only(part):
    model = tiny("tiny_c2i", **{**PLAIN, part: 0.5})
    codes, (labels, _) = tokens(96, (3, 15)), condition("tiny_c2i")
    plain, _ = tiny("tiny_c2i", **PLAIN).train()(idx=codes, cond_idx=labels)
    close(model(idx=codes, cond_idx=labels)[0], plain, 1e-5)
    model.train()
    first, second = (model(idx=codes, cond_idx=labels)[0] for _ in range(2))
    assert (first - second).abs().max() > 1e-3


def test_drop_path_drops_whole_samples_keeps_the_mean_and_rises_with_depth():
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 3, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    model = Transformer(ModelArgs(**{**CONFIGS["tiny_c2i"], "drop_path_rate": 0.2}))
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.1, 0.2])


def test_the_loss_counts_valid_pictures_only_and_is_0_without_any():
    model, codes = tiny("tiny_c2i"), tokens(96, (3, 16))
    labels, _ = condition("tiny_c2i")

    def loss(rows=slice(None), valid=None):
        return model(idx=codes[rows, :-1], cond_idx=labels[rows], targets=codes[rows], valid=valid)[1]

    close(loss(valid=torch.tensor([1, 0, 1])), (loss([0]) + loss([2])) / 2, 1e-5)
    assert loss(valid=torch.zeros(3, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        dict(model_type="i2t"),
        dict(cls_token_num=2),
        dict(n_head=6),
        dict(n_head=32),  # heads 2 wide: no room for two coordinates
        dict(n_kv_head=3),
        dict(block_size=17),
    ],
)
def test_arguments_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} |dim 64"):
        ModelArgs(**{**CONFIGS["tiny_c2i"], **wrong})
