"""Every way to attend computes the same, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

import autoregressive.models.attend as attend

CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()
PADDED = CAUSAL & (torch.arange(12) >= torch.tensor([0, 3, 7])[:, None, None, None]) | torch.eye(12, dtype=torch.bool)


def inputs(heads: int = 4, groups: int = 4, queries: int = 12, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    made = torch.randn(3, queries, heads, 16), torch.randn(3, 12, groups, 16), torch.randn(3, 12, groups, 16)
    return [each.to(dtype).transpose(1, 2).requires_grad_() for each in made]


def answers(way, q, k, v, **options) -> list[torch.Tensor]:
    out = way(q, k, v, **options)
    slopes = torch.autograd.grad((out * torch.linspace(-1, 1, 16)).sum(), (q, k, v))
    return [out.detach(), *slopes]


@pytest.mark.parametrize("mask, causal", [(None, True), (PADDED, False), (CAUSAL[None, None], False), (None, False)])
@pytest.mark.parametrize("groups", [4, 2])
def test_short_sequences_train_as_the_fused_kernel_does(groups, mask, causal, monkeypatch):
    calls = []
    short = attend.attend_short
    monkeypatch.setattr(attend, "attend_short", lambda *given: calls.append(1) or short(*given))
    given = inputs(groups=groups)
    found = answers(attend.attention, *given, mask=mask, causal=causal)
    expected = answers(F.scaled_dot_product_attention, *given, attn_mask=mask, is_causal=causal, enable_gqa=groups != 4)
    for one, two in zip(found, expected):
        torch.testing.assert_close(one, two, atol=2e-6, rtol=1e-5)
    assert len(calls) == (groups == 4)


def test_in_bf16_short_sequences_lose_what_bf16_loses():
    exact = answers(F.scaled_dot_product_attention, *inputs(), is_causal=True)
    for way in (attend.attention, F.scaled_dot_product_attention):
        options = {"mask": None, "causal": True} if way is attend.attention else {"is_causal": True}
        found = answers(way, *inputs(dtype=torch.bfloat16), **options)
        for one, two in zip(found, exact):
            assert one.dtype == torch.bfloat16 and (one.float() - two).norm() < 0.01 * two.norm()


@pytest.mark.parametrize("groups", [4, 2])
def test_one_query_attends_as_many_do(groups):
    q, k, v = (each.detach() for each in inputs(groups=groups, queries=1))
    mask = torch.arange(12) >= torch.tensor([0, 3, 7])[:, None, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups != 4)
    torch.testing.assert_close(attend.attention(q, k, v, mask, causal=False), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 5, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_heads_that_are_widened_by_zeros_attend_alike(queries, causal):
    q, k, v = (each.detach() for each in inputs(groups=2, queries=queries))
    k, v = (each[:, :, : queries if causal else 12] for each in (k, v))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    found = attend.attention(q, F.pad(k, (0, 3)), F.pad(v, (0, 3)), None, causal)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("gaps", [True, False])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("masked", ["no", "all alike", "each row", "added"])
@pytest.mark.parametrize("queries", [1, 5])
def test_few_queries_attend_alike_with_kernels_for_bf16_and_without(queries, masked, kernels, gaps, monkeypatch):
    """Without them, or with gaps, however many rows are converted to float32 at once."""
    products, few = [], torch.Tensor.__matmul__
    monkeypatch.setattr(attend, "multiplies_bf16", lambda: kernels)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: products.append(a.dtype) or few(a, b))
    q, k, v = (each.detach() for each in inputs(groups=2, queries=queries, dtype=torch.bfloat16))
    k, v = (k, v) if gaps else (k.contiguous(), v.contiguous())
    seen = torch.arange(12) <= 12 - queries + torch.arange(queries)[:, None]  # [T, S]
    if masked == "each row":
        seen = seen & (torch.arange(12) >= torch.tensor([0, 3, 5])[:, None, None, None])
    mask = {"no": None, "all alike": seen[None, None] if masked == "all alike" else None, "each row": seen}.get(masked)
    if masked == "added":
        mask = torch.zeros(1, 1, queries, 12).masked_fill(~seen, float("-inf"))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, enable_gqa=True)
    for rows in (1, 2, 3):
        monkeypatch.setattr(attend, "WIDE", rows * k[0].numel())
        found = attend.attention(q, k, v, mask, causal=False)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, atol=0.01, rtol=0.01)
    whole = kernels and not gaps
    assert set(products) == {torch.bfloat16 if whole else torch.float32}
    assert len(products) == 2 * 3 * (1 if whole else 2)  # 3 + 2 + 1 parts


@pytest.mark.parametrize("sharp", [1, 10])
def test_scores_that_are_rounded_to_bf16_cost_little(sharp):
    torch.manual_seed(0)
    q, k, v = (torch.randn(8, 4, length, 64).bfloat16() for length in (1, 256, 256))
    exact = F.scaled_dot_product_attention(sharp * q.float(), k.float(), v.float())
    found = attend.attention(sharp * q, k, v, None, causal=False)
    assert (found.float() - exact).norm() < 0.02 * exact.norm()


def test_dropped_weights_are_scaled_up():
    q, k, v = inputs()
    torch.manual_seed(1)
    out = torch.stack([attend.attention(q, k, torch.ones_like(v), None, True, dropout=0.5) for _ in range(200)])
    assert float(out.std()) > 0.3 and float(out.mean()) == pytest.approx(1, abs=0.05)
