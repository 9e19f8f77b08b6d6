"""The loss, the augmentation and the stages of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from medsd.strict import Strict


class LossSettings(Strict):
    """The Similarity-Dissimilarity loss (see medsd.sd)."""

    name: str = Field("sd", description="sd, or another loss of the table in the README, for instance mulsupcon")
    temperature: float = Field(0.1, gt=0, le=10)
    finding_weights: Literal["none", "inverse_frequency"] = Field(
        "none", description="inverse_frequency: rare findings of the training studies count more in K_s and K_d"
    )
    finding_power: float = Field(0.5, gt=0, le=2, description="of the inverse frequency; 1 is the full correction")
    negatives: Literal["known", "sure"] = Field(
        "known",
        description="sure: studies are pushed apart only where no unknown label could make them share a finding",
    )
    cross_modal_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        description="of the contrast of images with notes in the learned space: sentences find images",
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further arguments of the loss, such as direction: both for sd or threshold: 0.3 for jaccard",
    )

    @field_validator("options")
    @classmethod
    def _of_no_other_key(cls, options: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        taken = sorted(options.keys() & {*cls.model_fields, "gather"})
        if taken:
            raise ValueError(f"options repeats {', '.join(taken)}, which is set by a key of its own or by the training")
        return options


class PseudoLabelSettings(Strict):
    """Rounds of class-aware pseudo-labels (CAP, Xie 2023) after fine-tuning; see medsd.training.pseudo_labels."""

    rounds: int = Field(
        0,
        ge=0,
        le=100,
        description="of labelling what is unknown in the training studies and fine-tuning on all; 0: none",
    )
    positive: float = Field(
        1.0, ge=0, le=1, description="part of the positives to be expected that is labelled present"
    )
    negative: float = Field(1.0, ge=0, le=1, description="part of the negatives to be expected that is labelled absent")
    minimum_positives: int = Field(
        3, ge=1, description="a finding with fewer known positives or negatives is not pseudo-labelled"
    )
    epochs: int = Field(0, ge=0, description="of fine-tuning in each round; 0: those of training.finetune")
    pretrain: bool = Field(False, description="each round begins with pretraining on labels and pseudo-labels")


class AugmentSettings(Strict):
    """Random changes of the training images."""

    rotation_degrees: float = Field(10, ge=0, le=45)
    translation: float = Field(0.05, ge=0, le=0.5, description="share of the side")
    zoom: float = Field(0.1, ge=0, le=0.5)
    contrast: float = Field(0.2, ge=0, le=1)
    noise: float = Field(0.02, ge=0, le=0.5)
    erase: float = Field(0.0, ge=0, le=0.5, description="chance of one erased rectangle")
    mirror: float = Field(
        0.0, ge=0, le=1, description="chance that left and right change places; only where no finding depends on a side"
    )
    resolution: int = Field(
        0,
        ge=0,
        le=2048,
        description="reduce each image to a random side between this many pixels and pixels.size, and enlarge it "
        "again. Sharpness then says less about the labels, but the source of an image still shows in its embedding: "
        "see training.hide_sources. 0: never",
    )


class ObjectiveSettings(Strict):
    """The classification term of fine-tuning; unknown labels count nothing in any of them."""

    name: Literal["bce", "asl", "focal"] = Field(
        "bce", description="binary cross-entropy, asymmetric loss (Ridnik 2021), focal loss (Lin 2017)"
    )
    balance: Literal["none", "effective_number"] = Field(
        "none", description="effective_number: positives weigh more the fewer there are, by finding (Cui 2019)"
    )
    beta: float = Field(0.999, gt=0, lt=1, description="of the effective number (1 - beta^n) / (1 - beta)")
    finding_weights: Literal["none", "inverse_frequency"] = Field(
        "none", description="inverse_frequency: rare findings count more"
    )
    finding_power: float = Field(0.5, gt=0, le=2, description="of the inverse frequency; 1 is the full correction")
    gamma_positive: float = Field(0.0, ge=0, le=10, description="asl: focusing on hard positives")
    gamma_negative: float = Field(4.0, ge=0, le=10, description="asl: focusing on hard negatives")
    margin: float = Field(0.05, ge=0, lt=1, description="asl: negatives below this probability count nothing")
    gamma: float = Field(2.0, ge=0, le=10, description="focal: focusing on what is hard")
    alpha: float | None = Field(None, gt=0, lt=1, description="focal: share of the positives; absent: none")


class StageSettings(Strict):
    """One stage of training."""

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    encoder_learning_rate_scale: float = Field(1.0, gt=0, le=1, description="of the encoders, against the new layers")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sd_weight: float = Field(1.0, ge=0, description="weight of the SD term beside the classification term")
    weight_averaging: float = Field(0.0, ge=0, lt=1, description="decay of the exponential moving average; 0: none")
    gradient_clip: float = Field(1.0, gt=0)
    accumulate: int = Field(
        1,
        ge=1,
        description="parts in which a batch goes through the network: less memory, a third more time, the same loss",
    )
    patience: int = Field(0, ge=0, description="stop after so many epochs without a better validation AUROC; 0: never")
    freeze: Literal["none", "encoders"] = Field(
        "none", description="encoders: only what stands behind them learns (a probe)"
    )
    freeze_blocks: int = Field(
        0, ge=0, le=64, description="the first blocks of the image backbone that stay as they are; 1 is its stem"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each block of an encoder to the one before it"
    )


class FinetuneSettings(StageSettings):
    """Fine-tuning."""

    objective: ObjectiveSettings = ObjectiveSettings()
    modality_weight: float = Field(
        0.0,
        ge=0,
        le=10,
        description="of the classification term of image and note each read alone, beside that of the study: a fused "
        "model keeps up with one of images where a note is missing",
    )
    views: Literal[1, 2] = Field(
        1,
        description="of each study; 2 with pretrain.epochs: 0 and sd_weight: 1 is joint training from the start",
    )


class TrainingSettings(Strict):
    """Both stages and what they share."""

    pretrain: StageSettings = StageSettings()
    finetune: FinetuneSettings = FinetuneSettings(sd_weight=0.1)
    pseudo_labels: PseudoLabelSettings = PseudoLabelSettings()
    augment: AugmentSettings = AugmentSettings()
    hide_sources: bool = Field(
        False,
        description="after fine-tuning, take the directions out of the learned space in which merged sources differ "
        "among images of equal labels and view",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the network; float16 needs a GPU, the losses are taken in float32"
    )
    threads: int = Field(0, ge=0, description="0: as many as the machine has")
    workers: int = Field(1, ge=0, le=64, description="loader processes; the batches do not depend on it")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    activation_checkpointing: bool = Field(
        False, description="compute the image encoder's blocks again in the pass back: less memory, the same numbers"
    )
    checkpoint_every: float = Field(
        600, ge=0, description="seconds between checkpoints within an epoch; 0: only at the end of epochs"
    )
    mlflow: bool | str = Field(
        False,
        description="record settings and curves in MLflow too: true for mlruns.db in the run's folder, or the URI of a "
        "tracking server; false: TensorBoard alone",
    )
