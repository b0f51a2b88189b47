"""What is read off latents: an encoder that can be inverted is not convicted, one that lost something is."""

import copy
import dataclasses
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import normal, random_measures
from sklearn.linear_model import RidgeCV

from vqnotes import data
from vqnotes.diagnosis import CollapseWatch, beside_inputs, diagnose, diagnose_model, readers
from vqnotes.diagnosis.beside_inputs import KnownInputs
from vqnotes.diagnosis.measures import Measures, measure
from vqnotes.diagnosis.observed import observe
from vqnotes.diagnosis.readers import (
    Components,
    Placed,
    by_network,
    by_regression,
    left_over,
    loss_by_as_many_codes,
    loss_by_codes,
)
from vqnotes.diagnosis.rules import Answer, decide, encoder_at_fault, inputs_lost, labels_lost, settled
from vqnotes.kmeans import kmeans
from vqnotes.models import ToPatches, VQAutoencoder, mlp
from vqnotes.quantizers import VectorQuantizer


def coupled(x, strength, layers):
    """Coupling layers: each adds to one half what depends on the other, so that it can be taken off again."""
    first, second = x.chunk(2, dim=1)
    for layer in range(layers):
        shift = (first @ normal(first.shape[1], 8, seed=10 + layer)).abs() @ normal(
            8, first.shape[1], seed=20 + layer
        )
        first, second = second + strength * shift, first
    return torch.cat([first, second], dim=1)


@pytest.fixture(scope="module")
def clouds():
    """Flat clouds around sixteen centres, in eight dimensions."""
    return normal(16, 8, seed=5).repeat(400, 1) + 0.2 * normal(6400, 2) @ normal(2, 8, seed=1)


def test_an_invertible_encoder_is_cleared_by_a_network(clouds):
    latents = coupled(clouds, 0.5, 3)
    f = measure(observe(latents, kmeans(latents, 256)[0], inputs=clouds))
    assert f.reader == "a network" and decide(f)[0] == "healthy"
    order = torch.randperm(6400, generator=torch.Generator().manual_seed(0))
    x, near = clouds[order], ((latents - latents.mean(0)) / latents.var(0).sum().sqrt())[order, None]
    weaker = left_over(x[3200:], by_regression(near, x, 0))
    assert weaker > 2 * f.inputs_loss and f.encoder_loss < weaker / 2  # who would have convicted it


def test_the_network_reads_what_is_not_linear_and_only_from_the_first_half():
    seen = normal(2000, 1, 2)
    x = torch.cat([seen[:, 0].abs(), normal(2000, 1, seed=1)], dim=1)
    guess = x.mean(0).expand(1000, 3)
    random = torch.get_rng_state()
    read = by_network(seen, x, guess, seed=0)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(read, by_network(seen, x, guess, seed=0))
    assert left_over(x[1000:, :2], read[:, :2]) < 0.02 and 0.9 < left_over(x[1000:, 2:], read[:, 2:]) < 1.2
    changed = x.clone()
    changed[1000:] += 0.3  # the mean of all is known, and nothing else of the second half
    assert left_over(x[1000:, :2], by_network(seen, changed, guess, seed=0)[:, :2]) < 0.5
    with torch.inference_mode():
        assert torch.allclose(by_network(seen.clone(), x.clone(), guess.clone(), seed=0), read)


def test_the_network_is_heard_only_where_an_encoder_would_be_convicted(clouds):
    assert measure(observe(clouds, kmeans(clouds, 64)[0], inputs=clouds)).reader != "a network"
    assert measure(observe(clouds[:, :1], kmeans(clouds[:, :1], 64)[0], inputs=clouds)).reader is not None
    found = diagnose(clouds[:, :1], kmeans(clouds[:, :1], 64)[0], inputs=clouds)
    assert found.verdict == "embedding collapse"
    assert any("lost by the encoder is what a" in note and "leaves of the inputs" in note for note in found.notes)


def test_the_regression_reads_what_bends_slowly_and_what_bends_fast():
    """Without its far kernel it leaves .4 of the first, without its close one .9 of the second."""
    slow, fast = normal(3000, 1, 6), torch.rand(3000, 1, 1, generator=torch.Generator().manual_seed(0))
    for seen, x in ((slow, slow[:, 0].norm(dim=1, keepdim=True)), (fast, torch.sin(40 * fast[:, 0]))):
        assert left_over(x[1500:], by_regression(seen, x, 0)) < 0.02


# ---------------------------------------------------------------- what the model itself tells


def test_an_encoder_has_not_lost_what_the_model_rebuilds(clouds):
    latents = clouds[:, :1]
    codes = kmeans(latents, 256)[0]
    rebuilt = clouds + 0.03 * normal(6400, 8, seed=9)
    f = measure(observe(latents, codes, inputs=clouds, reconstruction=rebuilt))
    assert f.reader == "the model's decoder" and encoder_at_fault(f) is Answer.NO
    share = (0.03**2 * 8) / clouds.var(0).sum().item()
    assert f.encoder_loss == f.model_loss == pytest.approx(share, rel=0.1)
    assert encoder_at_fault(measure(observe(latents, codes, inputs=clouds))) is Answer.YES
    poor = measure(observe(latents, codes, inputs=clouds, reconstruction=torch.zeros_like(clouds)))
    assert poor.model_loss > 0.9 and poor.encoder_loss < poor.model_loss
    found = diagnose(latents, codes, inputs=clouds, reconstruction=rebuilt)
    assert any("the model as a whole leaves 0.00" in note for note in found.notes)


def test_a_reconstruction_is_cut_as_the_inputs_are():
    x = normal(300, 2, 12)
    back = x.clone()
    back[..., :3] = 0  # the first of four places is not rebuilt
    f = measure(observe(normal(300, 4, 3), normal(8, 3), inputs=x, reconstruction=back))
    assert f.model_loss == pytest.approx(0.25, abs=0.05)


# ---------------------------------------------------------------- labels


def with_labels(read_off, inputs=1.0, chance=0.1):
    usual = {
        "latents": 9999,
        "codes": 64,
        "sample": 9999,
        "spread": 1.0,
        "distinct": 64,
        "usage": 1.0,
        "ceiling": 1.0,
    }
    at_codes = {"perplexity": 60.0, "error": 0.1, "best": 0.1, "best_low": 0.1, "gap": 1.0, "gap_high": 1.0}
    at_labels = {"separability": read_off, "separability_inputs": inputs, "chance": chance}
    return Measures(**usual, **at_codes, **at_labels)


@pytest.mark.parametrize(
    "read_off, inputs, expected",
    [
        (0.74, 1.0, Answer.YES),  # (.74 - .1) / (1 - .1) = .71 of what the inputs give, above chance
        (0.40, 1.0, Answer.YES),
        (0.80, 1.0, Answer.NO),  # .78
        (0.60, 0.7, Answer.NO),  # .83
        (0.50, 0.7, Answer.YES),  # .67
        (0.95, None, Answer.NO),  # alone, labels clear an encoder from nine tenths on: .94
        (0.88, None, Answer.UNKNOWN),  # .87
        (0.50, None, Answer.UNKNOWN),  # and convict none
        (0.15, 0.18, Answer.UNKNOWN),  # nobody reads them
    ],
)
def test_how_well_labels_must_be_read(read_off, inputs, expected):
    f = with_labels(read_off, inputs)
    assert labels_lost(f) is expected and encoder_at_fault(f) is expected and inputs_lost(f) is Answer.UNKNOWN
    verdict = {Answer.YES: "embedding collapse", Answer.NO: "healthy", Answer.UNKNOWN: "cannot tell"}[expected]
    assert decide(f)[0] == verdict


def test_an_encoder_that_confuses_a_third_of_the_classes_is_convicted_by_labels_alone():
    x, y = data.gaussian_modes(modes=12, per_mode=100, dim=8, seed=3)[:2]
    confused = torch.where(y < 4, 0, y)  # four classes of twelve coincide
    latents = 5 * normal(12, 4, seed=1)[confused] + 0.05 * normal(1200, 4, seed=2)
    codes = kmeans(latents, 16)[0]
    f = measure(observe(latents, codes, labels=y, inputs=x))
    assert f.separability == pytest.approx(0.75, abs=0.05) and f.separability_inputs > 0.97
    assert labels_lost(f) is Answer.YES
    assert measure(observe(latents, codes, labels=y)).separability == f.separability
    assert diagnose(latents, codes, labels=y).verdict == "cannot tell"


def test_a_regression_guesses_in_the_inputs_own_type(monkeypatch):
    """Older versions of scikit-learn answer in float64, which a network's float32 cannot be joined with."""
    predict = RidgeCV.predict
    monkeypatch.setattr(RidgeCV, "predict", lambda *arguments: predict(*arguments).astype(np.float64))
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    guess = by_regression(x[:, None, :2], x, seed=0)
    assert guess.dtype == x.dtype and by_network(x[:, None, :2], x, guess, seed=0).shape == guess.shape


# ---------------------------------------------------------------- what as many codes of the inputs would lose


@functools.cache
def many(family):
    """Inputs (32,768, P): 32 for each of 1,024 codes."""
    if family == "patches":
        crops = data.random_crops(data.photographs(), 600, 32, seed=0)
        return mixed(ToPatches(4)(crops).flatten(0, 2), seed=1)[:32768]
    kind, number = family.split()
    if kind == "modes":
        return mixed(data.gaussian_modes(modes=int(number), per_mode=32768 // int(number), dim=16, seed=4).x, seed=1)
    return normal(32768, int(number))


@functools.cache
def components(family):
    return Components(many(family), readers.MOST_COMPONENTS, 0).reduced


def mixed(x, seed):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("family", ["gaussian 4", "gaussian 16", "modes 32", "modes 64", "modes 256", "patches"])
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_the_interval_holds_what_all_codes_lose_once_inputs_pay_for_them(family, size):
    """With as many modes as codes as well, where k-means itself finds them all or not by chance."""
    x, reduced = many(family), components(family)
    measured = [loss_by_codes(x, reduced, 16 * size, [size], seed).loss for seed in range(1 + 256 // size)]
    truth, held = np.mean(measured), []
    for share in (2, 4, 8, 16):  # of the inputs that pay for all codes, one in so many is there
        for seed in range(5 if size < 1024 else 2):
            rows = mixed(torch.arange(len(x)), 1000 * share + seed)[: 32 * size // share]
            found = loss_by_as_many_codes(x[rows], reduced[rows], [size], seed)
            assert found.low <= found.loss <= found.high and found.codes == size // share
            held.append(found.low <= truth <= found.high)
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("family, most", [("gaussian 4", 1.5), ("gaussian 16", 1.4), ("patches", 2.5)])
def test_where_the_law_holds_the_interval_is_narrow(family, most):
    """A quarter of the inputs that would pay for 256 codes."""
    x = many(family)[: 32 * 64]
    found = loss_by_as_many_codes(x, Components(x, readers.MOST_COMPONENTS, 0).reduced, [256], 0)
    assert 1 < found.high / found.low < most


def test_what_inputs_pay_for_is_measured():
    x = normal(2048, 8)
    found = loss_by_as_many_codes(x, x, [64], 0)
    assert found[:4] == (found.loss,) * 3 + (64,) and found.loss == loss_by_codes(x, x, 1024, [64], 0).loss
    assert loss_by_as_many_codes(x[:2046], x[:2046], [64], 0).codes == 63
    two = loss_by_as_many_codes(x, x, [64, 16], 0)
    assert two.codes == 80 and two.low == two.high == loss_by_codes(x, x, 1024, [64, 16], 0).loss < found.loss


def test_codes_are_judged_on_inputs_that_they_did_not_learn_from():
    x = normal(900, 4)
    loss, deviation, of_first, _ = loss_by_codes(x, x, 600, [20], 3)
    codes = kmeans(x[:600], 20, 3)[0]
    index = torch.cdist(x, codes).argmin(1)
    means = torch.stack([x[:600][index[:600] == code].mean(0) for code in range(20)])
    left, whole = ((x - means[index]).double().square().sum(1), (x - x.mean(0)).square().sum(1).double())
    assert loss == pytest.approx((left[600:].sum() / whole[600:].sum()).item(), rel=0.01) and of_first < loss
    assert of_first == pytest.approx((left[:600].sum() / whole[:600].sum()).item(), rel=0.01)
    assert deviation == pytest.approx((left[600:].std() / left[600:].mean() / 300**0.5).item())


def played(monkeypatch, loss, inputs, sizes, lower=0.5):
    """loss_by_as_many_codes where so many bits lose loss(bits, inputs a code), `lower` of it of those learnt from."""
    asked = []

    def measured(x, reduced, learnt, sizes, seed):
        asked.append((len(x) - learnt, learnt, sizes))
        found = loss(sum(map(math.log2, sizes)), learnt / max(sizes))
        return Placed(found, 0.01, lower * found, x)

    monkeypatch.setattr(readers, "loss_by_codes", measured)
    x = torch.zeros(inputs, 1)
    return loss_by_as_many_codes(x, x, sizes, 0), asked


def by_law(bits, each):
    """In four dimensions; codes that learn from fewer inputs lose a hundredth more."""
    return 2 ** (-bits / 2) * (1 if each >= 16 else 1.01)


def test_each_number_of_codes_learns_from_as_many_inputs_to_a_code(monkeypatch):
    found, asked = played(monkeypatch, by_law, 2048, [256])
    assert asked == [(1024, 64, [4]), (1024, 256, [16]), (1024, 1024, [64]), (1024, 1024, [256])]
    # two bits further, by a slope that may be wrong by BEND, and two standard errors of 1 %
    assert found.codes == 64 and found.loss == pytest.approx(2**-4)
    assert found.low == pytest.approx(2**-4 * math.exp(-2 * 0.04 - 0.02))
    assert found.high == pytest.approx(1.01 * 2**-4 * math.exp(0.02))  # measured, with four inputs to a code
    drawn, asked = played(monkeypatch, by_law, 2**17, [16384])
    assert asked[-1] == (2**16, 2**16, [4096]) and len(asked) == 3
    assert (drawn.loss, drawn.high) == pytest.approx((2**-7, 2**-7 * math.exp(2 * 0.04 + 0.02)))
    stack, asked = played(monkeypatch, by_law, 2048, [256, 32])
    assert asked[-2:] == [(1024, 1024, [64, 32]), (1024, 1024, [256, 32])] and stack.codes == 96


def test_what_learnt_from_few_is_a_bound_on_either_side(monkeypatch):
    found, _ = played(monkeypatch, by_law, 2048, [256], lower=0.95)
    assert found.low == pytest.approx(0.95 * 1.01 * 2**-4)
    far, asked = played(monkeypatch, by_law, 128, [256], lower=0.95)
    assert asked[-1] == (64, 64, [32]) and far.low < 2**-4  # other codes than those: no bound from below


@pytest.mark.parametrize("clusters", [100, 128, 200])
def test_clusters_that_few_codes_do_not_see_are_not_drawn_past(monkeypatch, clusters):
    """Until there is a code for each, the loss hardly falls; then it is a hundredth."""
    found, _ = played(monkeypatch, lambda bits, _: 0.9 if 2**bits < clusters else 0.009, 2048, [256], lower=0.7)
    assert (found.low, found.loss) == pytest.approx((0.0063, 0.009)) and found.high == pytest.approx(
        0.009 * math.exp(0.02)
    )
    beyond, _ = played(monkeypatch, lambda bits, _: 0.9 if 2**bits < clusters else 0.009, 1024, [1024], lower=0.7)
    assert beyond.low == 0 and beyond.high == pytest.approx(0.009 * math.exp(0.02))


def test_what_fell_fast_may_stop_to_fall(monkeypatch):
    """A code for each of 64 clusters, and then nothing is to be had."""
    found, _ = played(monkeypatch, lambda bits, _: 0.9 if bits < 6 else 0.009, 2048, [256], lower=0.7)
    assert found.low == pytest.approx(0.0063) and found.high == pytest.approx(0.009 * math.exp(0.02))
    assert played(monkeypatch, lambda bits, _: 0.9 if bits < 12 else 0.009, 2**17, [16384])[0].high > 0.009


# ---------------------------------------------------------------- what is not measured twice, or for nothing


@pytest.mark.parametrize("features, outputs", [(40, 5), (300, 5), (40, 900)])
def test_the_ridge_regression_is_that_of_scikit_learn(features, outputs):
    table = normal(400, features, seed=1).double()
    for noise in (0.01, 3):
        x = table @ normal(features, outputs, seed=2).double() + noise * normal(400, outputs, seed=3)
        reader = RidgeCV((1e-2, 1.0, 1e2, 1e4)).fit(table[:200].numpy(), x[:200].numpy())
        guess = readers._by_ridge(table, x, 200)
        assert torch.allclose(guess, torch.from_numpy(reader.predict(table[200:].numpy())), rtol=1e-6, atol=1e-6)


def test_inputs_that_stay_the_same_are_measured_once(clouds, monkeypatch):
    x, placed, on_inputs, known = clouds[:1600], [], readers.loss_by_as_many_codes, KnownInputs()
    monkeypatch.setattr(readers, "loss_by_as_many_codes", lambda *given: placed.append(1) or on_inputs(*given))

    def found(x, latents, size=32):
        return measure(observe(latents, kmeans(latents, size)[0], inputs=x), known=known)

    found(x, coupled(x, 0.5, 1))
    again = found(x.clone(), x)
    assert len(placed) == 1
    known = KnownInputs()
    fresh = found(x, x)
    assert again == fresh and all((fresh.draws[name] == one).all() for name, one in again.draws.items())
    changed = x.clone()
    changed[-1, -1] += 1
    assert found(changed, x) != fresh and len(placed) == 3
    assert found(x, x, size=33) != fresh and len(placed) == 4
    assert found(x, x) == fresh and len(placed) == 4


def test_inputs_that_were_asked_for_last_are_kept(clouds, monkeypatch):
    known, asked, units = KnownInputs(), [], torch.arange(400)
    monkeypatch.setattr(KnownInputs, "NUMBERS", 3 * clouds[:400].numel())
    monkeypatch.setattr(beside_inputs, "_alone", lambda *given: asked.append(given[3]) or given)

    def ask(seed, x=clouds[:400], units=units, sizes=(8,)):
        found = known.alone(x, units, [*sizes], seed)
        assert found[0] is not None and torch.equal(found[1], units) and found[2:] == ([*sizes], seed)
        return len(asked)

    assert [ask(seed) for seed in (0, 1, 2, 0, 1, 2)] == [1, 2, 3, 3, 3, 3]
    assert [ask(seed) for seed in (0, 3, 0, 2, 1)] == [3, 4, 4, 4, 5]  # 1 was asked for longest ago
    assert ask(1, units=units // 2) == 6 and ask(1, sizes=(8, 8)) == 7 and ask(1) == 7
    assert ask(9, clouds[:1300], torch.arange(1300)) == 8  # too large to be kept
    assert ask(9, clouds[:1300], torch.arange(1300)) == 9 and ask(1) == 9
    for other in (copy.deepcopy(known), pickle.loads(pickle.dumps(known))):
        assert isinstance(other, KnownInputs) and not other._kept


def test_no_network_reads_where_the_verdict_is_settled(clouds, monkeypatch):
    read = []
    monkeypatch.setattr(readers, "by_network", lambda near, x, guess, seed: read.append(len(x)) or guess)
    lossy = clouds * torch.tensor([1.0] + [0.0] * 7)
    for latents, decided, networks in ((coupled(clouds, 0.5, 3), "healthy", 0), (lossy, "embedding collapse", 1)):
        observed = observe(latents, kmeans(latents, 256)[0], inputs=clouds)
        assert decide(measure(observed, settled=settled))[0] == decided and len(read) == networks
        read.clear()
        assert decide(measure(observed))[0] == decided and len(read) == 1
        read.clear()


def test_a_look_of_a_watch_measures_its_probe_once_and_has_no_network_read_for_nothing(clouds, monkeypatch):
    encoder, quantizer = mlp(8, 8), VectorQuantizer(256, 8)
    encoder.forward = lambda x: coupled(x, 0.5, 3)
    quantizer.codebook.data = kmeans(coupled(clouds, 0.5, 3), 256)[0]
    model, placed, read = VQAutoencoder(encoder, quantizer, mlp(8, 8)), [], []
    on_inputs, by_network = readers.loss_by_as_many_codes, readers.by_network
    monkeypatch.setattr(readers, "loss_by_as_many_codes", lambda *given: placed.append(1) or on_inputs(*given))
    monkeypatch.setattr(readers, "by_network", lambda *given: read.append(1) or by_network(*given))
    looking = CollapseWatch(clouds)
    looking.look(0, model)
    looking.look(1, model)
    assert (len(placed), len(read)) == (1, 0)
    plain = diagnose_model(model, clouds)["quantizer"]
    assert (len(placed), len(read)) == (2, 1)
    assert looking.latest["quantizer"].verdict == plain.verdict == "healthy"


def test_a_verdict_that_is_settled_stays_the_same_whatever_the_encoder_loses():
    every = [m for m in random_measures(3000) if m.encoder_loss is not None]
    certain = [m for m in every if settled(m)]
    assert 0.1 < len(certain) / len(every) < 0.9
    for m in certain:
        less = (dataclasses.replace(m, encoder_loss=share * m.encoder_loss) for share in (0.8, 0.5, 0.2, 0))
        assert {decide(one)[0] for one in less} == {decide(m)[0]}
