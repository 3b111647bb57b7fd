import pytest
import reference
import torch

from fopru import significance
from fopru.significance import attention_scores, wider


def dense(query, key, scaling, p, scores):
    logits = (query.double() * scaling) @ key.double().transpose(-1, -2)
    maps = logits.softmax(-1) if scores == "probabilities" else logits
    queries, keys = (x.double().transpose(1, 2).flatten(2) for x in (query, key))  # (tiles, T, h d)
    wide = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5).softmax(-1)
    return {
        "received_wide": wide[:, p:, p:].mean(1),
        "cls_wide": wide[:, 0, p:],
        "received": maps[:, :, p:, p:].mean((1, 2)),
        "given": maps[:, :, p:, p:].mean((1, 3)),
        "cls": maps[:, :, 0, p:].mean(1),
    }


@pytest.mark.parametrize("scores", significance.SCORES)
@pytest.mark.parametrize("block", [1, 7, 10**9])
def test_streamed_scores_equal_dense_float64(monkeypatch, scores, block):
    monkeypatch.setattr(significance, "BLOCK_ELEMENTS", block * 3 * 41)
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 41, 8), torch.randn(2, 3, 41, 8)
    found = attention_scores(query, key, 0.5, 1, significance.AXES, scores)
    assert found.keys() == set(significance.AXES)
    for axis, expected in dense(query, key, 0.5, 1, scores).items():
        torch.testing.assert_close(found[axis].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("axis", significance.AXES)
def test_one_axis_alone_is_the_same(axis):
    torch.manual_seed(1)
    query, key = torch.randn(1, 2, 17, 4), torch.randn(1, 2, 17, 4)
    together = attention_scores(query, key, 0.5, 1, significance.AXES)
    alone = attention_scores(query, key, 0.5, 1, {axis})
    assert alone.keys() == {axis}
    assert torch.equal(alone[axis], together[axis])


def test_half_precision_queries_are_scored_in_float32():
    torch.manual_seed(2)
    query, key = (torch.randn(1, 2, 33, 8).bfloat16() for _ in range(2))
    found = attention_scores(query, key, 0.35, 0, {"received"})["received"]
    assert found.dtype == torch.float32
    expected = dense(query, key, 0.35, 0, "probabilities")["received"]
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-5)


def test_cls_scores_need_a_cls_token():
    with pytest.raises(ValueError, match="'cls'.*no CLS token"):
        attention_scores(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 1.0, 0, {"cls"})


def test_given_is_nearly_constant_on_probabilities_so_received_wins():
    torch.manual_seed(3)
    query, key = torch.randn(1, 4, 65, 16), torch.randn(1, 4, 65, 16)
    scores = attention_scores(query, key, 0.25, 0, {"received", "given"})
    received, given = scores["received"][0], scores["given"][0]
    torch.testing.assert_close(given, torch.full_like(given, 1 / 65))
    assert torch.equal(wider(received, given, torch.ones(65, dtype=torch.bool)), received)


def test_wider_takes_the_larger_variance_and_does_not_count_newlines():
    flat, wide = torch.tensor([1.0, 1, 1, 1]), torch.tensor([0.0, 2, 0, 2])
    everything = torch.ones(4, dtype=torch.bool)
    assert torch.equal(wider(flat, wide, everything), wide)
    assert torch.equal(wider(wide, flat, everything), wide)
    outlier = torch.tensor([1.0, 1, 1, 99])  # varies only at the last token, a newline
    assert torch.equal(wider(outlier, wide, torch.tensor([True, True, True, False])), wide)


@pytest.mark.slow
def test_no_tensor_comes_near_the_attention_map():
    heads, length = 16, 16384
    query, key = torch.randn(1, heads, length, 64), torch.randn(1, heads, length, 64)
    with reference.LargestTensor() as made:
        attention_scores(query, key, 0.125, 0, {"received", "given"})
    # Fewer than five of these live at a time, so together they stay below 5 % of the map.
    assert 0 < made.elements <= 0.01 * heads * length**2


@pytest.mark.parametrize("scores", significance.SCORES)
def test_padding_has_no_share_in_any_average(scores):
    """Three patches are padding, in the middle and at the end: the others score as if alone."""
    torch.manual_seed(3)
    query, key = torch.randn(2, 1, 4, 12, 8)
    there = torch.ones(1, 12, dtype=torch.bool)
    there[0, [5, 10, 11]] = False
    axes = set(significance.AXES) - (set() if scores == "probabilities" else {"cls_wide"})
    found = attention_scores(query, key, 0.5, 1, axes, scores, visible=there)
    cut = attention_scores(query[:, :, there[0]], key[:, :, there[0]], 0.5, 1, axes, scores)
    patches = there[0, 1:]
    for axis in axes:
        torch.testing.assert_close(found[axis][:, patches], cut[axis])
        assert (found[axis][:, ~patches] == (0 if scores == "probabilities" else -torch.inf)).all()
