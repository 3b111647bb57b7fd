"""Against brute force on small inputs."""

import math

import folders
import pytest
import tiny
import torch

import fopru
from fopru import redundancy
from fopru.evaluation import Example
from fopru.evaluation.asking import inputs_of


@pytest.fixture(scope="module")
def asked():
    model, processor = fopru.load("pocket")
    (example,) = fopru.pocket.sample("reading", n=1)
    return redundancy.Answers(model, processor, example), model, processor, example


def test_neighbours_and_coverage_by_hand():
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    cosine = [[torch.cosine_similarity(a, b, dim=0).item() for b in x] for a in x]
    near = [max(c for j, c in enumerate(row) if j != i) for i, row in enumerate(cosine)]
    assert redundancy.neighbours(x).tolist() == pytest.approx(near, abs=1e-6)
    kept = torch.tensor([2, 5])
    covered = [max(row[2], row[5]) for row in cosine]
    assert redundancy.coverage(x, kept).tolist() == pytest.approx(covered, abs=1e-6)
    with pytest.raises(ValueError, match=r"features of 1 token\(s\)"):
        redundancy.neighbours(x[:1])


def test_effective_rank_of_equal_and_of_unequal_directions():
    assert redundancy.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert redundancy.effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    x = torch.diag(torch.tensor([3.0, 1.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert redundancy.effective_rank(x) == pytest.approx(math.exp(entropy))
    assert redundancy.spectrum(x).tolist() == pytest.approx([0.75, 0.25])


def test_every_layer_of_the_tower_is_measured(asked):
    _, model, processor, example = asked
    pixels = processor.image_processor(example.image, return_tensors="pt")
    table = redundancy.by_layer(model, pixels)
    depth = model.config.vision_config.num_hidden_layers
    assert table.layer.tolist() == list(range(depth + 1))
    with torch.no_grad():
        states = model.model.vision_tower(
            pixels["pixel_values"].to(model.dtype), output_hidden_states=True
        ).hidden_states
    last = redundancy.effective_rank(states[-1][0, 1:])
    assert table["rank"].iloc[-1] == pytest.approx(last, rel=1e-4)


def test_likelihoods_are_those_of_the_comparison(asked):
    answers, model, processor, example = asked
    pruner = fopru.FoPru(0.25)
    found = fopru.evaluate(model, processor, [example], ["fopru"], [0.25], seeds=[0])
    by = found.set_index("method").loglik
    assert answers.loglik(range(answers.n_tokens)) == pytest.approx(by["full"], abs=1e-3)
    kept = pruner.prune(model, inputs_of(processor, [example]))
    assert answers.loglik(kept.images[0].kept) == pytest.approx(by["fopru"], abs=1e-3)


def test_insertion_and_deletion_meet(asked):
    answers = asked[0]
    order = torch.randperm(answers.n_tokens, generator=torch.Generator().manual_seed(0)).tolist()
    first = redundancy.insertion(answers, order, [100, 256])
    assert first[0] == pytest.approx(answers.loglik(sorted(order[:100])), abs=1e-5)
    assert redundancy.deletion(answers, order, [0])[0] == pytest.approx(first[1], abs=1e-5)
    with pytest.raises(ValueError, match=r"kept=\(\): must be places in \[0, 255\]"):
        answers.loglik([])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_given_tokens_in_other_families(family, tmp_path):
    model, processor = fopru.load(folders.save(family, tmp_path))
    example = Example("q", "t", tiny.image(60, 40), "w1 w2", "w7 w9")
    found = fopru.evaluate(model, processor, [example], ["fopru"], [0.4]).set_index("method")
    answers = redundancy.Answers(model, processor, example)
    assert answers.loglik(range(answers.n_tokens)) == pytest.approx(found.loglik["full"], abs=1e-4)
    kept = fopru.FoPru(0.4).prune(model, inputs_of(processor, [example]))
    assert answers.loglik(kept.images[0].kept) == pytest.approx(found.loglik["fopru"], abs=1e-4)


def test_a_picture_in_tiles_is_refused(tmp_path):
    model, processor = fopru.load(folders.save("internvl", tmp_path))
    example = Example("q", "t", tiny.image(60, 40), "w1 w2", "w7 w9")
    with pytest.raises(fopru.UnsupportedModelError, match="take pictures of one view"):
        redundancy.Answers(model, processor, example)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 8), (8, 1)])
def test_the_spectrum_is_that_of_the_singular_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    values = torch.linalg.svdvals(x.double())
    torch.testing.assert_close(redundancy.spectrum(x), values / values.sum(), atol=1e-9, rtol=0)


def test_features_without_a_direction():
    with pytest.raises(ValueError, match="features: all are 0"):
        redundancy.spectrum(torch.zeros(4, 3))
