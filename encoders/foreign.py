"""How each peer names its tensors, and which of their axes is x, y and z."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from vol3d.model.interfaces import Encoder

Turn = Callable[[Tensor, Encoder], Tensor]


@dataclass(frozen=True)
class Rule:
    """Keys that fully match `theirs` become `ours` (a template of the match; None: left behind), turned by `turn`."""

    theirs: str
    ours: str | None
    turn: Turn | None = None

    def matches(self, key: str) -> bool:
        return re.fullmatch(self.theirs, key) is not None

    def rename(self, key: str) -> str:
        return re.fullmatch(self.theirs, key).expand(self.ours)

    def turned(self, tensor: Tensor, encoder: Encoder) -> Tensor:
        tensor = tensor if self.turn is None else self.turn(tensor, encoder)
        return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


@dataclass(frozen=True)
class Peer:
    """A published model.

    Args:
        encoder: name for `vol3d.encoders.create`.
        anchor: a tensor every such file has, by which the prefix is found.
        prefixes: where the encoder sits in the files that are about, tried in this order.
        rules: for keys under the prefix.
        beside: rules for keys of the encoder that lie elsewhere in the file.
        projector: rules for the projector's keys, anywhere; projector_class: what they fit.
        hub: the repository on the Hub that publishes it, with `:` and the file in it.
    """

    encoder: str
    anchor: str
    prefixes: tuple[str, ...]
    rules: tuple[Rule, ...]
    beside: tuple[Rule, ...] = ()
    projector: tuple[Rule, ...] = ()
    projector_class: str | None = None
    hub: str | None = None


def apply(rules: Iterable[Rule], foreign: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Only the keys the rules know, renamed."""
    found = {}
    for key, tensor in foreign.items():
        rule = next((rule for rule in rules if rule.matches(key)), None)
        if rule is not None:
            found[rule.rename(key)] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return found


WB = r"(weight|bias)"

# M3D and SegVol: MONAI's ViT over (D, H, W) = (z, y, x); a patch is flattened with its channel last.


def _m3d_positions(table: Tensor, encoder: Encoder) -> Tensor:
    x, y, z = encoder.learned_grid
    if table.shape[1] != x * y * z:
        raise ValueError(f"{table.shape[1]} learned positions, the encoder's grid_size is {(x, y, z)}: give grid_size")
    return rearrange(table, "1 (z y x) c -> 1 (x y z) c", x=x, y=y, z=z)


def _m3d_patch(weight: Tensor, encoder: Encoder) -> Tensor:
    px, py, pz = encoder.patch_size
    return rearrange(weight, "o (pz py px c) -> o c px py pz", px=px, py=py, pz=pz)


_M3D = (
    Rule("cls_token", "cls_token"),
    Rule(r"patch_embedding\.position_embeddings", "position_embeddings", _m3d_positions),
    Rule(r"patch_embedding\.patch_embeddings\.1\.weight", "stem.projection.weight", _m3d_patch),
    Rule(r"patch_embedding\.patch_embeddings\.1\.bias", "stem.projection.bias"),
    Rule(rf"blocks\.(\d+)\.norm([12])\.{WB}", r"blocks.\1.norm\2.\3"),
    Rule(rf"blocks\.(\d+)\.attn\.qkv\.{WB}", r"blocks.\1.qkv.\2"),
    Rule(rf"blocks\.(\d+)\.attn\.out_proj\.{WB}", r"blocks.\1.out.\2"),
    Rule(rf"blocks\.(\d+)\.mlp\.linear1\.{WB}", r"blocks.\1.mlp.0.\2"),
    Rule(rf"blocks\.(\d+)\.mlp\.linear2\.{WB}", r"blocks.\1.mlp.2.\2"),
    Rule(rf"norm\.{WB}", r"norm.\1"),
    # Newer MONAI builds these into every block and never uses them here.
    Rule(r"blocks\.\d+\.(norm_)?cross_attn\..*|classification_head.*", None),
)
_M3D_PROJECTOR = (Rule(rf"(?:.*\.)?mm_projector\.projector\.([02])\.{WB}", r"mlp.\1.\2"),)

# Merlin: convolutions over (D, H, W) = (z, x, y), since its forward moves the last axis of a RAS volume to the front.


def _merlin_kernel(weight: Tensor, encoder: Encoder) -> Tensor:
    return weight.permute(0, 1, 3, 4, 2)


def _head(weight: Tensor, encoder: Encoder) -> Tensor:
    return weight.flatten(1)


_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_MERLIN = (
    Rule(r"((?:layer\d\.\d+\.)?conv\d)\.weight", r"\1.weight", _merlin_kernel),
    Rule(rf"((?:layer\d\.\d+\.)?bn\d)\.{_BN}", r"\1.\2"),
    Rule(r"(layer\d\.\d+\.downsample\.0)\.weight", r"\1.weight", _merlin_kernel),
    Rule(rf"(layer\d\.\d+\.downsample\.1)\.{_BN}", r"\1.\2"),
    Rule(r"(classifier|contrastive_head)\.weight", r"\1.weight", _head),
    Rule(r"(classifier|contrastive_head)\.bias", r"\1.bias"),
)
_MERLIN_PREFIXES = ("encode_image.i3_resnet.", "model.encode_image.i3_resnet.", "i3_resnet.", "")


def _merlin_report_rules() -> tuple[Rule, ...]:
    """The report model keeps the trunk in a Sequential: 0 is the stem, 4 to 7 the stages."""
    rules = [
        Rule(r"0\.weight", "conv1.weight", _merlin_kernel),
        Rule(rf"1\.{_BN}", r"bn1.\1"),
    ]
    for stage in range(1, 5):
        inner = rf"{stage + 3}\.(\d+)"
        rules += [
            Rule(rf"{inner}\.(conv\d|downsample\.0)\.weight", rf"layer{stage}.\1.\2.weight", _merlin_kernel),
            Rule(rf"{inner}\.(bn\d|downsample\.1)\.{_BN}", rf"layer{stage}.\1.\2.\3"),
        ]
    return tuple(rules)


# RadFM: (H, W, D) = (y, x, z), rows of an image first; a patch is flattened with its channel last.


def _radfm_patch(values: Tensor, encoder: Encoder) -> Tensor:
    px, py, pz = encoder.patch_size
    return rearrange(values, "... (py px pz c) -> ... (c px py pz)", px=px, py=py, pz=pz)


_RADFM = (
    Rule(rf"to_patch_embedding\.1\.{WB}", r"stem.norm_patch.\1", _radfm_patch),
    Rule(r"to_patch_embedding\.2\.weight", "stem.projection.weight", _radfm_patch),
    Rule(r"to_patch_embedding\.2\.bias", "stem.projection.bias"),
    Rule(rf"to_patch_embedding\.3\.{WB}", r"stem.norm.\1"),
    Rule(r"pos_embedding\.row_embed\.weight", "axial.y"),
    Rule(r"pos_embedding\.col_embed\.weight", "axial.x"),
    Rule(r"pos_embedding\.dep_embed\.weight", "axial.z"),
    Rule(rf"transformer\.layers\.(\d+)\.0\.norm\.{WB}", r"blocks.\1.norm1.\2"),
    Rule(r"transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.weight", r"blocks.\1.qkv.weight"),
    Rule(rf"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.{WB}", r"blocks.\1.out.\2"),
    Rule(rf"transformer\.layers\.(\d+)\.1\.norm\.{WB}", r"blocks.\1.norm2.\2"),
    Rule(rf"transformer\.layers\.(\d+)\.1\.fn\.net\.0\.{WB}", r"blocks.\1.mlp.0.\2"),
    Rule(rf"transformer\.layers\.(\d+)\.1\.fn\.net\.3\.{WB}", r"blocks.\1.mlp.2.\2"),
)
_PERCEIVER = r"(?:.*\.)?perceiver\."
_RADFM_PROJECTOR = (
    Rule(rf"{_PERCEIVER}latents", "latents"),
    Rule(rf"{_PERCEIVER}layers\.(\d+)\.0\.(norm_media|norm_latents)\.{WB}", r"layers.\1.\2.\3"),
    Rule(rf"{_PERCEIVER}layers\.(\d+)\.0\.to_q\.weight", r"layers.\1.query.weight"),
    Rule(rf"{_PERCEIVER}layers\.(\d+)\.0\.to_kv\.weight", r"layers.\1.key_value.weight"),
    Rule(rf"{_PERCEIVER}layers\.(\d+)\.0\.to_out\.weight", r"layers.\1.mix.weight"),
    Rule(rf"{_PERCEIVER}layers\.(\d+)\.1\.([013])\.{WB}", r"layers.\1.mlp.\2.\3"),
    Rule(rf"{_PERCEIVER}norm\.{WB}", r"norm.\1"),
    Rule(rf"(?:embedding_layer\.)?fc\.{WB}", r"out.\1"),
)

# CT-CLIP: (t, h, w) = (z, x, y) for patches and slices; along columns its convolution reads (x, y, z) as they lie.


def _ctclip_patch(values: Tensor, encoder: Encoder) -> Tensor:
    px, py, pz = encoder.patch_size
    return rearrange(values, "... (c pz px py) -> ... (c px py pz)", px=px, py=py, pz=pz)


def _ctclip_layers(theirs: str, ours: str, turn: Turn | None) -> tuple[Rule, ...]:
    at = rf"{theirs}\.layers\.(\d+)"
    return (
        Rule(rf"{at}\.0\.dsconv\.weight", rf"{ours}.\1.convolution.conv.weight", turn),
        Rule(rf"{at}\.0\.dsconv\.bias", rf"{ours}.\1.convolution.conv.bias"),
        Rule(rf"{at}\.1\.norm\.gamma", rf"{ours}.\1.attention.norm.weight"),
        Rule(rf"{at}\.1\.to_q\.weight", rf"{ours}.\1.attention.query.weight"),
        Rule(rf"{at}\.1\.to_kv\.weight", rf"{ours}.\1.attention.key_value.weight"),
        Rule(rf"{at}\.1\.q_scale", rf"{ours}.\1.attention.query_scale"),
        Rule(rf"{at}\.1\.k_scale", rf"{ours}.\1.attention.key_scale"),
        Rule(rf"{at}\.1\.to_out\.weight", rf"{ours}.\1.attention.out.weight"),
        Rule(rf"{at}\.3\.0\.{WB}", rf"{ours}.\1.norm.\2"),
        Rule(rf"{at}\.3\.1\.weight", rf"{ours}.\1.expand.weight"),
        Rule(rf"{at}\.3\.4\.weight", rf"{ours}.\1.reduce.weight"),
        # Zero buffers, an empty table, and a norm for cross-attention that is not there.
        Rule(rf"{at}\.1\.(norm\.beta|null_kv|context_norm\..*)", None),
    )


_CTCLIP = (
    Rule(rf"to_patch_emb\.1\.{WB}", r"stem.norm_patch.\1", _ctclip_patch),
    Rule(r"to_patch_emb\.2\.weight", "stem.projection.weight", _ctclip_patch),
    Rule(r"to_patch_emb\.2\.bias", "stem.projection.bias"),
    Rule(rf"to_patch_emb\.3\.{WB}", r"stem.norm.\1"),
    Rule(rf"spatial_rel_pos_bias\.net\.0\.0\.{WB}", r"bias.net.0.\1"),
    Rule(rf"spatial_rel_pos_bias\.net\.1\.0\.{WB}", r"bias.net.2.\1"),
    Rule(rf"spatial_rel_pos_bias\.net\.2\.{WB}", r"bias.net.4.\1"),
    *_ctclip_layers("enc_spatial_transformer", "slices", _merlin_kernel),
    *_ctclip_layers("enc_temporal_transformer", "columns", None),
    Rule(r"enc_spatial_transformer\.norm_out\.gamma", "norm_slices.weight"),
    Rule(r"enc_temporal_transformer\.norm_out\.gamma", "norm_columns.weight"),
    Rule(r"vq\._codebook\.embed", "codebook", lambda table, encoder: table.reshape(-1, table.shape[-1])),
    # The decoder that reconstructs the volume, and what trains the codebook.
    Rule(r"vq\._codebook\.(initted|cluster_size|embed_avg)|enc_\w+_transformer\.norm_out\.beta", None),
    Rule(r"(to_patch_emb_first_frame|to_pixels\w*|dec_\w+_transformer|discr|vgg)\..*", None),
)

PEERS: dict[str, Peer] = {
    "m3d-clip": Peer(
        "m3d-clip", "patch_embedding.position_embeddings", ("", "vision_encoder.", "model.vision_encoder."), _M3D,
        hub="GoodBaiBai88/M3D-CLIP:pretrained_ViT.bin",
    ),
    "m3d-lamed": Peer(
        "m3d-clip", "patch_embedding.position_embeddings",
        ("model.vision_tower.vision_tower.", "base_model.model.model.vision_tower.vision_tower.",
         "vision_tower.vision_tower."),
        _M3D, projector=_M3D_PROJECTOR, projector_class="vol3d.SpatialPoolingProjector(order='zyx')",
    ),
    "segvol": Peer(
        "segvol", "patch_embedding.position_embeddings",
        ("model.encoder.", "model.image_encoder.", "image_encoder.", "model.seg_module.image_encoder.", ""), _M3D,
        hub="BAAI/SegVol:pytorch_model.bin",
    ),
    "merlin": Peer(
        "merlin-i3d-resnet152", "conv1.weight", _MERLIN_PREFIXES, _MERLIN,
        hub="stanfordmimi/Merlin:i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt",
    ),
    "merlin-5yr": Peer(
        "merlin-5yr", "conv1.weight", _MERLIN_PREFIXES, _MERLIN,
        hub="stanfordmimi/Merlin:resnet_clinical_longformer_five_year_disease_prediction.pt",
    ),
    "merlin-report": Peer(
        "merlin-report", "0.weight",
        ("encode_image.vision_model.features.", "model.encode_image.vision_model.features."), _merlin_report_rules(),
        projector=(Rule(rf"(?:.*\.)?adapter\.linear2\.{WB}", r"linear.\1"),),
        projector_class="vol3d.model.projectors.LinearProjector(order='zxy')",
        hub="stanfordmimi/Merlin:resnet_gpt2_best_stanford_report_generation_average_mtl.pt",
    ),
    "radfm": Peer(
        "radfm", "to_patch_embedding.2.weight",
        ("embedding_layer.vision_encoder.", "vision_encoder.", "model.embedding_layer.vision_encoder.", ""), _RADFM,
        projector=_RADFM_PROJECTOR, projector_class="vol3d.model.projectors.RadFMProjector",
    ),
    "ct-clip": Peer(
        "ct-clip", "to_patch_emb.2.weight",
        ("visual_transformer.", "trained_model.visual_transformer.", "model.visual_transformer.", ""), _CTCLIP,
        beside=(Rule(r"(?:.*\.)?to_visual_latent\.weight", "latent.weight"),),
        hub="datasets/ibrahimhamamci/CT-RATE:models/CT-CLIP-Related/CT-CLIP_v2.pt",
    ),
}  # fmt: skip
