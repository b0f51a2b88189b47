"""The checks of a quantiser, each a short function of a kit: whether it passed, and the figures that it rests on.

Each stands for a defect of the museum in notebook 08 and fails for that one alone. They raise `NotApplicable` where a
quantiser has nothing to check.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqnotes.diagnosis.adapter import COUNT, DIM, Kit, NotApplicable, first_line

__all__ = ["CHECKS"]


# ---------------------------------------------------------------- the loss


class Weights(NamedTuple):
    """By which weight a loss draws latents to their codes, and codes to their latents, in units of `F.mse_loss`."""

    on_latents: float
    on_codes: float


def weights(kit: Kit, **options: Any) -> Weights:
    """Those of the whole loss; a negative one drives them apart."""
    quantizer, latents = kit.built(**options), kit.normal(COUNT, DIM).requires_grad_()
    codes = kit.codes(quantizer) if kit.codes_learn else None
    latents_q, index, loss = kit.call(quantizer, latents)
    if loss is None:
        raise NotApplicable("There is no loss.")
    if not loss.requires_grad:
        return Weights(0.0, 0.0)
    way = (latents_q - latents).detach()
    parameters = [] if codes is None else [one for one in quantizer.parameters() if one.requires_grad]
    on_latents, *given = torch.autograd.grad(loss, [latents, *parameters], allow_unused=True, retain_graph=True)
    found = [_along(on_latents, -way) / way.square().sum().item()]
    if codes is not None:  # learnt numbers are moved along what would draw the codes to their latents
        pull = torch.zeros_like(codes).index_add_(0, index, -way).detach()
        wanted = torch.autograd.grad((codes * pull).sum(), parameters, allow_unused=True)
        pairs = [(-one, to) for one, to in zip(given, wanted) if one is not None and to is not None]
        length = sum(one.square().sum().item() for one in wanted if one is not None)
        found.append(sum(_along(one, to) for one, to in pairs) / length)
    return Weights(*(one * way.numel() / 2 for one in found), *[0.0] * (codes is None))


def _along(gradient: Tensor | None, way: Tensor) -> float:
    return 0.0 if gradient is None else (gradient * way).sum().item()


def terms(kit: Kit) -> tuple[Weights, Weights, str]:
    """What beta multiplies, what it does not, and both in words: by two calls, since the loss is linear in beta."""
    one, two = weights(kit, beta=0.25), weights(kit, beta=0.5)
    most = max(map(abs, (*one, *two)))
    weighed = [4 * (b - a) for a, b in zip(one, two)]
    rest = [2 * a - b for a, b in zip(one, two)]
    weighed, rest = ([x if abs(x) > 0.01 * most else 0.0 for x in part] for part in (weighed, rest))
    says = f"Latents are drawn with {rest[0]:.2f} + {weighed[0]:.2f} * beta"
    says += f", codes with {rest[1]:.2f} + {weighed[1]:.2f} * beta." if kit.codes_learn else "."
    return Weights(*weighed), Weights(*rest), says


def both_terms(kit: Kit) -> tuple[Weights, Weights, str]:
    """Commitment loss, codebook loss, and both in words. On the wrong term, beta multiplies the codebook loss."""
    weighed, rest, says = terms(kit)
    if weighed.on_latents == 0 < weighed.on_codes:
        return rest, weighed, says
    return weighed, rest, says


def beta_on_the_commitment(kit: Kit) -> tuple[bool, str]:
    """Raising beta draws latents harder to their codes."""
    if not kit.adapter.takes("beta"):
        raise NotApplicable("build takes no beta.")
    weighed, _, says = terms(kit)
    return weighed.on_latents > 0, says


def commitment_moves_latents_alone(kit: Kit) -> tuple[bool, str]:
    """The commitment loss draws latents to their codes, and moves no code."""
    if not kit.adapter.takes("beta"):
        whole = weights(kit)
        return whole.on_latents > 0, f"The whole loss draws latents with {whole.on_latents:.2f}."
    commitment, _, says = both_terms(kit)
    return commitment.on_latents > 0 and commitment.on_codes == 0, says


def codebook_loss_moves_codes_alone(kit: Kit) -> tuple[bool, str]:
    """The codebook loss draws codes to their latents, and moves no latent."""
    if kit.adapter.update != "gradient":
        raise NotApplicable("No loss moves its codes.")
    if not kit.codes_learn:
        raise NotApplicable("The adapter has no codes.")
    if not kit.adapter.takes("beta"):
        whole = weights(kit)
        return whole.on_codes > 0, f"The whole loss draws codes with {whole.on_codes:.2f}."
    commitment, codebook, says = both_terms(kit)
    if codebook == (0, 0) and commitment.on_codes > 0:
        raise NotApplicable("Beta multiplies the whole loss, which moves latents and codes: see the commitment loss.")
    return codebook.on_codes > 0 and codebook.on_latents == 0, says


def gradient_passes(kit: Kit) -> tuple[bool, str]:
    """The gradient of what is decoded reaches the encoder, at each latent."""
    latents, back = kit.normal(COUNT, DIM).requires_grad_(), kit.normal(COUNT, DIM, draw=1)
    latents_q = kit.call(kit.built(), latents).latents_q
    if not latents_q.requires_grad:
        return False, "What it returns carries no gradient."
    (there,) = torch.autograd.grad(latents_q, latents, back, allow_unused=True)
    if there is None:
        return False, "The gradient does not reach the latents."
    reached = (there.norm(dim=1) > 1e-6 * back.norm(dim=1)).float().mean().item()
    times = (there.norm() / back.norm()).item()
    return reached == 1 and times < torch.inf, f"It reaches {reached:.0%} of the latents, {times:.2f} times as long."


# ---------------------------------------------------------------- moving averages


def averages_stay_within(kit: Kit) -> tuple[bool, str]:
    """From the start on, a moving average is never longer than all that it averages."""
    kit.needs_averages()
    quantizer, latents = kit.built(), kit.normal(COUNT, DIM)
    longest = max(one.norm(dim=1).max().item() for one in (kit.codes(quantizer), latents))
    for _ in range(3):
        kit.call(quantizer, latents)
    now = kit.codes(quantizer).norm(dim=1).max().item()
    return now < 1.01 * longest, f"At most {longest:.3g} long before, codes are up to {now:.3g} long after 3 steps."


def step_after_kmeans(kit: Kit) -> tuple[bool, str]:
    """A step on the latents of k-means does not raise their error."""
    kit.needs_averages()
    if not kit.adapter.takes("kmeans_on"):
        raise NotApplicable("build takes no kmeans_on.")
    latents = F.normalize(kit.normal(COUNT, DIM))  # of one length, so that cosines and distances agree
    quantizer = kit.built(kmeans_on=latents)
    before = F.mse_loss(kit.evaluated(quantizer, latents).latents_q, latents).item()
    kit.call(quantizer, latents)
    after = F.mse_loss(kit.evaluated(quantizer, latents).latents_q, latents).item()
    return after < 1.1 * before, f"The error goes from {before:.3g} to {after:.3g}."  # a stack's levels move at once


# ---------------------------------------------------------------- expiry


def expiry_revives(kit: Kit) -> tuple[bool, str]:
    """Where the latents are out of reach of nearly all codes, those come into use."""
    kit.needs("expires")
    quantizer, latents = kit.built(), kit.normal(COUNT, DIM) + 100
    used, step = kit.usage(kit.evaluated(quantizer, latents).index), 0
    before = used
    while used < 0.9 and step < 500:
        step += 1
        kit.call(quantizer, latents[torch.randperm(COUNT)[:256]])
        used = kit.usage(kit.evaluated(quantizer, latents).index)
    return used >= 0.9, f"{before:.0%} of the codes are in use at first, {used:.0%} after {step} steps."


def expiry_spares(kit: Kit) -> tuple[bool, str]:
    """Codes that are all used equally stay, at any batch size."""
    kit.needs("expires")
    moved = {}
    for per_code in (1, 16):
        quantizer = kit.built()
        before = kit.codes(quantizer).detach().clone()
        for _ in range(10):
            kit.call(quantizer, before.repeat(per_code, 1).flip(0))
        way = (kit.codes(quantizer) - before).norm(dim=1)
        moved[per_code] = (way > 1e-3 * before.norm(dim=1)).float().mean().item()
    says = " and ".join(f"{share:.0%} at N/K = {per_code}" for per_code, share in moved.items())
    return max(moved.values()) == 0, f"Of the codes {says} are elsewhere after 10 steps."


# ---------------------------------------------------------------- search, decoding, counting


def farther(kit: Kit, quantizer: Any, latents: Tensor) -> float:
    """The share of latents that get a code over 0.1 % farther than the nearest one, by differences in float64."""
    index, codes = kit.evaluated(quantizer, latents).index, kit.codes(quantizer).detach()
    each = torch.cdist(latents.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = each.gather(1, index[:, None].long())[:, 0]
    return (chosen > 1.001 * each.min(dim=1).values).double().mean().item()


def nearest_off_centre(kit: Kit) -> tuple[bool, str]:
    """The nearest code is chosen, also where latents and codes are all shifted by about 1,000."""
    quantizer = kit.built(256, 64)
    latents, codes = ((one * 64).round() / 64 for one in (kit.normal(COUNT, 64), kit.normal(256, 64, draw=1)))
    wrong = {}
    for shift in (0, 1024):  # in steps of 1/64 the shift itself is exact in float32
        kit.place(quantizer, codes + shift)
        wrong[shift] = farther(kit, quantizer, latents + shift)
    says = f"A farther code is chosen for {wrong[0]:.1%} of the latents, once shifted for {wrong[1024]:.1%}."
    return max(wrong.values()) == 0, says


def bfloat16_is_enough(kit: Kit) -> tuple[bool, str]:
    """Given latents and codes in bfloat16, it chooses the nearest of them, and its index decodes to what it chose."""
    quantizer, latents = kit.built(256, 64).bfloat16(), kit.normal(COUNT, 64).bfloat16()
    searches = kit.adapter.by_distance and kit.adapter.codes is not None
    if searches:
        kit.place(quantizer, kit.normal(256, 64, draw=1).bfloat16())
    try:
        latents_q, index, _ = kit.evaluated(quantizer, latents)
        with torch.no_grad():
            off = ((kit.decode(quantizer, index) - latents_q).abs().max() / latents_q.abs().max()).item()
    except RuntimeError as error:
        raise NotApplicable(f"It does not run in bfloat16: {first_line(error)}.") from None
    says, wrong = f"Decoded it is {off:.1%} off.", 0.0
    if searches:
        wrong = farther(kit, quantizer, latents)
        says += f" A farther code is chosen for {wrong:.1%} of the latents."
    return wrong == 0 and off < 0.1, says


def decodes_to_what_was_quantised(kit: Kit) -> tuple[bool, str]:
    """After some training, an index decodes to what was quantised."""
    quantizer, latents = kit.built(), kit.normal(COUNT, DIM)
    learnt = [one for one in quantizer.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=0.1) if learnt else None
    for _ in range(5):
        latents_q, _, loss = kit.call(quantizer, latents)
        objective = F.mse_loss(latents_q, latents) + (0 if loss is None else loss)
        if optimizer is not None and objective.requires_grad:
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
    latents_q, index, _ = kit.evaluated(quantizer, latents)
    with torch.no_grad():
        off = ((kit.decode(quantizer, index) - latents_q).abs().max() / latents_q.abs().max()).item()
    return off < 1e-4, f"It is up to {off:.2g} off, beside the largest number."


def usage_of_the_epoch(kit: Kit) -> tuple[bool, str]:
    """Usage depends on the data and not on the batches they come in."""
    kit.needs("usage")
    index = torch.randint(64, (1024,), generator=torch.Generator().manual_seed(kit.seed))
    counted: Any = kit.adapter.usage
    by_batch, at_once = (float(counted(list(batches), 64)) for batches in (index.split(32), [index]))
    says = f"In batches it is {by_batch:.3g}, all at once {at_once:.3g}."
    return abs(by_batch - at_once) <= 1e-6 * abs(at_once), says


CHECKS: dict[str, Callable[[Kit], tuple[bool, str]]] = {
    "beta": beta_on_the_commitment,
    "commitment loss": commitment_moves_latents_alone,
    "codebook loss": codebook_loss_moves_codes_alone,
    "gradient": gradient_passes,
    "averages": averages_stay_within,
    "k-means start": step_after_kmeans,
    "expiry": expiry_revives,
    "threshold": expiry_spares,
    "off centre": nearest_off_centre,
    "bfloat16": bfloat16_is_enough,
    "decoding": decodes_to_what_was_quantised,
    "usage": usage_of_the_epoch,
}
