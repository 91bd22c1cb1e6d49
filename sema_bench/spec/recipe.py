"""Read a training recipe from a TOML table ``[training]`` or the options of ``sema-bench train``.

The defaults are those that the papers of this field share: AdamW, cosine decay with a linear warm-up, weight decay on
matrices only, clipped gradients. Augmentation is off by default.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sema_bench.errors import UsageError, unknown_name
from sema_bench.spec.validation import key_of, message_of

_Share = Annotated[float, Field(ge=0, le=1)]
_ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
_Side = Annotated[int, Field(ge=1, le=16384)]
_Positive = Annotated[float, Field(gt=0, le=1e9)]
_AsList = Field(strict=False)  # TOML and JSON have lists and no tuples
#: Keys that do nothing for a frozen backbone, and the values that turn them off.
_IDLE = {"ema": "0.0", "drop_path": "0.0", "checkpointing": "false"}


class Recipe(BaseModel):
    """Settings of one training.

    Attributes:
        res: side of training images in pixels, or (H, W).
        epochs: passes over the data.
        epoch_images: images of one epoch; 0: as many as the data has (6,400 where scenes are drawn).
        batch: images of one step, over all devices.
        accumulate: parts into which a device splits its share of the batch.
        lr: learning rate after the warm-up.
        min_lr: learning rate at the end.
        warmup_lr: learning rate of the first step, if there is a warm-up.
        warmup_epochs: epochs over which the rate rises linearly; None: 5, or a tenth of all epochs if that is less.
        decay_share: final share of the training after the warm-up, over which the rate falls; 1: all of it.
        weight_decay: of AdamW; biases, norms and other vectors have none.
        betas: of AdamW.
        clip_grad: largest ℓ2 norm of all gradients together; 0: no limit.
        freeze_backbone: train only the classifier, on features that do not change (a linear probe).
        label_smoothing: share of the target that is spread evenly over all classes.
        mixup, cutmix: α of the Beta distribution of the mixing share; 0: off. With both, each batch takes one of them.
        scale: smallest and largest share of a photograph's area in a random crop; (1, 1): the largest crop, centred.
        interpolation: how crops and RandAugment resample a photograph; ``random``: bilinear or bicubic.
        flip: probability of mirroring a photograph left to right.
        randaugment: policy as timm writes it (``rand-m9-mstd0.5-inc1``); empty: none.
        erasing: probability of erasing a box of a photograph.
        repeats: augmented copies of each photograph in one epoch, which has that many times fewer photographs.
        drop_path: stochastic depth of the last block; None: the model's own.
        sync_batch_norm: take the statistics of batch norms over all GPUs.
        ema: decay of the moving average of the weights; 0: none.
        ema_batch: batch at which ``ema`` is the decay; at others it is ema^(batch / ema_batch). 0: at every batch.
        mesa: weight of a second loss, towards the moving average's predictions (MESA, arXiv 2205.14083); 0: none.
        mesa_start: share of the epochs before that loss begins.
        amp: dtype of autocast; ``off``: everything in float32.
        checkpointing: compute blocks again in the backward pass instead of keeping their activations.
        eval_epochs: epochs from one evaluation to the next; 0: only at the end.
        save_s: seconds from one checkpoint to the next, at most.
        seeds: one training for each seed in suites; ``sema-bench train`` uses the first.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    res: _Side | Annotated[tuple[_Side, _Side], _AsList] = 224
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    epoch_images: Annotated[int, Field(ge=0, le=10**9)] = 0
    batch: Annotated[int, Field(ge=1, le=2**20)] = 1024
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    lr: _Positive = 1e-3
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    decay_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.05
    betas: Annotated[tuple[_ShareBelowOne, _ShareBelowOne], _AsList] = (0.9, 0.999)
    clip_grad: Annotated[float, Field(ge=0)] = 5.0
    freeze_backbone: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    scale: Annotated[tuple[_Share, _Share], _AsList] = (1.0, 1.0)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    flip: _Share = 0.0
    randaugment: Annotated[str, Field(max_length=100)] = ""
    erasing: _Share = 0.0
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    drop_path: _ShareBelowOne | None = None
    sync_batch_norm: bool = False
    ema: _ShareBelowOne = 0.0
    ema_batch: Annotated[int, Field(ge=0, le=2**20)] = 0
    mesa: Annotated[float, Field(ge=0, le=100)] = 0.0
    mesa_start: _Share = 0.25
    amp: Literal["off", "bfloat16", "float16"] = "off"
    checkpointing: bool = False
    eval_epochs: Annotated[int, Field(ge=0)] = 0
    save_s: _Positive = 60.0
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.scale[0] > self.scale[1] or not self.scale[0]:
            raise ValueError(f"scale goes from a smaller share to a larger one; got {list(self.scale)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower it")
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup:g} leaves nothing of {self.epochs} epochs; lower it "
                "(--set warmup_epochs=0.5)"
            )
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into {self.accumulate} parts; change accumulate")
        if self.mesa and not self.ema:
            raise ValueError("mesa is a loss towards the moving average; add one (--set ema=0.9996)")
        for key, off in _IDLE.items():
            if self.freeze_backbone and getattr(self, key):
                raise ValueError(f"{key} does nothing for a frozen backbone; drop it (--set {key}={off})")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of training images."""
        return self.res if isinstance(self.res, tuple) else (self.res, self.res)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up."""
        return min(5.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def ema_decay(self) -> float:
        """Decay of the moving average at this batch."""
        return self.ema ** (self.batch / self.ema_batch) if self.ema_batch else self.ema

    @property
    def digest(self) -> str:
        """8 hex digits over the keys that determine the weights; seeds are named separately."""
        body = self.model_dump(exclude={"seeds", "save_s", "eval_epochs"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]

    def steps_per_epoch(self, images: int) -> int:
        """Count the steps of one epoch over ``images``; raise UsageError if there are none, or too few images."""
        used = self.epoch_images or images
        if used > images:
            raise UsageError(f"epoch_images {used} is more than the {images} images of the data; lower it")
        if used < self.batch:
            raise UsageError(f"an epoch of {used} images holds no batch of {self.batch}; give a smaller --batch")
        return used // self.batch

    def changed(self, changes: dict[str, Any], *, source: str) -> Recipe:
        """Replace the values of some keys; see :func:`parse_recipe`."""
        return parse_recipe({**self.model_dump(), **changes}, source=source)


def parse_recipe(body: dict[str, Any], *, source: str) -> Recipe:
    """Read a recipe; raise UsageError, with ``source`` in the message, for an unknown key or a wrong value."""
    try:
        return Recipe.model_validate(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = key_of(first)
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{source}: {unknown_name('key of a recipe', key, Recipe.model_fields)}") from None
        raise UsageError(f"{source}: {f'{key}: ' if key else ''}{message_of(first)}") from None
