"""The parts of a SAM 2 network, each as one function, for batches of objects.

The modules and weights are those of `sam2.modeling.sam2_base.SAM2Base`; what is done around them
follows its inference, without what tracking does not need: masks at the size of the model's
pictures are made where the memory encoder takes them and nowhere else.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor

from masklet.attention import Fusion
from masklet.encoders import ImageEncoder, MemoryEncoder

_NO_POINT = -1


@dataclass(frozen=True)
class FrameFeatures:
    """What the image encoder makes of one frame; shared by all objects.

    maps: (1, channels, h, w) float32, from stride 4 to stride 16.
    """

    maps: tuple[Tensor, ...]

    def tokens(self) -> Tensor:
        """The last map as (1, h * w, d_model)."""
        return self.maps[-1].flatten(2).transpose(1, 2)

    def fine(self, batch: int) -> list[Tensor]:
        """The maps of higher resolution for a batch of objects."""
        return [level.expand(batch, -1, -1, -1) for level in self.maps[:-1]]


@dataclass(frozen=True)
class Prediction:
    """One object on one frame.

    logits: (image_size / 4, image_size / 4) float32, > 0 on the object; all -1024 without one.
    object_score: logit of the object being there, a scalar float32 tensor.
    """

    logits: Tensor
    object_score: Tensor


@dataclass(frozen=True)
class Network:
    """A model made ready for tracking.

    image_encoder, memory_encoder, fusion: in the precision asked for; prompts and masks are float32
    always.
    position: embedding of the places in a frame's last map, (1, h * w, d_model).
    dense_position: the same for the mask decoder, (1, d_model, h, w).
    """

    model: SAM2Base
    image_encoder: ImageEncoder
    memory_encoder: MemoryEncoder
    fusion: Fusion
    position: Tensor
    dense_position: Tensor

    @staticmethod
    @torch.inference_mode()
    def of(model: SAM2Base, dtype: torch.dtype = torch.float32) -> "Network":
        """Prepare a model, which stays as it is."""
        _check(model)
        side = model.sam_image_embedding_size
        where = model.memory_encoder.position_encoding(
            torch.zeros(1, model.mem_dim, side, side, device=model.device)
        )
        embeddings = where.flatten(2).transpose(1, 2) + model.maskmem_tpos_enc[:, 0]
        frame = torch.zeros(1, model.hidden_dim, side, side, device=model.device)
        position = model.image_encoder.neck.position_encoding(frame)
        return Network(
            model,
            ImageEncoder.of(model, dtype),
            MemoryEncoder.of(model, dtype),
            Fusion.of(model.memory_attention, embeddings, dtype),
            position.flatten(2).transpose(1, 2),
            model.sam_prompt_encoder.get_dense_pe(),
        )

    @torch.inference_mode()
    def encode(self, images: Tensor) -> list[FrameFeatures]:
        """Run the image encoder on preprocessed frames (frames, 3, image_size, image_size)."""
        maps = self.image_encoder(images.to(self.model.device))
        return [
            FrameFeatures(tuple(level[at : at + 1] for level in maps)) for at in range(len(images))
        ]

    def decode(
        self,
        features: FrameFeatures,
        conditioned: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run prompt encoder and mask decoder on B objects.

        Args:
            conditioned: the frame's features with memory, (B, d_model, h, w).
            points: (B, n, 2) in pixels of the model's picture, labels: (B, n) int32; or none.
            mask: (B, 1, 4 h, 4 w), logits of an earlier answer or a mask prompt's pixels.
            multimask: take the best of three masks, by predicted IoU, instead of the single one.

        Returns:
            logits (B, 4 h, 4 w), object scores (B,) and object pointers (B, d_model).
        """
        model, batch = self.model, len(conditioned)
        if points is None or labels is None:
            points = conditioned.new_zeros(batch, 1, 2)
            labels = torch.full((batch, 1), _NO_POINT, dtype=torch.int32, device=points.device)
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=mask)
        masks, ious, tokens, scores = model.sam_mask_decoder(
            image_embeddings=conditioned,
            image_pe=self.dense_position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=features.fine(batch),
        )
        rows, best = torch.arange(batch, device=masks.device), ious.argmax(1)
        token = tokens[rows, best] if tokens.shape[1] > 1 else tokens[:, 0]
        logits = masks[rows, best].where(scores[:, :, None] > 0, NO_OBJ_SCORE)
        pointers = self.pointer_or_none(model.obj_ptr_proj(token), scores > 0)
        return logits, scores[:, 0], pointers

    def pointer_or_none(self, pointers: Tensor, present: Tensor) -> Tensor:
        """Pointers (B, d_model) where present (B, 1), the learned one for no object elsewhere."""
        return pointers.where(present, self.model.no_obj_ptr)

    def encode_memory(
        self, features: FrameFeatures, logits: Tensor, scores: Tensor, *, from_prompts: bool
    ) -> Tensor:
        """Memory maps of B predictions, (B, mem_dim, h, w) bfloat16.

        Args:
            logits: (B, 4 h, 4 w); scores: object scores, (B,).
            from_prompts: the frame was prompted: its mask is remembered as hard pixels.
        """
        model = self.model
        size = (model.image_size, model.image_size)
        mask = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)
        hard = from_prompts and model.binarize_mask_from_pts_for_mem_enc
        mask = (mask > 0).float() if hard else mask.sigmoid_()
        mask.mul_(model.sigmoid_scale_for_mem_enc).add_(model.sigmoid_bias_for_mem_enc)
        memory = self.memory_encoder(features.maps[-1], mask)
        if model.no_obj_embed_spatial is not None:
            absent = (scores <= 0).float()[:, None, None, None]
            memory = memory + absent * model.no_obj_embed_spatial[..., None, None]
        return memory.to(torch.bfloat16)


def _check(model: SAM2Base) -> None:
    """All published models share these options; others would need other arithmetic."""
    shared = (
        model.use_high_res_features_in_sam,
        model.use_obj_ptrs_in_encoder,
        model.use_multimask_token_for_obj_ptr,
        model.use_mask_input_as_output_without_sam,
        model.only_obj_ptrs_in_the_past_for_eval,
        model.directly_add_no_mem_embed,
        model.pred_obj_scores,
        model.fixed_no_obj_ptr,
        not model.soft_no_obj_ptr,
        not model.non_overlap_masks_for_mem_enc,
        model.memory_temporal_stride_for_eval == 1,
    )
    if not all(shared):
        raise ValueError("a model with other options than SAM 2's published ones")
