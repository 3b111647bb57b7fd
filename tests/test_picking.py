"""Index arithmetic: ties that exact arithmetic would have go to the lower index."""

import pytest
import torch
import torch.nn.functional as F

from fopru import picking
from fopru.picking import first, greedy_map, nearest, owners, ranked, remaining, top, unit


def nudged(values, seed):
    """The same values, each moved by up to two units in its last place."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(2):
        ahead = torch.randint(-1, 2, values.shape, generator=draw)
        values = torch.nextafter(values, values + ahead)
    return values


def test_the_lower_index_of_equal_values():
    assert top(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2).tolist() == [1, 2]
    assert top(torch.zeros(300), 7).tolist() == list(range(7))
    assert ranked(torch.tensor([1.0, 3.0, 2.0, 3.0])).tolist() == [1, 3, 2, 0]
    assert first(torch.tensor([[1.0, 3, 3], [2, 2, 1]]).double()).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(8))
def test_rounding_decides_nothing(dtype, seed):
    """Values in a few levels, nudged: as if they had not been."""
    draw = torch.Generator().manual_seed(seed)
    exact = torch.randn(5, generator=draw).to(dtype)[torch.randint(5, (90,), generator=draw)]
    order = sorted(range(90), key=lambda i: (-exact[i].item(), i))
    for again in range(5):
        values = nudged(exact, again)
        assert ranked(values).tolist() == order
        for k in (1, 7, 40, 89, 90):
            assert top(values, k).tolist() == sorted(order[:k])
    assert first(nudged(exact.double(), 0)).item() == order[0]


def test_what_differs_by_more_than_rounding_keeps_its_order():
    scores = torch.tensor([1.0, 1.0001, 0.9999])
    assert top(scores, 1).tolist() == [1]
    assert ranked(scores).tolist() == [1, 0, 2]
    cosines = torch.tensor([0.5, 0.5 + 1e-8, 0.5 - 1e-8], dtype=torch.float64)
    assert first(cosines).item() == 1


def test_infinity_comes_first():
    scores = torch.tensor([1.0, torch.inf, 2.0, torch.inf])
    assert [top(scores, k).tolist() for k in (1, 2, 3)] == [[1], [1, 3], [1, 2, 3]]


def test_remaining():
    assert remaining(torch.tensor([0, 3]), 5).tolist() == [1, 2, 4]
    assert remaining(torch.arange(3), 3).tolist() == []


def test_nearest_does_not_depend_on_how_much_is_held_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator).round()  # with ties
    rows, columns = unit(features), unit(features[::3])
    cosines = rows @ columns.T
    for elements in (2**22, 50, 1):
        monkeypatch.setattr(picking, "BLOCK_ELEMENTS", elements)
        values, places = nearest(rows, columns)
        torch.testing.assert_close(values, cosines.amax(1))
        best = [next(j for j, c in enumerate(row) if c > max(row) - 1e-9) for row in cosines]
        assert places.tolist() == best


def test_owners_of_kept_tokens_are_themselves():
    features = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    assert owners(features, torch.tensor([1, 2, 3])).tolist() == [0, 0, 1, 2, 0]
    nothing_to_compare = torch.full((5, 2), torch.nan)
    assert owners(nothing_to_compare, torch.arange(5)).tolist() == list(range(5))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_map_maximises_determinants(seed):
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed)).double()
    weights = torch.rand(12, generator=torch.Generator().manual_seed(seed)).double()
    scaled = F.normalize(x, dim=1) * weights[:, None]
    kernel, chosen = scaled @ scaled.T, []
    for _ in range(6):
        rest = [j for j in range(12) if j not in chosen]
        chosen.append(
            max(rest, key=lambda j: torch.linalg.det(kernel[[*chosen, j]][:, [*chosen, j]]))
        )
    assert greedy_map(unit(x), 6, weights).tolist() == sorted(chosen)


def test_greedy_map_holds_no_kernel_of_many_tokens(monkeypatch):
    points = unit(torch.randn(60, 8))
    whole = greedy_map(points, 20)
    monkeypatch.setattr(picking, "HELD_ELEMENTS", 0)
    for likely in (64, 3):
        monkeypatch.setattr(picking, "LIKELY", likely)
        assert torch.equal(greedy_map(points, 20), whole)


def test_greedy_map_has_an_order_even_where_features_depend_on_each_other():
    assert len(set(greedy_map(unit(torch.randn(20, 3)), 15).tolist())) == 15


def test_all_unit_vectors_add_the_same_at_first():
    """The norm of a unit vector is 1 by the formula, whatever float32 makes of it."""
    for seed in range(20):
        features = torch.randn(50, 33, generator=torch.Generator().manual_seed(seed))
        assert greedy_map(unit(features), 1).tolist() == [0]


def test_features_that_are_not_finite():
    features = torch.ones(4, 3)
    features[2, 1] = torch.nan
    with pytest.raises(ValueError, match="the features of 1 of 4 tokens hold NaN or infinity"):
        unit(features)
