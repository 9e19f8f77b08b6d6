"""The loss, the augmentation and the stages of training."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from medsd.strict import Strict

FindingWeights = Annotated[
    Literal["none", "inverse_frequency"],
    Field(description="inverse_frequency: findings that are rare in training count more."),
]
FindingPower = Annotated[
    float, Field(gt=0, le=2, description="Power of the inverse frequency; 1 is the full correction.")
]


class LossSettings(Strict):
    """The Similarity-Dissimilarity loss (see medsd.sd)."""

    name: str = Field("sd", description="sd, or another loss of medsd.sd, for instance mulsupcon or icl.")
    temperature: float = Field(0.1, gt=0, le=10, description="Divisor of the cosines.")
    finding_weights: FindingWeights = "none"
    finding_power: FindingPower = 0.5
    negatives: Literal["known", "sure"] = Field(
        "known", description="sure: push studies apart only if no unknown label could make them share a finding."
    )
    cross_modal_weight: float = Field(
        0.0, ge=0, le=100, description="Weight of the contrast of images with notes, by which sentences find images."
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Further arguments of the loss, for instance direction: both (sd) or threshold: 0.3 (jaccard).",
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

    rounds: int = Field(0, ge=0, le=100, description="Rounds of labelling what is unknown in training; 0: none.")
    positive: float = Field(1.0, ge=0, le=1, description="Share of the expected positives that is labelled present.")
    negative: float = Field(1.0, ge=0, le=1, description="Share of the expected negatives that is labelled absent.")
    minimum_positives: int = Field(3, ge=1, description="With fewer positives or negatives: no pseudo-labels.")
    epochs: int = Field(0, ge=0, description="Epochs of fine-tuning in each round; 0: those of training.finetune.")
    pretrain: bool = Field(False, description="Begin each round with pretraining on labels and pseudo-labels.")


class AugmentSettings(Strict):
    """Random changes of the training images."""

    rotation_degrees: float = Field(10, ge=0, le=45, description="Largest rotation, in degrees.")
    translation: float = Field(0.05, ge=0, le=0.5, description="Largest shift, as a share of the side.")
    zoom: float = Field(0.1, ge=0, le=0.5, description="Largest change of the scale, as a share.")
    contrast: float = Field(0.2, ge=0, le=1, description="Largest change of brightness and contrast, as a share.")
    noise: float = Field(0.02, ge=0, le=0.5, description="Largest standard deviation of the noise; white is 1.")
    erase: float = Field(0.0, ge=0, le=0.5, description="Probability that one rectangle is erased.")
    mirror: float = Field(0.0, ge=0, le=1, description="Probability of a mirror image; only if no finding has a side.")
    resolution: int = Field(
        0,
        ge=0,
        le=2048,
        description="Reduce each image to a random side of at least this many pixels and enlarge it again, so that "
        "sharpness says less about the labels (but see training.hide_sources). 0: never.",
    )


class ObjectiveSettings(Strict):
    """The classification term of fine-tuning; unknown labels are left out."""

    name: Literal["bce", "asl", "focal"] = Field(
        "bce", description="Binary cross-entropy, asymmetric loss (Ridnik 2021) or focal loss (Lin 2017)."
    )
    balance: Literal["none", "effective_number"] = Field(
        "none", description="effective_number: a finding's positives weigh more the fewer there are (Cui 2019)."
    )
    beta: float = Field(0.999, gt=0, lt=1, description="beta of the effective number (1 - beta^n) / (1 - beta).")
    finding_weights: FindingWeights = "none"
    finding_power: FindingPower = 0.5
    gamma_positive: float = Field(0.0, ge=0, le=10, description="asl: focus on hard positives.")
    gamma_negative: float = Field(4.0, ge=0, le=10, description="asl: focus on hard negatives.")
    margin: float = Field(0.05, ge=0, lt=1, description="asl: negatives below this probability are left out.")
    gamma: float = Field(2.0, ge=0, le=10, description="focal: focus on hard labels.")
    alpha: float | None = Field(None, gt=0, lt=1, description="focal: share of the positives. Absent: unweighted.")


class StageSettings(Strict):
    """One stage of training."""

    epochs: int = Field(10, ge=0, description="Passes over the training studies; 0 leaves the stage out.")
    batch_size: int = Field(64, ge=2, description="Studies in a batch.")
    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate of AdamW.")
    encoder_learning_rate_scale: float = Field(
        1.0, gt=0, le=1, description="Learning rate of the encoders, as a share of that of the new layers."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Distance of the targets from 0 and 1.")
    sd_weight: float = Field(1.0, ge=0, description="Weight of the SD term beside the classification term.")
    weight_averaging: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of the weights; 0: none.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    accumulate: int = Field(1, ge=1, description="Parts of a batch: less memory, more time, the same loss.")
    patience: int = Field(0, ge=0, description="Stop after so many epochs without a better validation AUROC; 0: never.")
    freeze: Literal["none", "encoders"] = Field("none", description="encoders: train only the layers after them.")
    freeze_blocks: int = Field(0, ge=0, le=64, description="Blocks of the image backbone not trained; 1 is its stem.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor of the learning rate from each block of an encoder to the one before it."
    )


class FinetuneSettings(StageSettings):
    """Fine-tuning."""

    objective: ObjectiveSettings = Field(ObjectiveSettings(), description="The classification term.")
    modality_weight: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Weight of the classification term of image and note each read alone, so that a fused model also "
        "reads studies without a note well.",
    )
    views: Literal[1, 2] = Field(1, description="Views of each study; 2 with pretrain.epochs: 0 is joint training.")


class TrainingSettings(Strict):
    """Both stages and what they share."""

    pretrain: StageSettings = Field(StageSettings(), description="Pretraining with the SD loss.")
    finetune: FinetuneSettings = Field(FinetuneSettings(sd_weight=0.1), description="Fine-tuning of the classifier.")
    pseudo_labels: PseudoLabelSettings = Field(PseudoLabelSettings(), description="Pseudo-labels after fine-tuning.")
    augment: AugmentSettings = Field(AugmentSettings(), description="Random changes of the training images.")
    hide_sources: bool = Field(
        False,
        description="After fine-tuning, remove the directions of the learned space in which merged sources differ "
        "among images of equal labels and view.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the network; float16 needs a GPU. The losses are computed in float32."
    )
    threads: int = Field(0, ge=0, description="Threads of torch; 0: as many as the machine has.")
    workers: int = Field(1, ge=0, le=64, description="Processes that load batches; the batches do not depend on it.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train. auto: on a GPU, if any.")
    activation_checkpointing: bool = Field(
        False, description="Recompute the image encoder's blocks in the backward pass: less memory, the same numbers."
    )
    checkpoint_every: float = Field(600, ge=0, description="Seconds between checkpoints; 0: only at the end of epochs.")
    mlflow: bool | str = Field(
        False,
        description="Record settings and curves in MLflow too. true: in mlruns.db in the run's folder; or the URI of a "
        "tracking server. false: TensorBoard alone.",
    )
