"""Small models around the quantisers of vector-quantize-pytorch, with each of its options; see libraries_page.py.

The encoder is trained. Then codes are placed by k-means, and may move on for some steps as the library moves them.
The encoder of a fixed grid is trained through it, since there is nothing else to train.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqnotes.diagnosis import Diagnosis, diagnose_model
from vqnotes.kmeans import kmeans

__all__ = ["PEERS", "Peer", "diagnoses", "named", "verdict"]

SIZE, DIM = 16, 8
COUNT, PLACES, HOP, SIDE = 64, 16, 8, 4
STEPS, FILLS, MOVES = 200, 3, 10


# ---------------------------------------------------------------- inputs and models


def pieces(numbers: int, hidden: int, signs: bool) -> Tensor:
    """(COUNT * PLACES, numbers) which hidden numbers determine, or signs, but for a little noise."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(COUNT * PLACES, hidden, generator=random)
    mixing = torch.linalg.qr(torch.randn(numbers, hidden, generator=random))[0].T
    noise = torch.randn(COUNT * PLACES, numbers, generator=random)
    return (drawn.sign() if signs else drawn) @ mixing + 0.05 * noise


class Around(nn.Module):
    """An encoder, and the quantiser behind it."""

    def __init__(self, quantizer: nn.Module, dim: int, layout: str):
        super().__init__()
        self.layout, self.vq = layout, quantizer
        self.encoder = nn.Conv2d(3, dim, SIDE, SIDE) if layout == "image" else nn.Conv1d(1, dim, HOP, HOP)

    def latents(self, x: Tensor) -> Tensor:
        """What enters the quantiser."""
        z = self.encoder(x)
        return z.movedim(1, -1) if self.layout == "last" else z

    def forward(self, x: Tensor, **named: Any) -> Any:
        return self.vq(self.latents(x), **named)


@dataclass(frozen=True)
class Peer:
    """A class of the library with some options.

    faults: what is done to a healthy model. right: the verdicts on the healthy model and on those. layout: of what
    enters: "last" for (N, places, D), "first" for (N, D, places), "image" for (N, D, H, W). hidden, signs: see
    `pieces`. beside: what else a batch holds. named: with what else it is called. refused: what is said without
    describe, which is `quantizers=`. shown: its options in words. moves: whether the library then moves its codes.
    """

    name: str
    options: dict
    faults: dict[str, Callable]
    right: tuple[str, ...]
    dim: int = DIM
    layout: str = "last"
    hidden: int = 3
    signs: bool = False
    beside: dict[str, Tensor] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)
    describe: dict | None = None
    refused: str = ""
    shown: str = ""
    moves: bool = True
    prepare: Callable[[Any], None] = lambda quantizer: None

    @property
    def said(self) -> str:
        """Its options, as they are written."""
        told = {name: one for name, one in self.options.items() if self.faults is GRID or name not in USUAL}
        return self.shown or ", ".join(f"{name}={one!r}" for name, one in told.items())

    def rows(self) -> Tensor:
        """The pieces of the inputs, a row each."""
        return pieces(3 * SIDE**2 if self.layout == "image" else HOP, self.hidden, self.signs)

    def inputs(self) -> Tensor:
        """(N, 1, samples) or (N, 3, H, W)"""
        if self.layout != "image":
            return self.rows().reshape(COUNT, 1, PLACES * HOP)
        side = round(PLACES**0.5)
        cut = self.rows().reshape(COUNT, side, side, 3, SIDE, SIDE)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(COUNT, 3, side * SIDE, side * SIDE)

    def model(self) -> Around:
        """As its maker's code makes it."""
        import vector_quantize_pytorch

        torch.manual_seed(0)
        quantizer = getattr(vector_quantize_pytorch, self.name)(**self.options)
        self.prepare(quantizer)
        return Around(quantizer, self.dim, self.layout)


# ---------------------------------------------------------------- healthy


def train(model: Around, parts: list[nn.Module], x: Tensor, through: Callable[[Tensor], Any]) -> None:
    """Some steps of these parts of the model, with a linear decoder of what `through` gives, (output, loss)."""
    last, image = model.layout == "last", model.layout == "image"
    with torch.no_grad():
        width = through(model.latents(x[:2]))[0].shape[-1 if last else 1]
    linear = nn.ConvTranspose2d(width, 3, SIDE, SIDE) if image else nn.ConvTranspose1d(width, 1, HOP, HOP)
    optimizer = torch.optim.Adam([one for part in [*parts, linear] for one in part.parameters()], 1e-2, fused=True)
    model.train()
    for _ in range(STEPS):
        some = x[torch.randperm(len(x))[:32]]
        out, loss = through(model.latents(some))
        loss = F.mse_loss(linear(out.movedim(-1, 1) if last else out), some) / some.var() + loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@cache
def encoder(layout: str, hidden: int) -> dict[str, Tensor]:
    """The numbers of one that is trained without a quantiser."""
    torch.manual_seed(0)
    model = Around(nn.Identity(), DIM, layout)
    train(model, [model.encoder], Peer("", {}, {}, (), layout=layout, hidden=hidden).inputs(), lambda z: (z, 0.0))
    return model.encoder.state_dict()


def codebooks(model: nn.Module) -> list[nn.Module]:
    """The modules whose codes can be placed, which are called with what is compared with them."""
    return [one for one in model.modules() if hasattr(one, "embed_avg") or hasattr(one, "frozen_codebook")]


def place(book: nn.Module, rows: Tensor) -> None:
    """Codes by k-means on rows (heads, n, D) become those of the codebook."""
    if hasattr(book, "frozen_codebook"):
        found = kmeans(rows[0], len(book.frozen_codebook))[0]
        book.frozen_codebook.copy_(found @ torch.linalg.pinv(book.code_transform.weight.T))
        return
    found = torch.stack([kmeans(one, book.embed.shape[1])[0] for one in rows])
    found = F.normalize(found, dim=-1) if book.use_cosine_sim else found
    found = found if book.vq_bridge is None else found @ torch.linalg.pinv(book.vq_bridge.weight.T)
    book.embed.copy_(found), book.embed_avg.copy_(found), book.cluster_size.fill_(1), book.initted.fill_(True)


@torch.no_grad()
def fill(model: Around, batch: dict, moves: bool) -> None:
    """Places all codes, level after level, and lets the library move them on."""
    books = codebooks(model.vq)
    met: dict[nn.Module, list[Tensor]] = {}

    def meet(module: nn.Module, arguments: tuple) -> None:
        rows = arguments[0].movedim(1, -1) if getattr(module, "channel_first", False) else arguments[0]
        heads = len(module.embed) if hasattr(module, "embed") else 1
        met.setdefault(module, []).append(rows.reshape(heads, -1, rows.shape[-1]))

    hooks = [book.register_forward_pre_hook(meet) for book in books]
    for _ in range(FILLS):
        met.clear()
        model(**batch)
        for book, rows in met.items():
            place(book, torch.cat(rows, 1))
    for hook in hooks:
        hook.remove()
    model.train()
    for _ in range(MOVES if moves else 0):
        with torch.enable_grad():
            model(**batch)
    model.eval()


def healthy(peer: Peer, batch: dict) -> Around:
    """The model, trained and filled."""
    model, x = peer.model(), batch["x"]
    around = [getattr(model.vq, name, None) for name in ("project_in", "project_out")]
    if not codebooks(model):
        train(model, [model], x, lambda z: through(model.vq, z))
        return model
    model.encoder.load_state_dict(encoder(peer.layout, peer.hidden))
    if None not in around and not isinstance(around[0], nn.Identity):
        train(model, around, x, lambda z: (around[1](around[0](z)), 0.0))
    fill(model.eval(), batch, peer.moves)
    return model


def through(grid: nn.Module, z: Tensor) -> tuple[Tensor, Tensor | float]:
    """What a grid makes of latents, and its losses."""
    out, *rest = grid(z)
    losses = [one for one in rest if isinstance(one, Tensor) and one.is_floating_point()]
    return out, losses[-1].sum() if losses else 0.0


# ---------------------------------------------------------------- faults


def first_codes(model: Around) -> tuple[Any, Tensor]:
    """Its first codebook, and the table of that, (heads, K, D) or (K, D)."""
    book: Any = codebooks(model.vq)[0]
    return book, book.frozen_codebook if hasattr(book, "frozen_codebook") else book.embed


def put(book: Any, table: Tensor, codes: Tensor) -> None:
    """Codes, of length 1 where directions are compared, become those of the table."""
    table.copy_(F.normalize(codes, dim=-1) if getattr(book, "use_cosine_sim", False) else codes)


def crowded(model: Around, rows: Tensor, peer: Peer) -> None:
    """All codes of the first codebook are put into one place."""
    book, table = first_codes(model)
    put(book, table, table[..., :1, :] + 0.02 * table.std() * torch.randn(table.shape))


def banished(model: Around, rows: Tensor, peer: Peer) -> None:
    """Two of its codes stay where they are, and all others are put far away."""
    book, table = first_codes(model)
    far = 0.1 * table[..., 2:, :] + 100 * table.std() * F.one_hot(torch.tensor(0), table.shape[-1])
    put(book, table, torch.cat([table[..., :2, :], far], -2))


def cornered(model: Around, rows: Tensor, peer: Peer) -> None:
    """All latents are moved into one corner of the grid."""
    projections = [one for name, one in model.vq.named_modules() if name.endswith("project_in")]
    linear = [one for one in projections if isinstance(one, nn.Linear)]
    for one in linear or [model.encoder]:
        one.weight.mul_(0.005), one.bias.fill_(0.35)


def lost(model: Around, rows: Tensor, peer: Peer) -> None:
    """The encoder passes on the noise, and nothing of the hidden numbers; latents spread as before."""
    noise = torch.linalg.svd(rows, full_matrices=False).Vh[peer.hidden :]
    weight = torch.randn(peer.dim, len(noise)) @ noise
    own = rows @ model.encoder.weight.flatten(1).T + model.encoder.bias
    weight = weight * (own.std(0) / (rows @ weight.T).std(0))[:, None]
    model.encoder.weight.copy_(weight.reshape(model.encoder.weight.shape))
    model.encoder.bias.copy_(own.mean(0))


CODES = {"crowded": crowded, "banished": banished}
GRID = {"cornered": cornered, "inputs lost": lost}
ILL_CODES = "healthy", "token collapse", "token collapse"
ILL_GRID = "healthy", "token collapse", "embedding collapse"


# ---------------------------------------------------------------- the classes


USUAL = {"dim", "codebook_size", "accept_image_fmap"}
BASE: dict[str, Any] = {"dim": DIM, "codebook_size": SIZE}
MASK = torch.arange(PLACES)[None] < torch.arange(COUNT)[:, None] % PLACES + 1
LEARNT = {"learnable_codebook": True, "ema_update": False}


def vq(shown: str = "", layout: str = "last", beside: Any = None, more: Any = None, **options: Any) -> Peer:
    return book("VectorQuantize", shown, {"layout": layout, "beside": beside or {}} | (more or {}), **options)


def book(name: str, shown: str = "", more: Any = None, right: tuple = ILL_CODES, **options: Any) -> Peer:
    return Peer(name, BASE | options, CODES, right, shown=shown, **(more or {}))


def grid(name: str, shown: str = "", more: Any = None, right: tuple = ILL_GRID, **options: Any) -> Peer:
    dim = options.get("dim", options.get("bits", DIM))
    return Peer(name, options, GRID, right, dim, shown=shown, **(more or {}))


def bridge() -> nn.Module:
    """A map of all codes."""
    linear = nn.Linear(DIM, DIM, bias=False)
    nn.init.orthogonal_(linear.weight)
    return linear


def off_centre(quantizer: Any) -> None:
    """As after a training: the codes lie elsewhere than the latents, to whose spread they are fitted."""
    quantizer._codebook.embed.mul_(0.1).add_(3)


def first_of(module: Any) -> Tensor:
    return module.layers[0].codebook


FIRST_LEVEL = {"vq": (lambda module, z: module.project_in(z), first_of, lambda module, given: given[1][..., 0])}
ONE_LEVEL = {"describe": FIRST_LEVEL, "refused": "implicit neural codebook"}
BEAMS = {"describe": FIRST_LEVEL, "refused": "several codes a latent"}
FSP = {
    "vq": (
        lambda module, z: module.act_func(module.project_in(z)),
        lambda module: module.indices_to_act_value(torch.arange(module.codebook_size)),
    )
}
NOT_ENCODER = "cannot tell", "token collapse", "token collapse"
LATER_LEVELS = "cannot tell and healthy", "token collapse", "token collapse"
OUTGROWN = "token collapse", "token collapse", "embedding collapse"  # nothing holds what is rounded near the grid
DRAWN = "cannot tell", "cannot tell", "embedding collapse"
SIGNS = {"signs": True, "hidden": 3}
FIRST, IMAGE = {"layout": "first"}, {"layout": "image"}
LFQ_DIM = {"codebook_size": SIZE, "dim": 4, "commitment_loss_weight": 1.0}
SCALES = {"scales": (8, PLACES), "channel_first": False}

PEERS = [
    vq(),
    vq(use_cosine_sim=True),
    vq(codebook_dim=4),
    vq(codebook_dim=4, layernorm_after_project_in=True),
    vq(heads=2, codebook_dim=4),
    vq(heads=2, codebook_dim=4, separate_codebook_per_head=True),
    vq(heads=2, codebook_dim=4, separate_codebook_per_head=True, use_cosine_sim=True),
    vq(affine_param=True, more={"prepare": off_centre}),
    vq(rotation_trick=False),
    vq(directional_reparam=True, threshold_ema_dead_code=1),
    vq(straight_through=True, rotation_trick=False),
    vq(stochastic_sample_codes=True, sample_codebook_temp=0.1),
    vq(kmeans_init=True),
    vq(threshold_ema_dead_code=2),
    vq(orthogonal_reg_weight=1.0),
    vq(**LEARNT),
    vq(**LEARNT, sync_update_v=0.1),
    vq("in_place_codebook_optimizer=SGD", **LEARNT, in_place_codebook_optimizer=torch.optim.SGD),
    vq("vq_bridge=Linear(8, 8)", vq_bridge=bridge()),
    vq("mask=...", beside={"mask": MASK}),
    vq("lens=...", beside={"lens": MASK.sum(1)}),
    vq("heads=2, mask=...", beside={"mask": MASK}, more={"moves": False}, heads=2, codebook_dim=4),
    vq(channel_last=False, layout="first"),
    vq("accept_image_fmap=True", layout="image", accept_image_fmap=True),
    book("ResidualVQ", num_quantizers=2),
    book("ResidualVQ", num_quantizers=2, shared_codebook=True),
    book("ResidualVQ", num_quantizers=2, codebook_dim=4),
    book("ResidualVQ", num_quantizers=2, use_cosine_sim=True),
    book("ResidualVQ", num_quantizers=2, quantize_dropout=True),
    book("ResidualVQ", num_quantizers=2, diveq=True, threshold_ema_dead_code=1),
    book("ResidualVQ", num_quantizers=2, implicit_neural_codebook=True, more=ONE_LEVEL),
    book("ResidualVQ", num_quantizers=2, beam_size=2, more=BEAMS),
    book("GroupedResidualVQ", num_quantizers=2, groups=2),
    book("SimVQ"),
    book("SimVQ", rotation_trick=False),
    book("SimVQ", channel_first=True, more=FIRST),
    book("ResidualSimVQ", num_quantizers=2),
    book("RandomProjectionQuantizer", codebook_dim=6),
    book("RandomProjectionQuantizer", codebook_dim=6, num_codebooks=2),
    book("HierarchicalVQ", **SCALES, right=NOT_ENCODER),
    book("HierarchicalVQ", **SCALES | {"scales": (PLACES, PLACES)}, right=LATER_LEVELS, shared_codebook=False),
    grid("FSQ", levels=[3, 3, 3], dim=3),
    grid("FSQ", levels=[4, 4, 4], dim=3),
    grid("FSQ", levels=[3, 3, 3], dim=8),
    grid("FSQ", levels=[4, 4], num_codebooks=2, dim=8),
    grid("FSQ", levels=[3, 3, 3], preserve_symmetry=True, dim=3),
    grid("FSQ", levels=[3, 3, 3], preserve_symmetry=True, bound_hard_clamp=True, dim=3),
    grid("FSQ", levels=[3, 3, 3], orthogonal_rotation=True, dim=3),
    grid("FSQ", levels=[3, 3, 3], channel_first=True, dim=3, more=FIRST),
    grid("FSQ", "levels=[3, 3, 3], of images", levels=[3, 3, 3], dim=3, more=IMAGE),
    grid("FSQ", levels=[3, 3, 3], return_indices=False, dim=3),
    grid("ResidualFSQ", levels=[3, 3, 3], num_quantizers=2, dim=3),
    grid("GroupedResidualFSQ", levels=[4, 4], num_quantizers=2, groups=2, dim=8),
    grid("LFQ", more=SIGNS, **LFQ_DIM),
    grid("LFQ", more=SIGNS, **LFQ_DIM | {"dim": 8}),
    grid("LFQ", more=SIGNS, **LFQ_DIM | {"codebook_size": 4, "dim": 8}, num_codebooks=2),
    grid("LFQ", more=SIGNS, **LFQ_DIM, spherical=True),
    grid("LFQ", more=SIGNS, **LFQ_DIM, soft_clamp_input_value=2.0),
    grid("LFQ", more=SIGNS, **LFQ_DIM, orthogonal_rotation=True),
    grid("LFQ", "of images", more=SIGNS | IMAGE, **LFQ_DIM),
    grid("ResidualLFQ", num_quantizers=2, **LFQ_DIM | {"codebook_size": 8, "dim": 3}),
    grid("GroupedResidualLFQ", num_quantizers=2, groups=2, **LFQ_DIM | {"codebook_size": 4, "dim": 8}),
    grid("LatentQuantize", levels=[3, 3, 3], dim=3, quantization_loss_weight=3.0, more=FIRST),
    grid("LatentQuantize", levels=[3, 3, 3], dim=8, more=FIRST, right=OUTGROWN),
    grid("LatentQuantize", "of images", levels=[3, 3, 3], dim=3, quantization_loss_weight=3.0, more=IMAGE),
    grid("FSP", levels=[3, 3, 3], dim=3, more={"describe": FSP, "refused": "no quantiser found"}),
    grid("BinaryMapper", bits=4, deterministic_on_eval=True, more=SIGNS),
    grid(
        "BinaryMapper",
        "bits=4, called with deterministic=True",
        bits=4,
        more=SIGNS | {"named": {"deterministic": True}},
    ),
    grid("BinaryMapper", bits=4, more=SIGNS, right=DRAWN),
]


# ---------------------------------------------------------------- what is said of them


def named(peer: Peer) -> str:
    return f"{peer.name}({peer.said})"


def diagnoses(peer: Peer) -> dict[str, dict[str, Diagnosis]]:
    """Those of the healthy model, and of the model after each of the faults."""
    batch = {"x": peer.inputs()} | peer.beside
    model, rows, found = healthy(peer, batch), peer.rows(), {}
    for how, change in {"healthy": None, **peer.faults}.items():
        ill = copy.deepcopy(model)
        torch.manual_seed(0)
        with torch.no_grad():
            if change:
                change(ill, rows, peer)
        found[how] = diagnose_model(ill, **arguments(peer, batch), quantizers=peer.describe, progress=False)
    return found


def arguments(peer: Peer, batch: dict) -> dict[str, Any]:
    """What else `diagnose_model` is told."""
    return {"data": [batch], "call": lambda model, batch: model(**batch, **peer.named), "inputs": "x"}


def verdict(found: dict[str, Diagnosis]) -> str:
    """Those on the wholes, and not on their levels and heads."""
    whole = [one for one in found if not any(one.startswith((f"{other}.", f"{other}[")) for other in found)]
    return " and ".join(sorted({str(found[name].verdict) for name in whole}))
