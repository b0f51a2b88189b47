"""Times the ways to a diagnosis that docs/training_loops.md compares: python tools/routes.py

Prints for each how many forward passes over the same images it takes. What is not installed is left out.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vqnotes import CollapseWatch, VectorQuantizer, data, diagnose, diagnose_model
from vqnotes.diagnosis.callbacks import lightning_callback, transformers_callback

IMAGES, CODES, DIM = 1024, 256, 8
CHECKPOINT = """
import sys, torch; sys.path.insert(0, {tools!r}); import routes
def build():
    return routes.with_weights(torch.load({weights!r}, weights_only=True))
"""


class Own(nn.Module):
    """A quantiser as people write it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(CODES, DIM)

    def forward(self, latents):
        index = torch.cdist(latents.reshape(-1, DIM), self.embedding.weight).argmin(1)
        codes = self.embedding(index).view_as(latents)
        return (latents + (codes - latents).detach(),)


class Staged(Own):
    """The same, with methods that say how it works."""

    def prepare(self, latents):
        return latents

    def codes(self):
        return self.embedding.weight


class Autoencoder(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.vq = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.GELU(), nn.Conv2d(64, DIM, 1)), quantizer
        self.decoder = nn.Sequential(nn.Conv2d(DIM, 64, 1), nn.GELU(), nn.ConvTranspose2d(64, 3, 4, 4))

    def forward(self, x):
        return self.decoder(self.vq(self.encoder(x).movedim(1, -1))[0].movedim(-1, 1))


class Learning(nn.Module):
    """With a loss, as the Trainer of transformers wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return {"loss": (self.model(x) - x).square().mean()}


class Watch(CollapseWatch):
    """How long its look takes, which is at the first step."""

    def look(self, step, model):
        start = time.perf_counter()
        super().look(step, model)
        self.seconds = time.perf_counter() - start


def with_weights(weights):
    model = Autoencoder(VectorQuantizer(CODES, DIM))
    model.load_state_dict(weights)
    return model


def described(model, images):
    functions = (lambda module, entered: entered), (lambda module: module.embedding.weight)
    diagnose_model(model, images, quantizers={"vq": functions})


def of_arrays(model, images):
    with torch.no_grad():
        diagnose(model.encoder(images), model.vq.codes(), inputs=images, channel_axis=1)


def from_a_shell(model, images):
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), f"{folder}/weights.pt")
        np.save(f"{folder}/images.npy", images.numpy())
        program = CHECKPOINT.format(tools=str(Path(__file__).parent), weights=f"{folder}/weights.pt")
        Path(folder, "checkpoint.py").write_text(program, encoding="utf-8")
        command = ["-m", "vqnotes", "model", f"{folder}/checkpoint.py:build", "--data", f"{folder}/images.npy"]
        subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=False)


def in_a_loop(model, images):
    watch = Watch(images)
    watch(0, model)
    return watch.seconds


def in_lightning(model, images):
    from lightning import pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.learning = Learning(model)

        def forward(self, x):
            return model(x)

        def training_step(self, x, number):
            return self.learning(x)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    watch = Watch(images)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", callbacks=[lightning_callback(watch)], **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(images, 8))
    return watch.seconds


def in_transformers(model, images):
    from transformers import Trainer, TrainingArguments

    watch = Watch(images, call=lambda learning, batch: learning.model(batch))
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
        trainer = Trainer(Learning(model), options, train_dataset=[{"x": one} for one in images[:8]])
        trainer.add_callback(transformers_callback(watch))
        trainer.train()
    return watch.seconds


ROUTES = {  # the quantiser, what is timed, the package that it needs
    "known": (VectorQuantizer, diagnose_model, "torch"),
    "found by watching": (Own, diagnose_model, "torch"),
    "described by two functions": (Own, described, "torch"),
    "a class with prepare() and codes()": (Staged, diagnose_model, "torch"),
    "arrays": (VectorQuantizer, of_arrays, "torch"),
    "a shell, with the start of Python": (VectorQuantizer, from_a_shell, "torch"),
    "a look in a loop": (VectorQuantizer, in_a_loop, "torch"),
    "a look in Lightning": (VectorQuantizer, in_lightning, "lightning"),
    "a look in transformers": (VectorQuantizer, in_transformers, "transformers"),
}


def made(kind, images):
    """An autoencoder whose codes are some of its latents."""
    torch.manual_seed(0)
    model = Autoencoder(kind(CODES, DIM) if kind is VectorQuantizer else kind())
    with torch.no_grad():
        latents = model.encoder(images[:64]).movedim(1, -1).reshape(-1, DIM)
        next(model.vq.parameters()).copy_(latents[torch.randperm(len(latents))[:CODES]])
    return model.eval()


def seconds(work, *given):
    """How long it took, as it says itself or by the clock."""
    start = time.perf_counter()
    told = work(*given)
    return told if isinstance(told, float) else time.perf_counter() - start


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    images = data.random_crops(data.photographs(), IMAGES, 32)
    model = made(VectorQuantizer, images)
    diagnose_model(model, images[:512])  # imports what is needed later
    with torch.no_grad():
        forward = min(seconds(lambda: list(map(model, images.split(256)))) for _ in range(5))
    print(f"forward pass over {tuple(images.shape)}, {64 * IMAGES:,} latents, {CODES} codes: {forward:.2f} s")
    for name, (kind, work, package) in ROUTES.items():
        if find_spec(package):
            print(f"{name}: {seconds(work, made(kind, images), images) / forward:.0f} passes")
