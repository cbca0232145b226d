"""Sampling: guidance, filtering, the noise, and that a picture is a function of (weights, seed, its number) alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import filled

from autoregressive.models.draw import SCHEDULES, Draw, Sampling, choose, filter_logits, guide, gumbel_noise, noise_keys
from autoregressive.models.generate import decode_codes, generate
from autoregressive.models.gpt import ModelArgs, Transformer
from autoregressive.models.mask import sequence_mask
from autoregressive.models.runners import EagerRunner
from golden.fill import integers, uniform

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = json.loads((GOLDEN / "gpt_configs.json").read_text())
EXPECTED = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "gpt.npz").items()}
GREEDY = [name for name in EXPECTED if "/greedy" in name]
FILTERS = [name for name in EXPECTED if name.startswith("filter/")]
CODES = torch.arange(96, dtype=torch.int32)


def tiny(name: str = "tiny_c2i") -> Transformer:
    return filled(Transformer(ModelArgs(**CONFIGS[name])))


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    valid = torch.arange(120) >= 120 - EXPECTED["tiny_t2i/caption_lengths"][:, None]
    return torch.from_numpy(uniform("captions", (3, 120, 24))) * valid[..., None], valid


def labels() -> torch.Tensor:
    return torch.from_numpy(integers("labels", 10, (3,)))


def decode(runner, cond, sampling, numbers=None, seed=5, valid=None, on_code=None, codes=16):
    numbers = torch.arange(len(cond)) if numbers is None else torch.tensor(numbers)
    return decode_codes(runner, cond, codes, sampling, seed, numbers, valid, on_code)


def slow_codes(model, cond, sampling: Sampling, guided: int, seed=5) -> torch.Tensor:
    """What decode_codes must give, by one whole uncached forward a code."""
    out = torch.zeros(len(cond), 0, dtype=torch.int64)
    for i in range(16):
        with torch.no_grad():
            logits = model(idx=out, cond_idx=cond)[0][:, -1]
            if i < guided:
                none = model(idx=out, cond_idx=model.null_condition(cond))[0][:, -1]
                logits = none + sampling.cfg_scale * (logits - none)
        kept = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        code = (kept + noise_of(seed, torch.arange(len(cond)), i, CODES)).argmax(-1)
        out = torch.cat([out, code[:, None]], dim=1)
    return out


# ---- parity


@pytest.mark.parametrize("key", GREEDY)
def test_greedy_codes_are_the_published_ones(key):
    name, scale, interval = re.fullmatch(r"(\w+)/greedy_cfg([\d.]+)(?:_interval(-?\d+))?", key).groups()
    cond, valid = captions() if name == "tiny_t2i" else (labels(), None)
    masks = None if valid is None else valid.float()
    found = generate(tiny(name), cond, 16, emb_masks=masks, cfg_scale=float(scale), cfg_interval=int(interval or -1),
                     temperature=1.0, top_k=0, top_p=1.0, sample_logits=False)  # fmt: skip
    assert found.dtype == torch.int32 and found.shape == (3, 16)
    assert torch.equal(found.long(), EXPECTED[key])


@pytest.mark.parametrize("key", FILTERS)
def test_filtering_is_the_published_one(key):
    top_k, top_p = re.fullmatch(r"filter/top_k(\d+)_top_p([\d.]+)", key).groups()
    logits = 5 * torch.from_numpy(uniform("filter", (4, 50)))
    found = filter_logits(logits, int(top_k), float(top_p)).softmax(-1)
    torch.testing.assert_close(found, EXPECTED[key], atol=1e-6, rtol=0)


def test_filtering_keeps_ties_and_never_drops_everything():
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert filter_logits(tied, top_k=2).isfinite().tolist() == [[True, True, True, False]]
    assert filter_logits(tied, top_p=1e-6).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(filter_logits(tied, top_k=9), tied)


def test_guidance_goes_from_none_through_cond():
    cond, none = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    both = torch.cat([cond, none])
    assert torch.equal(guide(both, 1.0), cond)
    assert torch.equal(guide(both, 0.0), none)
    assert torch.equal(guide(both, 3.0), none + 3 * (cond - none))


# ---- the noise


def noise_of(seed, pictures, position, vocabulary) -> torch.Tensor:
    return gumbel_noise(noise_keys(seed, pictures, torch.tensor(position)), vocabulary)


def uniforms(noise: torch.Tensor) -> np.ndarray:
    """Gumbel noise through its own distribution function."""
    return np.exp(-np.exp(-noise.double().numpy().ravel()))


def kolmogorov(sample: np.ndarray) -> float:
    """sqrt(n) times the largest gap to the uniform distribution; 1.95 is passed by chance once in 1,000."""
    ordered, n = np.sort(sample), len(sample)
    steps = np.arange(1, n + 1) / n
    return np.sqrt(n) * max((steps - ordered).max(), (ordered - steps + 1 / n).max())


@pytest.mark.parametrize("axis", ["codes", "pictures", "positions", "seeds"])
def test_noise_is_gumbel_along_every_axis(axis):
    n, one = 20_000, torch.tensor([7])
    first = torch.zeros(1, dtype=torch.int32)
    if axis == "codes":
        noise = noise_of(1, one, 3, torch.arange(n, dtype=torch.int32))
    elif axis == "pictures":
        noise = noise_of(1, torch.arange(n), 3, first)
    elif axis == "positions":
        noise = torch.cat([noise_of(1, one, i, first) for i in range(n // 4)])
    else:
        noise = torch.cat([noise_of(i, one, 3, first) for i in range(n // 4)])
    assert noise.isfinite().all()
    assert kolmogorov(uniforms(noise)) < 1.95


def test_noise_is_a_hash_that_no_change_of_the_code_may_change():
    """Seeds stand beside published pictures. In plain integers: lowbias32 over the words, then over the codes."""

    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ x >> shift) * factor & 0xFFFFFFFF
        return x ^ x >> 16

    seed, pictures, positions = -3 << 40, [0, 5, 2**40 + 1], [0, 575]
    found = noise_of(seed, torch.tensor(pictures)[:, None], positions, CODES)
    assert found.shape == (3, 2, 96) and found.dtype == torch.float32
    for i, picture in enumerate(pictures):
        for j, position in enumerate(positions):
            key = 0
            for word in (seed, seed >> 32, position, picture, picture >> 32):
                key = mix(key ^ word & 0xFFFFFFFF)
            keyed = [mix(code * 0x9E3779B9 & 0xFFFFFFFF ^ key) for code in range(96)]
            bits = [mix(one + key & 0xFFFFFFFF) & 0x7FFFFFFF for one in keyed]
            uniform = (torch.tensor(bits).double() + 0.5) * 2**-31
            torch.testing.assert_close(found[i, j].double(), -(-(-uniform).log1p()).log(), atol=1e-4, rtol=1e-4)


def test_the_largest_noise_is_fine_grained():
    """It decides the code: of 4 million draws the largest 256 or so would meet one another on a coarser grid."""
    vocabulary = torch.arange(16384, dtype=torch.int32)
    noise = torch.cat([noise_of(0, torch.arange(i, i + 64), 0, vocabulary) for i in range(0, 256, 64)])
    largest = noise[noise > -np.log(-np.log1p(-(2.0**-14)))]
    assert 180 < len(largest) < 340 and len(largest.unique()) >= len(largest) - 4


def test_noise_of_neighbours_is_independent():
    vocabulary, n = torch.arange(16384, dtype=torch.int32), 16384
    rows = [
        noise_of(seed, torch.tensor([picture]), position, vocabulary)[0]
        for seed, picture, position in [
            (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1),
            (1 << 31, 0, 0), (1 << 40, 0, 0), (0, 1 << 31, 0), (0, 1 << 33, 0),
        ]
    ]  # fmt: skip
    ranks = np.corrcoef(np.stack([uniforms(row) for row in rows]))
    assert np.abs(ranks - np.eye(len(rows))).max() < 4 / np.sqrt(n)
    u = uniforms(rows[0])
    for lag in (1, 2, 16, 256):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / np.sqrt(n)


def test_codes_are_drawn_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -2.0, -4.0])
    n = 40_000
    drawn = choose(logits, noise_keys(11, torch.arange(n), torch.tensor(0)), torch.arange(8, dtype=torch.int32))
    counted, expected = torch.bincount(drawn, minlength=8).double(), n * logits.double().softmax(-1)
    assert ((counted - expected) ** 2 / expected).sum() < 24.3  # chi-square, 7 degrees of freedom, once in 1,000


def test_temperature_sharpens_and_zero_is_greedy():
    logits = torch.randn(500, 96, generator=torch.Generator().manual_seed(0))
    top, number = logits.argmax(-1), torch.tensor([0])

    def drawn(sampling):
        return Draw(sampling, 1, 0, torch.arange(500), 96)(logits[:, None], number)[:, 0]

    chosen = [drawn(Sampling(temperature=t)) for t in (2, 1, 0.3, 0)]
    shares = [(codes == top).float().mean().item() for codes in chosen]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert torch.equal(drawn(Sampling(greedy=True)), top)


def test_a_picture_s_noise_is_the_same_in_any_batch():
    together = noise_of(9, torch.tensor([4, 1000, 2**40]), 6, CODES)
    for row, picture in zip(together, (4, 1000, 2**40)):
        assert torch.equal(noise_of(9, torch.tensor([picture]), 6, CODES)[0], row)


# ---- the decode loop


@pytest.mark.parametrize("interval, guided", [(-1, 16), (3, 5), (0, 2), (40, 16)])
def test_cached_sampling_is_uncached_sampling_with_guidance_in_its_interval(interval, guided):
    model = tiny()
    sampling = Sampling(cfg_scale=2.5, cfg_interval=interval, temperature=0.9, top_k=40, top_p=0.95)
    rows = []

    class Counting(EagerRunner):
        def start(self, cond, *rest):
            rows.append(len(cond))
            return super().start(cond, *rest)

        def decode(self, codes, *rest):
            rows.append(len(codes))
            return super().decode(codes, *rest)

    assert torch.equal(decode(Counting(model), labels(), sampling), slow_codes(model, labels(), sampling, guided))
    assert rows == [6] * guided + [3] * (16 - guided), (
        "the second branch is computed while guidance lasts, and no longer"
    )


def test_without_guidance_there_is_no_second_branch():
    model, sampling = tiny(), Sampling(cfg_scale=1.0)
    runner = EagerRunner(model)
    seen = []
    found = decode(runner, labels(), sampling, on_code=lambda i, out: seen.append(len(runner.cache.keys[0])))
    assert set(seen) == {3}
    assert torch.equal(found, slow_codes(model, labels(), sampling, 0))


@pytest.mark.parametrize("name", ["tiny_c2i", "tiny_gqa", "tiny_t2i"])
def test_a_picture_does_not_depend_on_its_batch(name):
    model, sampling = tiny(name), Sampling(cfg_scale=2.0, cfg_interval=6, top_k=50)
    cond, valid = captions() if name == "tiny_t2i" else (labels(), None)
    together = decode(EagerRunner(model), cond, sampling, [10, 20, 30], valid=valid)
    for row, number in enumerate((10, 20, 30)):
        alone = decode(
            EagerRunner(model), cond[[row]], sampling, [number], valid=None if valid is None else valid[[row]]
        )
        assert torch.equal(alone[0], together[row])
    turned = decode(
        EagerRunner(model), cond.flip(0), sampling, [30, 20, 10], valid=None if valid is None else valid.flip(0)
    )
    assert torch.equal(turned.flip(0), together)


def test_captions_of_other_lengths_beside_it_change_no_picture():
    """Nor the number of rows that their padding takes; a batch of one length is decoded without a mask."""
    model, sampling = tiny("tiny_t2i"), Sampling(cfg_scale=2.0, cfg_interval=6, top_k=50)
    cond, valid = captions()
    together, lengths = decode(EagerRunner(model), cond, sampling, [10, 20, 30], valid=valid), []
    for row, number in enumerate((10, 20, 30)):
        runner, length = EagerRunner(model), int(valid[row].sum())
        short = cond[[row], -length:], valid[[row], -length:]
        seen = decode(runner, short[0], sampling, [number], valid=short[1],
                      on_code=lambda i, out, r=runner: lengths.append((r.cache.keys[0].shape[2], r.keys)))  # fmt: skip
        assert torch.equal(seen[0], together[row])
        assert {size for size, _ in lengths[-16:]} == {length + 15} and all(keys is None for _, keys in lengths)


def test_a_negative_caption_is_the_other_branch_of_guidance():
    model, sampling = tiny("tiny_t2i"), Sampling(cfg_scale=3.0, cfg_interval=6, greedy=True)
    (cond, valid), pictures = captions(), torch.arange(3)
    other, other_valid = cond.flip(0), valid.flip(0)
    found = decode_codes(EagerRunner(model), cond, 16, sampling, 5, pictures, valid, negative=(other, other_valid))
    out = torch.zeros(3, 0, dtype=torch.int64)
    for i in range(16):
        both = [model(idx=out, cond_idx=c, mask=sequence_mask(v, 120 + i))[0][:, -1]
                for c, v in ((cond, valid), (other, other_valid))]  # fmt: skip
        logits = guide(torch.cat(both), 3.0) if i < 8 else both[0]
        out = torch.cat([out, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, out)
    assert not torch.equal(found, decode_codes(EagerRunner(model), cond, 16, sampling, 5, pictures, valid))


def test_seed_and_number_both_matter():
    runner, same = EagerRunner(tiny()), torch.full((4,), 3)
    codes = decode(runner, same, Sampling())
    assert len({tuple(row) for row in codes.tolist()}) == 4
    assert not torch.equal(decode(runner, same, Sampling(), seed=6), codes)
    assert torch.equal(decode(runner, same, Sampling()), codes)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_end_at_the_scale(name):
    sampling = Sampling(cfg_scale=4.0, cfg_schedule=name)
    scales = [sampling.scale(i, 16) for i in range(16)]
    assert scales == sorted(scales) and scales[-1] == pytest.approx(4)
    assert scales[0] == pytest.approx(4 if name == "constant" else 1)
    if name == "linear":
        assert np.diff(scales) == pytest.approx(np.full(15, 0.2))
    if name == "power-cosine":
        assert sampling.scale(8, 17) == pytest.approx(1 + 3 * (1 - np.cos(np.pi * 0.5**2.75)) / 2)


@pytest.mark.parametrize(
    "wrong",
    [dict(cfg_schedule="cosine"), dict(temperature=-1), dict(top_k=-1), dict(top_p=0), dict(top_p=1.5)],
)
def test_impossible_sampling_is_refused_by_the_flag_s_name(wrong):
    flag = "--" + next(iter(wrong)).replace("_", "-")
    with pytest.raises(ValueError, match=flag):
        Sampling(**wrong)


def test_more_codes_than_the_model_has_positions_are_refused():
    with pytest.raises(ValueError, match="1 to 16"):
        decode(EagerRunner(tiny()), labels(), Sampling(), codes=17)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_runner_is_usable_after_sampling_was_interrupted(error):
    runner, sampling = EagerRunner(tiny()), Sampling(cfg_scale=2.0)
    expected = decode(runner, labels(), sampling)

    def stop(i, out):
        if i == 5:
            raise error

    with pytest.raises(error):
        decode(runner, labels(), sampling, on_code=stop)
    assert runner.cache is None, "the memory is given back"
    assert torch.equal(decode(runner, labels(), sampling), expected)


def test_on_code_sees_each_code_as_it_is_chosen():
    seen = []
    codes = decode(EagerRunner(tiny()), labels(), Sampling(), on_code=lambda i, out: seen.append(out[:, i].clone()))
    assert torch.equal(torch.stack(seen, dim=1), codes)


# ---- generate(), the published call


def test_generate_without_a_seed_follows_torch_s_generator():
    model = tiny()

    def codes(seed):
        torch.manual_seed(seed)
        return generate(model, labels(), 16, cfg_scale=1.5, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True)

    assert torch.equal(codes(1), codes(1)) and not torch.equal(codes(1), codes(2))


def test_generate_leaves_the_mode_of_the_model_alone():
    model = tiny()
    expected = generate(model, labels(), 16, seed=3)
    assert torch.equal(generate(model.train(), labels(), 16, seed=3), expected), "dropout is off while sampling"
    assert model.training


def test_a_caption_s_padding_may_stand_on_either_side_and_hold_anything():
    """Codes attend to its tokens alike. Code 0 follows the last of the P rows: a token only if padding stands left."""
    model = tiny("tiny_t2i")
    left, valid = captions()
    order = valid.int().argsort(dim=1, descending=True, stable=True)
    right, valid_right = left.gather(1, order[..., None].expand_as(left)), valid.gather(1, order)
    codes = torch.from_numpy(integers("tokens", 96, (3, 16)))
    logits = []
    for cond, mask in ((left, valid), (right, valid_right), (left + ~valid[..., None] * 7.0, valid)):
        runner = EagerRunner(model)
        with torch.inference_mode():
            start = runner.start(cond, 16, mask)
            logits.append(torch.stack([start, *(runner.step(codes[:, i]) for i in range(15))], dim=1))
    torch.testing.assert_close(logits[1][:, 1:], logits[0][:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=0)
    assert generate(model, right, 16, emb_masks=valid_right.int(), cfg_scale=3.0, seed=0).shape == (3, 16)
