"""The playground: a codebook that the reader moves, trains, loses and cures, computed in the browser as one looks.

`playground.js` has the steps and draws them; here are what they start from, so that its figures are those of the
module, and the same steps in the module, for pictures and for the test that compares the two. The widget runs where
anywidget does (JupyterLab, Colab, VS Code, with ipywidgets 7.7 or 8), and on the website without a kernel.
"""

import base64
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vqnotes import data, metrics, plots, remedies
from vqnotes._extras import course_extra
from vqnotes._printing import say
from vqnotes.kmeans import kmeans
from vqnotes.nearest import nearest_code
from vqnotes.quantizers import VectorQuantizer
from vqnotes.studies.drift import FIRST, widened

with course_extra("vqnotes.course.playground"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

MISSING = ""
if TYPE_CHECKING:
    from anywidget import AnyWidget
    from traitlets import Dict
else:
    try:
        from anywidget import AnyWidget
        from traitlets import Dict
    except ImportError as error:  # the pictures are there without it, and the rest of a notebook
        AnyWidget, MISSING = object, str(error.name)

__all__ = ["Moment", "Playground", "Training", "draw_story", "plane", "show_playground", "story"]

SCRIPT = Path(__file__).with_suffix(".js")
MODES, PER_MODE = 10, 200
REMEDIES: dict[str, type[VectorQuantizer]] = {
    "restart": remedies.RandomRestart,
    "expiry": remedies.CodeExpiry,
    "LRU": remedies.LeastRecentlyUsed,
    "CVQ": remedies.OnlineClustering,
}
RULES = ("Lloyd", "EMA", "gradient")


class Preset(NamedTuple):
    """What a playground starts with and has buttons for."""

    codebook_size: int
    start: str  # of the codes
    spread: float  # of the latents
    rule: str
    drift: float  # per step, of the way that is left
    follow: float  # 1 - decay, or the learning rate
    warmup: bool  # whether there is a button for it
    remedies: tuple[str, ...]


PRESETS = {
    "lloyd": Preset(10, "data", 1.0, "Lloyd", 0.0, 0.1, False, ()),
    "drift": Preset(64, "kmeans", FIRST, "EMA", 0.03, 0.01, True, ()),
    "remedies": Preset(64, "uniform", FIRST, "EMA", 0.03, 0.01, True, tuple(REMEDIES)),
}


def plane(preset: str, *, codebook_size: int | None = None, seed: int = 0) -> dict[str, Any]:
    """What the browser computes from: numbers, names, and arrays of float32 in base64, a point's two in a row.

    preset: "lloyd", "drift" or "remedies". codebook_size: K, 2 .. 125, None for that of the preset. seed: of the
    latents, of the codes, and of the reference of the gap. Raises ValueError for another preset or K.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {list(PRESETS)}, got {preset!r}")
    chosen = PRESETS[preset]
    size, most = chosen.codebook_size, MODES * PER_MODE // metrics.LATENTS_PER_CODE
    if codebook_size is not None:
        if not 2 <= codebook_size <= most:
            raise ValueError(f"codebook_size must be in 2 .. {most}, got {codebook_size}")
        size = codebook_size
    modes = data.gaussian_modes(MODES, PER_MODE, seed=seed)
    centroids, share = kmeans(modes.x, size, seed)
    quantizer = VectorQuantizer(size, 2, update="ema")
    quantizer.init_codes(chosen.start, chosen.spread * modes.x, seed)
    error = metrics.quantization_error(modes.x, centroids, relative=False)
    arrays = {"latents": modes.x, "codes": quantizer.codebook, "share": quantizer.share}
    arrays |= {"centroids": centroids, "centroid_share": share}
    return chosen._asdict() | {
        "preset": preset, "codebook_size": size, "seed": seed, "modes": MODES, "labels": modes.y.tolist(),
        "best": error / metrics.optimality_gap(modes.x, centroids, seed),
        "draws": int(torch.randint(2**32, (), generator=torch.Generator().manual_seed(seed))),
        **{name: _encoded(array) for name, array in arrays.items()},
    }  # fmt: skip


def _encoded(array: Tensor) -> str:
    return base64.b64encode(array.float().numpy().astype("<f4").tobytes()).decode()


def _decoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32).double()


# ---------------------------------------------------------------- the widget


class Playground(AnyWidget):
    """The playground as a widget. All of it happens in the browser: the kernel hears nothing of it.

    preset, codebook_size, seed: as in `plane`. shown: names of the remedies that have a button, of those in REMEDIES;
    None for those of the preset.
    Raises ValueError for another preset, K or remedy, and ImportError if anywidget is not installed.
    """

    if not MISSING:
        _esm = SCRIPT.read_text(encoding="utf-8")
        plane = Dict().tag(sync=True)

    def __init__(
        self, preset: str, *, codebook_size: int | None = None, seed: int = 0, shown: tuple[str, ...] | None = None
    ):
        given = plane(preset, codebook_size=codebook_size, seed=seed)
        if shown is not None:
            if unknown := [name for name in shown if name not in REMEDIES]:
                raise ValueError(f"remedies must be of {list(REMEDIES)}, got {unknown}")
            given["remedies"] = tuple(shown)
        if MISSING:
            raise ImportError(f"the playground needs {MISSING}: pip install 'vqnotes[course]'.", name=MISSING)
        super().__init__(plane=given)

    def __repr__(self) -> str:
        """The line that stands in a notebook where nothing runs, and by which the website knows what to show."""
        return f"[Explorer: the playground, {self.plane['preset']}, seed {self.plane['seed']}. Run to here to play.]"


def show_playground(preset: str, *, codebook_size: int | None = None, seed: int = 0) -> None:
    """Shows the playground; where anywidget is missing, says so in a sentence. Raises ValueError as `Playground`."""
    from IPython.display import display

    try:
        widget = Playground(preset, codebook_size=codebook_size, seed=seed)
    except ImportError as error:
        say(f"Nothing moves here: {error} Start the kernel anew then. Pictures show a part of what you would see.")
    else:
        display(widget)


# ---------------------------------------------------------------- the same steps in the module, and pictures of them


class Training:
    """The steps of the playground, done by the module's quantisers in double precision.

    given: of `plane`. rule: "Lloyd", "EMA" or "gradient". follow: 1 - decay, or the learning rate of plain gradient
    descent. remedy: a name of REMEDIES, or none. Raises ValueError for another rule, or follow out of (0, 1].
    """

    def __init__(self, given: dict[str, Any], rule: str, follow: float, remedy: str | None = None):
        if rule not in RULES or not 0 < follow <= 1:
            raise ValueError(f"rule must be one of {RULES} and follow in (0, 1], got {rule!r} and {follow}")
        moving = rule != "gradient"
        self.given, self.follow, self.spread, self.steps = given, follow, given["spread"], 0
        self.latents = _decoded(given["latents"]).view(-1, 2)
        options: dict[str, Any] = {"update": "ema", "decay": 0.0 if rule == "Lloyd" else 1 - follow} if moving else {}
        kind = VectorQuantizer if remedy is None else REMEDIES[remedy]
        self.quantizer = kind(given["codebook_size"], 2, **options).double()
        self.place(_decoded(given["codes"]).view(-1, 2), _decoded(given["share"]))
        if remedy is not None:
            self.quantizer.get_buffer("draws").fill_(given["draws"])

    def place(self, codes: Tensor, share: Tensor) -> None:
        """Puts the codes (K, 2) there; share (K,), as in `VectorQuantizer.place_codes`."""
        self.quantizer.place_codes(codes, share)

    def now(self) -> tuple[Tensor, Tensor]:
        """The latents (N, 2) and the codes (K, 2) as they are."""
        return self.spread * self.latents, self.quantizer.codebook.detach().clone()

    def advance(self, steps: int, drift: float) -> None:
        """Takes so many steps. drift: the share of the way to their full width that latents go in one."""
        for _ in range(steps):
            self.spread = widened(self.spread, drift)
            loss = self.quantizer(self.spread * self.latents).loss
            if self.quantizer.update == "gradient":
                (gradient,) = torch.autograd.grad(loss, self.quantizer.codebook)
                with torch.no_grad():
                    self.quantizer.codebook.sub_(self.follow * gradient)
        self.steps += steps

    def warm_up(self, drift: float, placed: float = 0.99) -> None:
        """Spreads the latents until they have `placed` of their width, then places the codes by k-means."""
        while self.spread < placed:
            self.spread = widened(self.spread, drift)
            self.steps += 1
        centroids = self.spread * _decoded(self.given["centroids"]).view(-1, 2)
        self.place(centroids, _decoded(self.given["centroid_share"]))

    def as_moment(self, name: str) -> "Moment":
        """What it has come to."""
        latents, codes = self.now()
        index, labels = nearest_code(latents, codes), torch.tensor(self.given["labels"])
        effective = metrics.perplexity(index, len(codes))
        modes = float(torch.tensor(metrics.mode_entropy(latents, codes, labels)).exp())
        gap = metrics.optimality_gap(latents, codes, self.given["seed"])
        return Moment(name, latents, codes, effective, gap, modes, int(index.unique().numel()))


class Moment(NamedTuple):
    """One picture of a story: latents (N, 2), codes (K, 2), and the figures that the playground shows."""

    name: str
    latents: Tensor
    codes: Tensor
    perplexity: float
    gap: float
    modes: float
    live: int


def _empty_corner(latents: Tensor) -> Tensor:
    """Of the corners of a frame around latents (N, 2), the one that is farthest from all of them, (2,)."""
    low, high = latents.amin(dim=0), latents.amax(dim=0)
    middle, half = (low + high) / 2, 1.05 * (high - low) / 2
    corners = torch.stack([middle + half * torch.tensor(one) for one in ((1, 1), (1, -1), (-1, 1), (-1, -1))])
    return corners[torch.cdist(corners, latents).amin(dim=1).argmax()]


def story(preset: str, *, seed: int = 0, steps: int = 300) -> list[Moment]:
    """The start, a collapse, and what cures it, as the playground shows them after so many steps.

    Raises ValueError for another preset.
    """
    given = plane(preset, seed=seed)
    rule, drift, follow = given["rule"], given["drift"], given["follow"]
    plain = Training(given, rule, follow)
    moments = [plain.as_moment("start")]
    plain.advance(steps, drift)
    moments.append(plain.as_moment(f"{rule}, step {steps}"))
    if preset == "lloyd":
        latents, codes = plain.now()
        codes[: len(codes) // 2] = _empty_corner(latents)
        plain.place(codes, torch.zeros(len(codes)))
        plain.advance(steps, drift)
        moments.append(plain.as_moment(f"half of the codes dragged into an empty corner, step {plain.steps}"))
        labels = torch.tensor(given["labels"])
        middles = [latents[labels == mode].mean(dim=0) for mode in range(MODES)]
        plain.place(torch.stack(middles), torch.zeros(MODES))
        plain.advance(steps, drift)
        return [*moments, plain.as_moment(f"one code dragged to each mode, step {plain.steps}")]
    if preset == "drift":
        slow = Training(given, rule, 0.5)
        slow.advance(5 * steps, drift / 10)
        moments.append(slow.as_moment(f"a tenth of the drift, follow 50 %, step {5 * steps}"))
    else:
        lru = Training(given, rule, follow, "LRU")
        lru.advance(steps, drift)
        moments.append(lru.as_moment(f"LRU, step {steps}"))
    warm = Training(given, rule, follow)
    warm.warm_up(drift)
    warm.advance(steps - warm.steps, drift)
    return [*moments, warm.as_moment(f"warm-up, step {steps}")]


def draw_story(moments: list[Moment]) -> tuple[Figure, str]:
    """The moments of a `story` side by side on one scale, and a text for readers who cannot see them."""
    figure, axes = plt.subplots(1, len(moments), figsize=(3.3 * len(moments), 3.9), sharex=True, sharey=True)
    said = []
    for ax, one in zip(axes, moments):
        plots.codes_and_latents(ax, one.latents, one.codes)
        found = f"perplexity {one.perplexity:.1f}, gap {one.gap:.1f}"
        ax.set_title("\n".join([*wrap(one.name, 30), found, f"{one.modes:.1f} modes covered"]), fontsize=10)
        said.append(f"{one.name}: {one.live} of {len(one.codes)} codes live, {found}, {one.modes:.1f} modes covered")
    axes[0].legend(loc="best", fontsize=8, markerscale=1.5)
    return figure, "The playground in pictures. " + "; ".join(said) + "."
