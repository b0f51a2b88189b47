"""A watch in the loops of Lightning and transformers: the real ones, so a case is skipped where its library is not.

Models are small and trainings short. What a callback logs is compared with the looks of its watch, and the training
with the same one without a callback.
"""

import copy
import csv
import functools
import json
import pickle
import struct
import warnings
from pathlib import Path

import pytest
import torch
from helpers import normal, run_python

from vqnotes import data, models
from vqnotes.diagnosis import CollapseWarning, CollapseWatch
from vqnotes.diagnosis.callbacks import lightning_callback, transformers_callback
from vqnotes.quantizers import VectorQuantizer
from vqnotes.training import fit

MODES = data.gaussian_modes(modes=32, per_mode=60, dim=16, seed=3).x
PROBE, STEPS, EVERY = MODES[:1024], 24, 8


@functools.cache
def warmed_up():
    """With codes that k-means has placed after a warm-up, and in use since one step."""
    torch.manual_seed(0)
    model = models.mlp_autoencoder(16, VectorQuantizer(64, 8))
    fit(model, MODES, seed=0, steps=61, warmup=60, lr=5e-3, batch_size=128, progress=False)
    return model


def autoencoder(sick):
    """A new one with random codes, or a copy of the one that was warmed up."""
    torch.manual_seed(0)
    return models.mlp_autoencoder(16, VectorQuantizer(64, 8)) if sick else copy.deepcopy(warmed_up())


def batches(count=STEPS):
    return torch.utils.data.DataLoader(MODES.repeat(2, 1)[: 128 * count], batch_size=128)


def quietly(train):
    """The messages of a training, by category."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for category in (CollapseWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        train()
    return [str(one.message) for one in caught if one.category in (CollapseWarning, RuntimeWarning)]


def scalars_of(watch, name):
    """What a logger should have: {(step, scalar): value}, by the table of looks."""
    found = {}
    for row in watch.looks().itertuples():
        assert row.name == name
        found[row.step, "collapse"] = float("collapse" in row.verdict)
        found |= {(row.step, "optimality_gap"): row.gap, (row.step, "usage"): row.usage}
        found[row.step, "perplexity"] = row.perplexity
    return {(step, f"vqnotes/{name}/{one}"): value for (step, one), value in found.items() if value == value}


def in_tensorboard(folder):
    """All scalars of a folder: {(step, tag): value}."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {(one.step, tag): one.value for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}


def in_wandb(folder):
    """All scalars of a run that Weights & Biases kept on disk: {(step, name): value}. Records stand in blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = {one.resolve() for one in folder.rglob("run-*.wandb")}
    kept, at, record, found = file.read_bytes(), 7, b"", {}
    while at + 7 <= len(kept):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", kept, at + 4)
        record, at = record + kept[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole of it, or its last part
            items = Record.FromString(record).history.item
            row = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}
            step = row.get("train/global_step", row.get("trainer/global_step", row.get("_step")))
            found |= {(step, name.removeprefix("train/")): value for name, value in row.items() if "vqnotes" in name}
            record = b""
    return found


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """Without a network: runs are kept in a folder."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    return pytest.importorskip("wandb")


def assert_logged(found, watch, name):
    ours = {key: value for key, value in found.items() if "vqnotes/" in key[1]}
    assert ours == pytest.approx(scalars_of(watch, name), rel=1e-6) and len(ours) >= 12


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# ---------------------------------------------------------------- Lightning


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request):
    return pytest.importorskip(request.param)


def module_of(lightning, model, optimizers=1):
    """A LightningModule around an autoencoder; with two optimisers, one for the quantiser, stepped by hand."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.automatic_optimization = model, optimizers == 1

        def forward(self, x):
            return self.model(x)[0]

        def training_step(self, x, number):
            rebuilt, quantized = self.model(x)
            loss = (rebuilt - x).square().mean() + quantized.loss
            self.log("loss", loss)
            if not self.automatic_optimization:
                for one in self.optimizers():
                    one.zero_grad()
                self.manual_backward(loss)
                for one in self.optimizers():
                    one.step()
            return loss

        def configure_optimizers(self):
            if optimizers == 1:
                return torch.optim.Adam(self.parameters(), lr=5e-3)
            parts = (*model.encoder.parameters(), *model.decoder.parameters()), model.quantizer.parameters()
            return [torch.optim.Adam(part, lr=5e-3) for part in parts]

    return Module()


def trainer_of(lightning, folder, callbacks=(), loggers=False, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=loggers,
        log_every_n_steps=1,
        default_root_dir=folder,
        **quiet,
        **options,
    )


@pytest.mark.parametrize("sick", [True, False])
def test_lightning_logs_what_the_watch_sees(lightning, tmp_path, sick):
    pytest.importorskip("tensorboard")
    loggers = [lightning.loggers.CSVLogger(tmp_path / "csv"), lightning.loggers.TensorBoardLogger(tmp_path / "board")]
    model, plain = autoencoder(sick), autoencoder(sick)
    watch = CollapseWatch(PROBE, every=EVERY)
    trainer = trainer_of(lightning, tmp_path, [lightning_callback(watch)], loggers)
    said = quietly(lambda: trainer.fit(module_of(lightning, model), batches()))
    assert trainer.global_step == STEPS and {0, 8, 16, 24} <= {*watch.looks()["step"]} <= {*range(STEPS + 1)}
    assert bool(said) == sick and all("model.quantizer: token collapse, confirmed" in one for one in said)

    with open(Path(loggers[0].log_dir) / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(int(row["step"]), name): float(value) for row in rows for name, value in row.items() if value}
    assert_logged(found, watch, "model.quantizer")
    assert {step for step, name in found if name == "loss"} == {*range(STEPS)}
    assert_logged(in_tensorboard(loggers[1].log_dir), watch, "model.quantizer")

    quietly(lambda: trainer_of(lightning, tmp_path).fit(module_of(lightning, plain), batches()))
    assert_same_weights(model, plain)


def test_lightning_steps_are_those_of_its_logs_with_two_optimisers(lightning, tmp_path):
    logger = lightning.loggers.CSVLogger(tmp_path)
    watch = CollapseWatch(PROBE, every=5)
    trainer = trainer_of(lightning, tmp_path, [lightning_callback(watch)], [logger])
    quietly(lambda: trainer.fit(module_of(lightning, autoencoder(False), optimizers=2), batches(12)))
    assert trainer.global_step == 24 and watch.looks()["step"].tolist() == [0, 5, 10]
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
    assert steps == [*range(12)]


def test_lightning_batches_that_are_accumulated_are_one_step(lightning, tmp_path):
    watch = CollapseWatch(PROBE, every=2)
    trainer = trainer_of(lightning, tmp_path, [lightning_callback(watch)], accumulate_grad_batches=3)
    quietly(lambda: trainer.fit(module_of(lightning, autoencoder(False)), batches()))
    assert trainer.global_step == 8 and watch.looks()["step"].tolist() == [0, 2, 4, 6, 8]


def test_lightning_trains_on_whatever_fails(lightning, tmp_path):
    class Broken(lightning.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any("vqnotes" in name for name in metrics):
                raise OSError("no room")
            super().log_metrics(metrics, step)

    callbacks = [
        lightning_callback(CollapseWatch(PROBE[:, :3], every=4)),  # of another shape
        lightning_callback(CollapseWatch(PROBE, every=4)),
    ]
    trainer = trainer_of(lightning, tmp_path, callbacks, [Broken(tmp_path)])
    said = quietly(lambda: trainer.fit(module_of(lightning, autoencoder(False)), batches()))
    assert trainer.global_step == STEPS and len(said) == 2
    assert said[0].startswith("step 0: the model is not watched, ValueError: ")
    assert said[1] == "step 0: nothing was logged, OSError: no room"
    assert callbacks[0].watch.turns == [] and {0, 4, 8, 12, 16, 20, 24} <= {*callbacks[1].watch.looks()["step"]}


def test_lightning_ends_only_by_a_warning_that_is_made_an_error(lightning, tmp_path):
    trainer = trainer_of(lightning, tmp_path, [lightning_callback(CollapseWatch(PROBE, every=EVERY))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", CollapseWarning)
        with pytest.raises(CollapseWarning, match="model.quantizer: token collapse, confirmed at step"):
            trainer.fit(module_of(lightning, autoencoder(True)), batches())
    assert 0 < trainer.global_step < STEPS


def test_lightning_looks_in_the_first_of_two_processes(tmp_path):
    pytest.importorskip("lightning.pytorch")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import lightning.pytorch as lightning, test_callbacks as ours\n"
        "def log(scalars, step):\n"
        f"    with open({str(tmp_path / 'looks')!r}, 'a') as file:\n"
        "        print(trainer.global_rank, step, file=file)\n"
        "watch = ours.CollapseWatch(ours.PROBE, every=4, log=log)\n"
        f"folder = {str(tmp_path)!r}; logger = lightning.loggers.CSVLogger(folder, name='csv', version=0)\n"
        "options = {'devices': 2, 'strategy': 'ddp_fork', 'loggers': [logger]}\n"
        "trainer = ours.trainer_of(lightning, folder, [ours.lightning_callback(watch)], **options)\n"
        "trainer.fit(ours.module_of(lightning, ours.autoencoder(False)), ours.batches())"
    )
    run_python(code)
    with open(tmp_path / "csv/version_0/metrics.csv", encoding="utf-8", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["loss"]] == [*range(STEPS // 2)]
    looks = [line.split() for line in (tmp_path / "looks").read_text(encoding="utf-8").splitlines()]
    assert [(rank, int(step)) for rank, step in looks] == [("0", step) for step in (0, 4, 8, 12)]


def test_a_model_that_is_split_over_processes_is_not_watched(tmp_path):
    """FSDP, both of its versions; a model in DistributedDataParallel is whole in each process."""
    code = (
        "from torch import device, distributed, nn\n"
        f"at = {'file://' + str(tmp_path / 'store')!r}\n"
        "distributed.init_process_group('gloo', init_method=at, rank=0, world_size=1)\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard\n"
        "from vqnotes.diagnosis.callbacks import _is_split\n"
        "wrapped = [nn.parallel.DistributedDataParallel(nn.Linear(4, 4))]\n"
        "wrapped += [FullyShardedDataParallel(nn.Linear(4, 4), device_id=device('cpu'))]\n"
        "wrapped += [fully_shard(nn.Linear(4, 4), mesh=init_device_mesh('cpu', (1,)))]\n"
        "print([_is_split(one) for one in [nn.Linear(4, 4), *wrapped]])\n"
        "distributed.destroy_process_group()"
    )
    assert run_python(code).stdout.strip() == "[False, False, True, True]"


def test_lightning_callbacks_are_its_own_and_can_be_copied():
    base = pytest.importorskip("lightning.pytorch").Callback
    made = lightning_callback(CollapseWatch(PROBE, every=3))
    assert isinstance(made, base)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other).__mro__[1:] == type(made).__mro__[1:] and other.watch.every == 3


# ---------------------------------------------------------------- transformers


class Rebuilding(torch.nn.Module):
    """A model as the Trainer wants it: keywords in, a loss first out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels=None):
        rebuilt, quantized = self.model(pixel_values)
        return {"loss": (rebuilt - pixel_values).square().mean() + quantized.loss, "rebuilt": rebuilt}


def trainer_by(model, folder, report_to="none", **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        logging_steps=EVERY,
        save_strategy="no",
        report_to=report_to,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    rows = [{"pixel_values": one} for one in MODES]
    return transformers.Trainer(model=Rebuilding(model), args=arguments, train_dataset=rows)


def by_keywords(model, batch):
    return model(**batch)


def watch_by_keywords(**options):
    return CollapseWatch([{"pixel_values": PROBE}], call=by_keywords, **options)


@pytest.mark.parametrize("sick", [True, False])
def test_transformers_logs_what_the_watch_sees(tmp_path, monkeypatch, sick):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model, plain = autoencoder(sick), autoencoder(sick)
    watch, trainer = watch_by_keywords(every=EVERY), trainer_by(model, tmp_path, report_to="tensorboard")
    trainer.add_callback(transformers_callback(watch, trainer.log))
    said = quietly(trainer.train)
    assert trainer.state.global_step == STEPS and {0, 8, 16, 24} <= {*watch.looks()["step"]} <= {*range(STEPS + 1)}
    assert bool(said) == sick and all("model.quantizer: token collapse, confirmed" in one for one in said)

    history = trainer.state.log_history
    assert_logged(
        {(row["step"], name): value for row in history for name, value in row.items()}, watch, "model.quantizer"
    )
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents*")}
    found = {(step, tag.removeprefix("train/")): value for (step, tag), value in in_tensorboard(folder).items()}
    assert_logged(found, watch, "model.quantizer")

    quietly(trainer_by(plain, tmp_path).train)
    assert_same_weights(model, plain)


def test_transformers_batches_that_are_accumulated_are_one_step(tmp_path):
    watch, trainer = (
        watch_by_keywords(every=10),
        trainer_by(autoencoder(False), tmp_path, gradient_accumulation_steps=2),
    )
    trainer.add_callback(transformers_callback(watch))
    quietly(trainer.train)
    assert watch.looks()["step"].tolist() == [0, 10, 20]
    assert not any("vqnotes" in name for row in trainer.state.log_history for name in row)


def test_transformers_trains_on_whatever_fails(tmp_path):
    def log(scalars):
        raise OSError("no room")

    trainer = trainer_by(autoencoder(False), tmp_path)
    lost, watch = CollapseWatch(PROBE[:, :3], every=4), watch_by_keywords(every=4)
    for one in (lost, watch):
        trainer.add_callback(transformers_callback(one, log))
    said = quietly(trainer.train)
    assert trainer.state.global_step == STEPS and len(said) == 2
    assert said[0].startswith("step 0: the model is not watched, ")
    assert said[1] == "step 0: nothing was logged, OSError: no room"
    assert lost.turns == [] and {0, 4, 8, 12, 16, 20, 24} <= {*watch.looks()["step"]}


def test_transformers_callbacks_are_its_own_and_can_be_copied():
    base = pytest.importorskip("transformers").TrainerCallback
    made = transformers_callback(watch_by_keywords(every=3))
    assert isinstance(made, base)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other).__mro__[1:] == type(made).__mro__[1:] and other.watch.every == 3


# ---------------------------------------------------------------- any loop


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("sick", [True, False])
def test_a_loop_logs_to_weights_and_biases(tmp_path, wandb, sick):
    model, run = autoencoder(sick), wandb.init(project="vqnotes", mode="offline", dir=tmp_path)
    watch = CollapseWatch(PROBE, every=EVERY, log=run.log)
    said = quietly(lambda: fit(model, MODES, seed=0, steps=STEPS, callback=watch, progress=False))
    run.finish()
    assert bool(said) == sick
    assert_logged(in_wandb(tmp_path), watch, "quantizer")


# ---------------------------------------------------------------- whatever is installed


def test_a_library_is_imported_when_its_callback_is_made_and_named_if_it_is_missing():
    uses = {
        "lightning_callback(CollapseWatch(torch.ones(9, 2)))": "lightning",
        "transformers_callback(CollapseWatch(torch.ones(9, 2)))": "transformers",
        "usage_metric(8)": "torchmetrics",
    }
    code = (
        "import sys; from vqnotes.diagnosis import CollapseWatch, callbacks\n"
        "libraries = ['lightning', 'pytorch_lightning', 'transformers', 'torchmetrics', 'wandb']\n"
        "print(sys.modules.keys() & libraries)\n"
        "sys.modules |= dict.fromkeys(libraries); import torch\n"
        f"for use in {list(uses)}:\n"
        "    try:\n        eval(f'callbacks.{use}')\n"
        "    except ImportError as error:\n        print(error)"
    )
    needs = [
        f"{use.partition('(')[0]} needs {package}, which is not installed: pip install {package}"
        for use, package in uses.items()
    ]
    assert run_python(code).stdout.splitlines() == ["set()", *needs]


@pytest.mark.parametrize("callback", [lightning_callback, transformers_callback])
def test_only_a_watch_makes_a_callback(callback):
    pytest.importorskip(callback.__name__.partition("_")[0])
    with pytest.raises(ValueError, match=r"need a CollapseWatch, got Tensor: CollapseWatch\(probe\) makes one"):
        callback(normal(9, 2))
