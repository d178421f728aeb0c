"""minigrad.distributions: densities against PyTorch's, samples against the moments, errors."""

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import distributions
from minigrad.distributions import Bernoulli, Categorical, Independent, Normal, Uniform, kl_divergence

RNG = np.random.default_rng(5)
POSITIVE = RNG.uniform(0.2, 2, (2, 4, 3))
SIGNED = RNG.standard_normal((2, 4, 3))
SHARES = RNG.uniform(0.05, 0.95, (2, 4, 3))

# name: parameters of two distributions, values
CASES = {
    "normal": ("Normal", {"loc": SIGNED, "scale": POSITIVE}, RNG.standard_normal((4, 3))),
    "uniform": ("Uniform", {"low": SIGNED, "high": SIGNED + POSITIVE}, SIGNED[0] + 0.3 * POSITIVE[0]),
    "exponential": ("Exponential", {"rate": POSITIVE}, RNG.uniform(0, 3, (4, 3))),
    "laplace": ("Laplace", {"loc": SIGNED, "scale": POSITIVE}, RNG.standard_normal((4, 3))),
    "bernoulli probs": ("Bernoulli", {"probs": SHARES}, RNG.integers(0, 2, (4, 3)).astype(float)),
    "bernoulli logits": ("Bernoulli", {"logits": 3 * SIGNED}, RNG.integers(0, 2, (4, 3)).astype(float)),
    "poisson": ("Poisson", {"rate": POSITIVE}, RNG.integers(0, 5, (4, 3)).astype(float)),
    "binomial probs": ("Binomial", {"probs": SHARES}, RNG.integers(0, 2, (4, 3)).astype(float)),
    "binomial logits": ("Binomial", {"logits": SIGNED}, RNG.integers(0, 2, (4, 3)).astype(float)),
    "categorical probs": ("Categorical", {"probs": POSITIVE}, RNG.integers(0, 3, (5, 4))),
    "categorical logits": ("Categorical", {"logits": SIGNED}, RNG.integers(0, 3, (5, 4))),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def both_libraries():
    torch = pytest.importorskip("torch")
    return (mg, distributions), (torch, torch.distributions)


@each_case
def test_densities_and_their_gradients_are_pytorch_s(case):
    kind, parameters, values = case
    results = []
    for lib, family in both_libraries():
        tensors = {k: lib.tensor(v[0], requires_grad=True) for k, v in parameters.items()}
        others = {k: lib.tensor(v[1] - 0.5 * (k == "low") + 5 * (k == "high")) for k, v in parameters.items()}
        p, q = getattr(family, kind)(**tensors), getattr(family, kind)(**others)
        found = [p.log_prob(lib.tensor(values)), family.kl_divergence(p, q)]
        if kind not in ("Poisson", "Binomial"):
            found += [p.entropy(), p.perplexity()]
        if kind != "Categorical":
            found += [p.mean + 0 * p.variance, p.variance, p.stddev]
        if kind in ("Normal", "Uniform", "Exponential", "Laplace"):
            found.append(p.cdf(lib.tensor(values)))
        sum((x * x).sum() for x in found if np.isfinite(x.detach().numpy()).all()).backward()
        assert tuple(p.batch_shape) == found[1].shape and tuple(p.event_shape) == ()
        results.append([x.detach().numpy() for x in found] + [t.grad.numpy() for t in tensors.values()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@each_case
def test_samples_have_the_mean_and_the_variance(case):
    kind, parameters, _ = case
    mg.manual_seed(3)
    p = getattr(distributions, kind)(**{k: mg.tensor(v[0]) for k, v in parameters.items()})
    drawn = p.sample((20_000,)).numpy()
    assert drawn.shape == (20_000, *p.batch_shape)
    if kind == "Categorical":
        for choice in range(3):
            share, expected = (drawn == choice).mean(0), p.probs.numpy()[..., choice]
            assert np.abs(share - expected).max() < 5 * 0.5 / np.sqrt(20_000)
    else:
        deviation = p.stddev.numpy()
        assert (np.abs(drawn.mean(0) - p.mean.numpy()) < 5 * deviation / np.sqrt(20_000)).all()
        np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.05)


def test_counts_are_pytorch_s():
    shares = [[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]]
    counts = np.array([[1.0, 2.0, 4.0], [0.0, 7.0, 0.0]])
    results = []
    for lib, family in both_libraries():
        probs, tries = lib.tensor(shares), lib.tensor([[3.0, 7.0, 9.0]])
        many, some = family.Multinomial(7, probs), family.Binomial(tries, probs)
        logits = family.Multinomial(7, logits=lib.tensor([[0.1, -1.0, 2.0]]))
        found = [d.log_prob(lib.tensor(counts, dtype=lib.float32)) for d in (many, logits)]
        found += [
            many.entropy(),
            many.mean,
            many.variance,
            some.mean,
            some.variance,
            some.mode,
            logits.entropy(),
        ]
        found += [some.log_prob(lib.tensor([[0.0, 7.0, 4.0]])), family.Poisson(lib.tensor([2.5, 0.0])).mode]
        found += [family.Poisson(lib.tensor([0.0, 0.0])).log_prob(lib.tensor([0.0, 2.0]))]
        found += [family.Binomial(3, probs).enumerate_support(expand) for expand in (True, False)]
        found += [family.Binomial(6, logits=lib.tensor([[0.3, -30.0, 30.0]])).entropy()]
        results.append([x.numpy() for x in found])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_certain_successes_keep_their_digits():
    torch = pytest.importorskip("torch")
    logits = [-200.0, -17.0, 14.0, 17.0, 90.0]
    results = []
    for lib, family in ((mg, distributions), (torch, torch.distributions)):
        x = lib.tensor(logits, requires_grad=True)
        found = family.Binomial(4, logits=x).log_prob(lib.tensor([2.0] * 5))
        found.sum().backward()
        results.append((found.detach().numpy(), x.grad.numpy()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_draws_of_counts():
    probs = mg.tensor([[0.2, 0.3, 0.5], [0.0, 0.4, 0.6]])
    p = distributions.Multinomial(10, probs)
    drawn = p.sample((5000,))
    assert drawn.shape == (5000, 2, 3) and drawn.dtype == probs.dtype and (drawn.sum(-1) == 10).all().item()
    error = (drawn.mean(0) - p.mean).abs()
    assert (error <= 5 * (p.variance / 5000).sqrt()).all().item() and (drawn[:, 1, 0] == 0).all().item()
    few = distributions.Binomial(mg.tensor([0.0, 1.0, 40.0]), 0.25).sample((1000,))
    assert few[:, 0].max().item() == 0 and set(few[:, 1].tolist()) == {0.0, 1.0}
    assert 9 < few[:, 2].mean().item() < 11 and distributions.Poisson(3).sample().shape == ()


def test_draws_of_a_normal_carry_gradients():
    loc, scale = mg.zeros(3, requires_grad=True), mg.full((3,), 2.0, requires_grad=True)
    p = Normal(loc, scale)
    assert not p.sample().requires_grad
    drawn = p.rsample((5,))
    drawn.sum().backward()
    np.testing.assert_allclose(loc.grad.numpy(), 5)
    np.testing.assert_allclose(scale.grad.numpy(), drawn.detach().numpy().sum(0) / 2, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="sample"):
        Categorical(probs=mg.ones(3)).rsample()


def test_numbers_broadcast_and_shapes_extend():
    assert Normal(0.0, mg.ones(2, 3)).sample((4,)).shape == (4, 2, 3)
    assert Normal(0.0, 1.0).sample().shape == ()
    assert Normal(mg.tensor([1, 2]), 1.5).scale.tolist() == [1.5, 1.5]
    assert Categorical(probs=mg.ones(2, 0, 3)).sample((4,)).shape == (4, 2, 0)
    assert Categorical(probs=mg.ones(3)).sample().dtype == np.int64
    assert Bernoulli(0.25).log_prob(mg.tensor(1.0)).item() == pytest.approx(np.log(0.25), rel=1e-6)
    support = Categorical(probs=mg.ones(2, 3)).enumerate_support()
    np.testing.assert_array_equal(support.numpy(), [[0, 0], [1, 1], [2, 2]])


def test_independent_adds_over_the_event():
    p = Independent(Normal(mg.zeros(2, 3), mg.ones(2, 3)), 1)
    q = Independent(Normal(mg.ones(2, 3), mg.ones(2, 3)), 1)
    assert (p.batch_shape, p.event_shape) == ((2,), (3,))
    value = mg.randn(5, 2, 3)
    np.testing.assert_allclose(
        p.log_prob(value).numpy(), p.base_dist.log_prob(value).numpy().sum(-1), rtol=1e-6
    )
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), [1.5, 1.5])
    assert p.rsample((7,)).shape == (7, 2, 3)


def test_impossible_choices():
    p = Categorical(probs=mg.tensor([0.0, 1.0]))
    assert p.entropy().item() == pytest.approx(0, abs=1e-6)
    assert (p.sample((100,)).numpy() == 1).all()
    assert kl_divergence(Categorical(probs=mg.tensor([0.5, 0.5])), p).item() == np.inf
    logits = Categorical(logits=mg.tensor([-np.inf, 0.0]))
    assert logits.log_prob(mg.tensor([0, 1])).tolist() == [-np.inf, 0]
    assert logits.entropy().item() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0.0, 0.0), "scale must be above 0"),
        (lambda: Normal(float("nan"), 1.0), "loc must be a number"),
        (lambda: Uniform(1.0, 1.0), "high - low must be above 0"),
        (lambda: Bernoulli(1.5), r"probs must be in \[0, 1\], got 1.5"),
        (lambda: Bernoulli(0.5, 0.5), "either probs or logits, got both"),
        (lambda: Categorical(), "either probs or logits, got none"),
        (lambda: Categorical(mg.tensor([-1.0, 2.0])), "at least 0, got -1"),
        (lambda: Categorical(mg.zeros(2)), "sum of probs must be above 0"),
        (lambda: Categorical(mg.ones(2)).log_prob(mg.tensor(2)), "integer from 0 to 1, got 2"),
        (lambda: Bernoulli(0.5).log_prob(mg.tensor(0.5)), "0 or 1"),
        (lambda: distributions.Poisson(-1.0), "rate must be at least 0, got -1"),
        (lambda: distributions.Poisson(1.0).log_prob(mg.tensor(0.5)), "whole number from 0 on, got 0.5"),
        (lambda: distributions.Binomial(-1, 0.5), "total_count must be a whole number from 0 on, got -1"),
        (
            lambda: distributions.Binomial(2, 0.5).log_prob(mg.tensor(3)),
            "total_count - value must be",
        ),
        (lambda: distributions.Multinomial(1.5, mg.ones(2)), "total_count is a whole number"),
        (
            lambda: distributions.Multinomial(3, mg.ones(2)).log_prob(mg.tensor([1, 1])),
            "the sum of value must be total_count, got 2",
        ),
        (lambda: Independent(Normal(0.0, 1.0), 1), "at most 0 dimensions"),
        (lambda: Independent(mg.ones(2), 1), "expected a distribution, got Tensor"),
        (lambda: Categorical([0.5, 0.5]), "must be a tensor, got list"),
        (lambda: Bernoulli(0.5).log_prob(1), "value must be a tensor, got int"),
    ],
)
def test_what_is_no_distribution_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
    with pytest.raises(NotImplementedError, match="Normal and Uniform"):
        kl_divergence(Normal(0.0, 1.0), Uniform(0.0, 1.0))


# ---- vectors and mixtures ---------------------------------------------------------------------------------

TRIANGLES = np.tril(RNG.standard_normal((2, 4, 3, 3)), -1) + POSITIVE[..., None] * np.eye(3)
COVARIANCES = TRIANGLES @ np.swapaxes(TRIANGLES, -1, -2)


@pytest.mark.parametrize("given", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_normal_vectors(given):
    matrices = TRIANGLES if given == "scale_tril" else COVARIANCES
    results = []
    for lib, family in both_libraries():
        loc, matrix = (lib.tensor(v[0], requires_grad=True) for v in (SIGNED, matrices))
        p = family.MultivariateNormal(loc, **{given: matrix})
        q = family.MultivariateNormal(lib.tensor(SIGNED[1]), **{given: lib.tensor(matrices[1, 0])})
        found = [p.log_prob(lib.tensor(SIGNED[1])), p.entropy(), family.kl_divergence(p, q), p.variance]
        found += [p.covariance_matrix, p.precision_matrix, p.mean]
        sum((x * x).sum() for x in found).backward()
        assert tuple(p.batch_shape) == (4,) and tuple(p.event_shape) == (3,)
        gradient = matrix.grad.numpy()
        if given != "scale_tril":
            gradient = gradient + np.swapaxes(gradient, -1, -2)
        gradient = np.tril(gradient)  # in PyTorch, some reaches the upper triangle
        results.append([x.detach().numpy() for x in found] + [loc.grad.numpy(), gradient])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
    drawn = distributions.MultivariateNormal(mg.tensor(SIGNED[0]), **{given: mg.tensor(matrices[0])})
    draws = drawn.sample((20_000,)).numpy()
    for i, covariance in enumerate(drawn.covariance_matrix.numpy()):
        largest = covariance.diagonal().max()
        assert np.abs(np.cov(draws[:, i].T) - covariance).max() < 5 * 2 * largest / np.sqrt(20_000)


@pytest.mark.parametrize("vectors", [False, True])
def test_mixtures(vectors):
    results = []
    for lib, family in both_libraries():
        tensors = [lib.tensor(v, requires_grad=True) for v in (SIGNED, POSITIVE, SHARES[..., 0])]
        components = family.Normal(tensors[0], tensors[1])
        if vectors:
            components, choice = family.Independent(components, 1), family.Categorical(tensors[2])
        else:
            choice = family.Categorical(tensors[1])
        p = family.MixtureSameFamily(choice, components)
        value = lib.tensor(SIGNED[0, :2] if vectors else SIGNED[..., 0])
        found = [p.log_prob(value), p.mean, p.variance]
        sum((x * x).sum() for x in found).backward()
        results.append([x.detach().numpy() for x in found])
        results[-1] += [np.zeros(1) if t.grad is None else t.grad.numpy() for t in tensors]
        results[-1].append(np.array(p.sample((5,)).shape))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    mg.manual_seed(1)
    draws = p_of(vectors).sample((20_000,)).numpy()
    wanted = p_of(vectors)
    deviation = wanted.variance.numpy() ** 0.5
    assert (np.abs(draws.mean(0) - wanted.mean.numpy()) < 5 * deviation / np.sqrt(20_000)).all()
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.1)


def p_of(vectors):
    components = Normal(mg.tensor(SIGNED), mg.tensor(POSITIVE))
    if vectors:
        components = Independent(components, 1)
    choice = Categorical(mg.tensor(SHARES[..., 0] if vectors else POSITIVE))
    return distributions.MixtureSameFamily(choice, components)


TRANSFORMED = {
    "lognormal": lambda f, p: f.LogNormal(p, 0.5),
    "squashed": lambda f, p: f.TransformedDistribution(f.Normal(p, 1.0), [f.TanhTransform(cache_size=1)]),
    "scaled": lambda f, p: f.TransformedDistribution(
        f.Normal(p, 1.0), [f.SigmoidTransform(), f.AffineTransform(-1.0, 2.0)]
    ),
    "one of vectors": lambda f, p: f.Independent(
        f.TransformedDistribution(f.Normal(0.0, p.exp()), f.ExpTransform()), 1
    ),
    "of vectors": lambda f, p: f.TransformedDistribution(
        f.Independent(f.Normal(p, 1.0), 1), [f.transforms.AffineTransform(p, -p)]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_distributions_are_pytorch_s(name):
    results = []
    for lib, family in both_libraries():
        parameter = lib.tensor(SIGNED[0], requires_grad=True)
        p = TRANSFORMED[name](family, parameter)
        log_prob = p.log_prob(lib.tensor(SHARES[0]))
        found = [log_prob, *([p.mean, p.variance, p.mode, p.entropy()] if name == "lognormal" else [])]
        sum((x * x).sum() for x in found).backward()
        assert tuple(p.sample((2,)).shape) == (2, 4, 3) and not p.sample().requires_grad
        assert p.rsample().requires_grad and p.has_rsample
        results.append([x.detach().numpy() for x in [*found, parameter.grad]])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_squashed_draw_at_the_end_of_its_range():
    """Where tanh gives 1 in float32 the kept draw is needed, and the slope has to be computed from it."""
    base = Normal(mg.tensor(12.0), 0.01)
    p = distributions.TransformedDistribution(base, distributions.TanhTransform(cache_size=1))
    drawn = p.rsample()
    x = p.transforms[0].inv(drawn)
    assert drawn.item() == 1 and abs(x.item() - 12) < 0.1
    expected = base.log_prob(x).item() - 2 * (np.log(2) - x.item())
    np.testing.assert_allclose(p.log_prob(drawn).item(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="cache_size"):
        distributions.TanhTransform(cache_size=2)
    with pytest.raises(TypeError, match="expected transforms"):
        distributions.TransformedDistribution(base, [np.tanh])


def test_each_result_needs_a_draw_of_its_own():
    transform = distributions.AffineTransform(mg.zeros(3), 2.0)
    with pytest.raises(ValueError, match=r"draws of shape \(\) are too few .* of \(3,\)"):
        distributions.TransformedDistribution(Normal(0.0, 1.0), transform)
    wide = distributions.TransformedDistribution(Normal(mg.zeros(3), 1.0), transform)
    assert wide.sample((2,)).shape == (2, 3)
    assert wide.log_prob(mg.tensor(math.inf)).tolist() == [-math.inf] * 3
