"""Small models of libraries that quantise, as their users build, fill and call them; see libraries_page.py.

A library is imported when its model is built.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["CASES", "DIM", "HOP", "SIDE", "SIZE", "Case"]

SIZE, DIM, COUNT = 32, 8, 128
HOP, SIDE = 8, 4  # samples of sound, and pixels along a side, that make one latent
RATE = 24_000


# ---------------------------------------------------------------- inputs


def pieces(count: int, numbers: int) -> Tensor:
    """(count, numbers), which three hidden numbers determine but for a little noise."""
    random = np.random.default_rng(0)
    hidden, mixed = random.standard_normal((count, 3)), random.standard_normal((3, numbers))
    noise = 0.05 * random.standard_normal((count, numbers))
    return torch.from_numpy(0.3 * hidden @ mixed / 3**0.5 + noise).float()


def sounds(places: int = 32) -> Tensor:
    """(N, 1, samples)"""
    return pieces(COUNT * places, HOP).reshape(COUNT, 1, places * HOP)


def images(places: int = 4) -> Tensor:
    """(N, 3, H, W)"""
    cut = pieces(COUNT * places**2, 3 * SIDE**2).reshape(COUNT, places, places, 3, SIDE, SIDE)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(COUNT, 3, places * SIDE, places * SIDE)


# ---------------------------------------------------------------- the libraries' models


@dataclass(frozen=True)
class Case:
    """A model of a library.

    encode: latents (N, D, places ...) of inputs (N, ...), which nothing has quantised. tables: its codebooks (K, D);
    those in one list each code what the one before left. put: puts changed ones back where they are copies.
    batch: inputs as the model's users have them. options: of diagnose_model.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    encode: Callable[[Any, Tensor], Tensor]
    tables: Callable[[Any], list[list[Tensor]]]
    batch: Callable[[Tensor], Any] = lambda x: x
    shown: str = "a tensor"  # what a batch is, in words
    options: dict = field(default_factory=dict)
    by_direction: bool = False
    dim: int = DIM  # of the latents
    put: Callable[[Any, list[list[Tensor]]], None] = lambda model, tables: None


def vq_model() -> nn.Module:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=DIM,
        vq_embed_dim=DIM,
        num_vq_embeddings=SIZE,
        norm_num_groups=4,
    )


def encodec() -> nn.Module:
    from transformers import EncodecConfig, EncodecModel

    sizes = {"codebook_size": SIZE, "codebook_dim": DIM, "hidden_size": DIM, "num_filters": 8}
    layers = {"num_residual_layers": 1, "num_lstm_layers": 1, "upsampling_ratios": [4, 2]}
    return EncodecModel(EncodecConfig(**sizes, **layers, target_bandwidths=[30.0], sampling_rate=RATE))


def dac() -> nn.Module:
    from transformers import DacConfig, DacModel

    sizes = {"codebook_size": SIZE, "codebook_dim": DIM, "hidden_size": DIM, "n_codebooks": 2}
    layers = {"encoder_hidden_size": 8, "decoder_hidden_size": 16}
    return passing(DacModel(DacConfig(**sizes, **layers, downsampling_ratios=[2, 4], upsampling_ratios=[4, 2])))


def mimi() -> nn.Module:
    from transformers import MimiConfig, MimiModel

    sizes = {"codebook_size": SIZE, "codebook_dim": DIM, "vector_quantization_hidden_dimension": DIM}
    layers = {"num_filters": 8, "num_residual_layers": 1, "upsampling_ratios": [2, 2], "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
    levels = {"num_quantizers": 3, "num_semantic_quantizers": 1}
    return passing(MimiModel(MimiConfig(**sizes, **layers, **heads, **levels, hidden_size=32, upsample_groups=32)))


def features(extractor: str, x: Tensor, **options: int) -> dict:
    """What a processor of transformers makes of sounds."""
    import transformers

    made = getattr(transformers, extractor)(feature_size=1, sampling_rate=RATE, **options)
    return {**made(list(x[:, 0].numpy()), sampling_rate=RATE, return_tensors="pt")}


def passing(model: nn.Module) -> nn.Module:
    """The model with its quantisers' projections as they pass all on."""
    for name, one in model.named_modules():
        if "quantizer" in name and isinstance(one, nn.Conv1d):
            nn.init.dirac_(one.weight.data)
            if one.bias is not None:
                nn.init.zeros_(one.bias)
    return model


def chameleon() -> nn.Module:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    sizes = {"num_embeddings": SIZE, "embed_dim": DIM, "latent_channels": DIM, "base_channels": 32}
    return ChameleonVQVAE(
        ChameleonVQVAEConfig(**sizes, channel_multiplier=[1, 1, 1], num_res_blocks=1, resolution=16)
    )


def xcodec() -> nn.Module:
    from transformers import XcodecConfig, XcodecModel

    strides = {"downsampling_ratios": [4, 2], "upsampling_ratios": [4, 2]}
    sound = {"encoder_hidden_size": 8, "decoder_hidden_size": 16, "hidden_size": DIM // 2, **strides}
    convolved = {"conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 2), "num_feat_extract_layers": 2}
    around = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_attention_heads": 1}
    meaning = {"hidden_size": DIM // 2, "num_hidden_layers": 1, "intermediate_size": 8, **convolved, **around}
    rate = {"target_bandwidths": [20.0], "sample_rate": 16_000}
    models = {"acoustic_model_config": sound, "semantic_model_config": {"model_type": "hubert", **meaning}}
    return XcodecModel(XcodecConfig(codebook_size=SIZE, **models, **rate))


def xcodec_encoded(model: Any, x: Tensor) -> Tensor:
    heard: list[Tensor] = []
    hook = model.fc.register_forward_hook(lambda module, given, made: heard.append(made))
    model.encode(x)
    hook.remove()
    return heard[0].transpose(1, 2)


def emu3() -> nn.Module:
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE, Emu3VQVAEConfig

    sizes = {"codebook_size": SIZE, "embed_dim": DIM, "latent_channels": DIM, "z_channels": DIM, "hidden_size": 32}
    layers = {"base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []}
    return Emu3VQVAE(Emu3VQVAEConfig(**sizes, **layers, temporal_downsample_factor=1))


def emu3_encoded(model: Any, x: Tensor) -> Tensor:
    return model.quant_conv(model.encoder(x[:, None]).transpose(1, 2))[:, :, 0]


def emu3_called(model: Any, batch: dict) -> Tensor:
    return model.decode(torch.stack(model.encode(**batch).image_tokens))


def facebook_rows(model: Any) -> list[list[Tensor]]:
    """The codebooks of encodec, and of audiocraft's copy of its quantiser."""
    return [[one._codebook.embed for one in model.quantizer.vq.layers]]


def facebook_encodec() -> nn.Module:
    with standing_in({"torchaudio": None}):  # it changes sampling rates, and its wheels may want CUDA
        from encodec.model import EncodecModel
        from encodec.modules import SEANetDecoder, SEANetEncoder
        from encodec.quantization import ResidualVectorQuantizer

    sizes = {"channels": 1, "dimension": DIM, "n_filters": 8, "n_residual_layers": 1, "ratios": [4, 2], "lstm": 1}
    quantizer = ResidualVectorQuantizer(dimension=DIM, n_q=2, bins=SIZE)
    for level in quantizer.vq.layers:
        level._codebook.inited.fill_(1)  # as in a model that has been trained
    return EncodecModel(SEANetEncoder(**sizes), SEANetDecoder(**sizes), quantizer, [30.0], RATE, 1)


class Around(nn.Module):
    """A quantiser of sounds between two convolutions of ours."""

    def __init__(self, quantizer: Any, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv1d(1, DIM, HOP, HOP), nn.ConvTranspose1d(DIM, 1, HOP, HOP)
        self.quantizer, self.call = quantizer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.call(self.quantizer, self.encoder(x)))


def descript() -> nn.Module:
    with standing_in({"dac": "dac", "dac.nn": "dac/nn"}, "descript-audio-codec"):  # they want thirty packages
        from dac.nn.quantize import ResidualVectorQuantize

    quantizer = ResidualVectorQuantize(DIM, n_codebooks=2, codebook_size=SIZE, codebook_dim=DIM)
    for name, one in quantizer.named_modules():
        if name.endswith("_proj"):  # of normed weights
            nn.init.dirac_(one.weight_v), nn.init.ones_(one.weight_g), nn.init.zeros_(one.bias)
    return Around(quantizer, lambda quantizer, z: quantizer(z)[0])


def audiocraft() -> nn.Module:
    # Its package wants a torch of its own; flashy sends codes to other processes.
    with standing_in({"audiocraft": "audiocraft", "flashy": None}, "audiocraft"):
        from audiocraft.quantization import ResidualVectorQuantizer

    quantizer = ResidualVectorQuantizer(DIM, n_q=2, bins=SIZE, kmeans_init=False)
    return Around(quantizer, lambda quantizer, z: quantizer(z, RATE // HOP).x)


@contextmanager
def standing_in(modules: dict[str, str | None], package: str = "") -> Iterator[None]:
    """Meanwhile modules of these names are empty, but for what lies in their folders in the package."""
    before = {name: sys.modules.get(name) for name in modules}
    for name, folder in modules.items():
        sys.modules[name] = ModuleType(name)
        if folder:
            sys.modules[name].__path__ = [str(distribution(package).locate_file(folder))]
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def wav2vec() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    heard = {"conv_dim": (2 * DIM,), "conv_stride": (HOP,), "conv_kernel": (HOP,), "feat_extract_norm": "layer"}
    heard |= {"num_feat_extract_layers": 1, "conv_bias": True}
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    around = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "proj_codevector_dim": DIM}
    codes = {"num_codevectors_per_group": SIZE, "num_codevector_groups": 2, "codevector_dim": DIM}
    return Wav2Vec2ForPreTraining(Wav2Vec2Config(**heard, **layers, **around, **codes))


def wav2vec_encoded(model: Any, x: Tensor) -> Tensor:
    features = model.wav2vec2.feature_extractor(x[:, 0]).transpose(1, 2)
    return model.wav2vec2.feature_projection(features)[1].transpose(1, 2)


def wav2vec_rows(model: Any) -> list[list[Tensor]]:
    """Of each group, what its linear map multiplies latents by."""
    return [[one.detach().clone()] for one in model.quantizer.weight_proj.weight.unflatten(0, (-1, SIZE))]


def wav2vec_put(model: Any, tables: list[list[Tensor]]) -> None:
    """Offsets by which the largest number is that of the nearest row; they stay unless rows are put out of reach."""
    rows, scores = torch.cat([table for (table,) in tables]), model.quantizer.weight_proj
    scores.weight.copy_(rows)
    offsets, own = -rows.square().sum(1) / 2, scores.bias
    scores.bias.copy_(torch.where(offsets < 10 * own.min(), offsets, own) if own.any() else offsets)


def by_name(model: Any, batch: Any) -> Any:
    return model(**batch)


def by_values(model: Any, batch: Any) -> Any:
    return model(batch["input_values"])


CASES = [
    Case(
        "diffusers",
        "VQModel",
        vq_model,
        images,
        lambda model, x: model.encode(x).latents,
        lambda model: [[model.quantize.embedding.weight]],
    ),
    Case(
        "transformers",
        "EncodecModel",
        encodec,
        sounds,
        lambda model, x: model.encoder(x),
        lambda model: [[one.codebook.embed for one in model.quantizer.layers]],
        lambda x: [features("EncodecFeatureExtractor", x)],
        "`input_values`, `padding_mask`",
        {"call": by_name},
    ),
    Case(
        "transformers",
        "DacModel",
        dac,
        sounds,
        lambda model, x: model.encoder(x),
        lambda model: [[one.codebook.weight for one in model.quantizer.quantizers]],
        lambda x: [features("DacFeatureExtractor", x, hop_length=HOP)],
        "`input_values`, `padding_mask`",
        {"call": by_values},
        by_direction=True,
    ),
    Case(
        "transformers",
        "MimiModel",
        mimi,
        sounds,
        lambda model, x: model.encoder(x).latents[:, :DIM],  # which its projections pass on
        lambda model: [
            [one.codebook.embed_sum for one in half.layers]
            for half in (
                model.quantizer.semantic_residual_vector_quantizer,
                model.quantizer.acoustic_residual_vector_quantizer,
            )
        ],
        lambda x: [features("EncodecFeatureExtractor", x)],
        "`input_values`, `padding_mask`",
        {"call": by_name},
    ),
    Case(
        "transformers",
        "XcodecModel",
        xcodec,
        sounds,
        xcodec_encoded,
        lambda model: [[one.codebook.embed for one in model.quantizer.quantizers]],
        lambda x: [features("DacFeatureExtractor", x, hop_length=HOP)],
        "`input_values`, `padding_mask`",
        {"call": by_values},
    ),
    Case(
        "transformers",
        "ChameleonVQVAE",
        chameleon,
        images,
        lambda model, x: model.quant_conv(model.encoder(x)),
        lambda model: [[model.quantize.embedding.weight]],
        lambda x: [{"pixel_values": x}],
        "`pixel_values`",
        {"call": lambda model, batch: model.encode(**batch)},
    ),
    Case(
        "transformers",
        "Emu3VQVAE",
        emu3,
        images,
        emu3_encoded,
        lambda model: [[model.quantize.embedding.weight]],
        lambda x: [{"pixel_values": x, "image_sizes": torch.tensor([x.shape[2:]] * len(x))}],
        "`pixel_values`, `image_sizes`",
        {"call": emu3_called},
    ),
    Case(
        "transformers",
        "Wav2Vec2ForPreTraining",
        wav2vec,
        sounds,
        wav2vec_encoded,
        wav2vec_rows,
        lambda x: [features("Wav2Vec2FeatureExtractor", x, padding_value=0.0, do_normalize=False)],
        "`input_values`",
        {"call": by_values},
        dim=2 * DIM,
        put=wav2vec_put,
    ),
    Case(
        "encodec",
        "EncodecModel",
        facebook_encodec,
        sounds,
        lambda model, x: model.encoder(x),
        facebook_rows,
    ),
    Case(
        "descript-audio-codec",
        "ResidualVectorQuantize",
        descript,
        sounds,
        lambda model, x: model.encoder(x),
        lambda model: [[one.codebook.weight for one in model.quantizer.quantizers]],
        by_direction=True,
    ),
    Case(
        "audiocraft",
        "ResidualVectorQuantizer",
        audiocraft,
        sounds,
        lambda model, x: model.encoder(x),
        facebook_rows,
    ),
]
