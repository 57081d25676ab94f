"""The parts of a SAM 2 network, each as one function, for batches of objects.

The modules and weights are those of `sam2.modeling.sam2_base.SAM2Base`; what is done around them
follows its inference, without what tracking does not need: masks at the size of the model's
pictures are made where the memory encoder takes them and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor

from masklet.attention import Fusion, MemoryTokens
from masklet.compiled import Compiled
from masklet.encoders import ImageEncoder, MemoryEncoder

_NO_POINT = -1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread.

    With MKL, two threads that compute a process's first sine at once do not always get the last
    bits that they get ever after, and what is prepared of them shows in a whole run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    compiled: faster ways to do the same, once they are warmed up.
    """

    model: SAM2Base
    image_encoder: ImageEncoder
    memory_encoder: MemoryEncoder
    fusion: Fusion
    position: Tensor
    dense_position: Tensor
    compiled: "CompiledParts | None" = None

    @staticmethod
    @torch.inference_mode()
    @_one_thread()
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

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> "Network":
        """The same network with parts that `warm_up` compiles by a backend of torch.compile."""
        parts = CompiledParts(
            Compiled(self.image_encoder, backend), Compiled(partial(_step, self), backend)
        )
        return replace(self, compiled=parts)

    @torch.inference_mode()
    def warm_up(self, frames: int, memories: Iterable[MemoryTokens]) -> None:
        """Compile for so many frames at a time, and for memories of these shapes."""
        if self.compiled is None:
            return
        size = self.model.image_size
        images = torch.zeros(frames, 3, size, size, device=self.model.device)
        self.compiled.image_encoder.warm_up(images)
        maps = self.encode(images)[0].maps
        for memory in memories:
            self.compiled.step.warm_up(*maps, *memory)

    @torch.inference_mode()
    def encode(self, images: Iterable[Tensor]) -> list[FrameFeatures]:
        """Run the image encoder on preprocessed frames, each (3, image_size, image_size)."""
        encoder = self.compiled.image_encoder if self.compiled else self.image_encoder
        first, *more = (image[None].to(self.model.device) for image in images)
        maps = encoder(torch.cat([first, *more]) if more else first)
        return [
            FrameFeatures(tuple(level[at : at + 1] for level in maps)) for at in range(len(maps[0]))
        ]

    def step(
        self, features: FrameFeatures, memory: MemoryTokens
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One frame for the B objects that have this memory.

        Returns:
            logits (B, 4 h, 4 w), object scores (B,), and what the frame leaves behind: memory maps
            (B, mem_dim, h, w) bfloat16 and object pointers (B, d_model).
        """
        step = self.compiled.step if self.compiled else partial(_step, self)
        result: tuple[Tensor, Tensor, Tensor, Tensor] = step(*features.maps, *memory)
        return result

    def takes_best_of_three(self, num_points: int) -> bool:
        """Whether the prompt leaves so much open that three masks compete."""
        model = self.model
        return bool(
            model.multimask_output_in_sam
            and model.multimask_min_pt_num <= num_points <= model.multimask_max_pt_num
            and (num_points > 0 or model.multimask_output_for_tracking)
        )

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


@dataclass(frozen=True)
class CompiledParts:
    """The functions that take the time: `ImageEncoder` and what `Network.step` does."""

    image_encoder: Compiled
    step: Compiled


def _step(
    network: Network, fine: Tensor, middle: Tensor, coarse: Tensor, *memory: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Network.step` as a function of tensors, which is what torch compiles."""
    features = FrameFeatures((fine, middle, coarse))
    fused = network.fusion(features.tokens(), network.position, MemoryTokens(*memory))
    conditioned = fused.transpose(1, 2).reshape(len(fused), *coarse.shape[1:])
    multimask = network.takes_best_of_three(num_points=0)
    logits, scores, pointers = network.decode(features, conditioned, multimask=multimask)
    spatial = network.encode_memory(features, logits, scores, from_prompts=False)
    return logits, scores, spatial, pointers


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
