"""A training run's whole configuration: the parts' own configs, composed."""

import dataclasses
import math
from typing import Literal, TypeVar

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.sequence_lengths import LengthSchedule
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import ALL_BUT_PAIRS, LoRA
from flaxclip.health import HealthConfig
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.losses.pairs import Implementation
from flaxclip.losses.sigmoid import neutral_logit_bias
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.optim import OptimConfig
from flaxclip.sharding import MeshConfig
from flaxclip.step_shapes import check_native_aspect, length_schedule

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of `python -m flaxclip.train`, recorded as `config.json` in the workdir."""

    workdir: str
    """Folder of checkpoints, metrics and this configuration. Given again, the run resumes."""
    steps: int
    """Updates in the whole run."""
    batch_size: int
    """Pairs a step over all devices; each is contrasted with all others in the batch. At native
    aspect ratio, the pairs of a step of images with as many patches as the model's square: others
    have fewer or more, by `data.token_budget`."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the data."""
    model: CLIPConfig = CLIPConfig()
    preprocess: ImageTransform = ImageTransform()
    tokenizer: TokenizerConfig = TokenizerConfig()
    compute: ComputeConfig = ComputeConfig()
    """Computation of the model. A resumed run may change it: it affects speed and memory, and the
    results by rounding alone."""
    init_from: str | None = None
    """Weights to start from, anything that `flaxclip.load` takes: a run, a file or directory of
    another library, a URL. On the command line, the weights also bring the run's model, which
    --model and its flags can change in resolution and context length. If None, random
    initialization."""
    init_model: str | None = None
    """Architecture of the weights, as for --model, if their file does not say."""
    init_weights: WhichWeights | None = None
    """The choice between weights and their average (EMA), if `init_from` holds both. If None, the
    average."""
    init_only: tuple[str, ...] = ()
    """Regular expressions for the names of the weights to take, such as ^vision/; the rest of the
    model is initialized at random. If empty, all are taken."""
    lora: tuple[str, ...] = ()
    """Regular expressions for the names of kernels, such as ^text/ or attention/qkv: these are
    trained by low-rank pairs (LoRA, Hu et al. 2022), and all else of the weights to start from
    stays as it is. If empty, disabled."""
    lora_rank: int = 16
    """Rank of the pairs."""
    lora_alpha: float | None = None
    """The product of a pair is scaled by lora_alpha / lora_rank. If None, the rank: not scaled."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """CLIP's cross-entropy over the batch, or SigLIP's over single pairs, which learns a bias."""
    bias_for_batch: bool = False
    """Sets `model.init_logit_bias` to the log-odds of a match in a batch of `batch_size`, at which
    the sigmoid loss starts lowest; SigLIP's -10 is that of 22,027 pairs."""
    loss_form: Implementation = "auto"
    """Implementation of the loss: a device's part of the similarity matrix is stored whole
    (gathered) or computed a tile at a time (tiled). Affects memory and speed alone. auto: gathered
    up to 256 MiB of it."""
    teacher: tuple[str, ...] = ()
    """Weights of better models to learn from, each anything that `flaxclip.load` takes. They see
    the student's crop and caption, by their own preprocessing and tokenizer, in bfloat16. If empty,
    none runs beside the student."""
    teacher_model: tuple[str | None, ...] = ()
    """Architecture of each teacher, as for --model, if its file does not say; None if it does. With
    the names of all, a run is planned without their files. If empty, all files say."""
    teacher_weight: float = 1.0
    """Factor on the teachers' loss: the cross-entropy of the student's similarities over the batch
    under a teacher's, averaged over the teachers (MobileCLIP, Vasu et al. 2024)."""
    teacher_scale: tuple[float, ...] = ()
    """Factor on each teacher's cosine similarities, 1 / temperature; one for all, or one for each.
    If empty, that which each has learned, and is stored with its vectors."""
    teacher_regression: float = 0.0
    """Factor on the squared distance between the embeddings of student and teachers (CLIP-KD, Yang
    et al. 2024), which must then be of the same width."""
    contrastive_weight: float = 1.0
    """Factor on the loss of `loss` beside that of teachers."""
    scale_loss_by_pairs: Literal["none", "sqrt", "linear"] = "none"
    """At native aspect ratio, where steps have different numbers of pairs: factor on a step's loss,
    and so on its gradients. linear: its pairs over `batch_size`. sqrt: the root of that. As
    open_clip's --naflex-loss-scale, with the same default; Adam's update depends on it by clipping
    and its running moments alone. Reports have the loss without it, and gradient norms with it."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1
    """Parts that a batch is embedded in, one after another: takes the memory of one part, and the
    time of another forward pass. Exact: the loss is that of the whole batch. Only a ResNet's batch
    norms see a part at a time."""
    batch_divisor: int = 8
    """At native aspect ratio: the pairs of every step are a multiple of this, and so of the devices
    that it is divided over, times `accumulate`. Part of the run, unlike the mesh: batches are the
    same on another, so give the largest that it will ever have. As open_clip's
    --naflex-batch-divisor."""
    patch_dropout: float = 0.0
    """Share of an image's patches that the image tower does not see in an update, at random (FLIP,
    Li et al. 2023): 0.5 halves the tower's work. Finish with a few hundred steps without it."""
    log_every: int = 50
    """Steps between two reports."""
    wandb: str | None = None
    """Weights & Biases project that the run reports to, besides its files. If None, disabled."""
    shown_pairs: int = 12
    """Held-out pairs whose images, similarities and predictions each save shows in TensorBoard and
    W&B. If 0, none, e.g. because images must not leave the machine."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()

    @property
    def spec(self) -> ModelSpec:
        """The specification that is needed to use the run's weights."""
        return ModelSpec(self.model, self.preprocess, self.tokenizer)

    def with_spec(self, spec: ModelSpec) -> "TrainConfig":
        """The same run with another model."""
        return dataclasses.replace(self, **spec._asdict())

    @property
    def adapters(self) -> LoRA | None:
        """The pairs that are trained in place of the model; None if it is trained itself."""
        if not self.lora:
            return None
        alpha = float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha
        return LoRA(self.lora, self.lora_rank, alpha)

    @property
    def lengths(self) -> LengthSchedule | None:
        """The length of each step's images in patches; None if they are squares."""
        return length_schedule(self)

    @property
    def kept_patches(self) -> int | None:
        """Patches that the image tower sees in an update; None for all."""
        if not 0 <= self.patch_dropout < 1:
            raise InputError(
                f"patch_dropout is {self.patch_dropout}\nit must be at least 0 and less than 1"
            )
        if self.patch_dropout == 0:
            return None
        if not self.model.vision.is_transformer:
            raise InputError(
                f"patch_dropout is {self.patch_dropout}, and the image tower is of family "
                f'"{self.model.vision.family}"\n'
                "only a vision transformer can leave patches out: choose one, or no dropout"
            )
        return max(1, round(self.model.vision.grid**2 * (1 - self.patch_dropout)))

    def __post_init__(self) -> None:
        if self.bias_for_batch:
            bias = neutral_logit_bias(self.batch_size)
            # Frozen for all others: the configuration is complete once it is made.
            object.__setattr__(self, "model", dataclasses.replace(self.model, init_logit_bias=bias))
        _ = self.kept_patches  # raises where patches cannot be left out
        if self.adapters is not None:
            self._check_adapters()
            if ALL_BUT_PAIRS not in self.optim.freeze:
                freeze = (*self.optim.freeze, ALL_BUT_PAIRS)
                object.__setattr__(self, "optim", dataclasses.replace(self.optim, freeze=freeze))
        for name in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}\nit must be at least 1")
        check_native_aspect(self)
        if self.shown_pairs < 0:
            raise InputError(f"shown_pairs is {self.shown_pairs}\nit must be 0 or more")
        if self.init_from is None and (self.init_only or self.init_model or self.init_weights):
            raise InputError(
                "init_only, init_model and init_weights are about the weights to start from\n"
                "name these with --init-from"
            )
        self._check_teachers()
        if self.loss == "sigmoid" and self.model.init_logit_bias is None:
            raise InputError(
                "the sigmoid loss needs a logit bias, and the model has none\n"
                "set --model.init-logit-bias -10 as SigLIP does, or --bias-for-batch True for "
                f"{neutral_logit_bias(self.batch_size):.2f}, the log-odds of a match in a batch of "
                f"{self.batch_size}"
            )

    def _check_teachers(self) -> None:
        count = len(self.teacher)
        for name in ("teacher_model", "teacher_scale"):
            given = getattr(self, name)
            allowed = {0, count} | ({1} if name == "teacher_scale" else set())
            if count and len(given) not in allowed:
                raise InputError(
                    f"{name} has {len(given)} values, and teacher {count}\n"
                    "give one for each teacher, in their order, or none"
                )
        if not count and self.teacher_model:
            raise InputError(
                "teacher_model is about the weights of teachers, and there are none\n"
                "name these with --teacher"
            )
        for scale in self.teacher_scale:
            if not 0 < scale < math.inf:
                raise InputError(f"teacher_scale is {scale:g}\nit must be positive")
        weights = ("teacher_weight", "teacher_regression", "contrastive_weight")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name):g}\nit must be 0 or more")
        if not any(getattr(self, name) for name in weights):
            raise InputError(f"{', '.join(weights)} are all 0\nthere is nothing to learn")
        if count or self.data.teacher_vectors:
            if self.teacher_weight == self.teacher_regression == 0:
                flag = "--teacher" if count else "--data.teacher-vectors"
                raise InputError(
                    "teacher_weight and teacher_regression are both 0: nothing is learned from the "
                    f"teachers\nset one of them, or leave {flag} out"
                )
            return
        changed = [
            f"{name} is {getattr(self, name)}"
            for name in (*weights, "teacher_scale")
            if getattr(self, name) != getattr(TrainConfig, name)
        ]
        if changed:
            raise InputError(
                f"{', '.join(changed)}, and the run has no teacher\n"
                "name one with --teacher, or leave these out"
            )

    def _check_adapters(self) -> None:
        if self.init_from is None:
            raise InputError(
                "lora changes weights that are there, and the run has none to start from\n"
                "name these with --init-from"
            )
        if self.model.vision.averages_statistics:
            raise InputError(
                "lora leaves the model as it is, and the image tower's batch norms would go on "
                "averaging\nadd --model.vision.frozen-statistics True"
            )


# A resumed run may differ in these alone: they change neither the parameters nor what they learn
# from, and no number by more than its rounding.
RESUMABLE_FIELDS = (
    "workdir", "mesh", "compute", "loss_form", "data.workers", "data.heldout",
    "data.allow_empty_shards", "data.index", "data.counts", "data.cache_dir", "data.cache_gib",
    "log_every", "wandb", "shown_pairs", "checkpoint", "health",
)  # fmt: skip


def differing_fields(ours: T, theirs: T, part: str = "") -> dict[str, str]:
    """Field -> `theirs -> ours`, for each field that affects the results of a run, and differs.

    `part` is the field that both belong to, such as `compute`, if they are not whole runs.
    """

    def flatten(value: object, prefix: str = "") -> dict[str, object]:
        if not dataclasses.is_dataclass(value):
            return {prefix: value}
        if isinstance(value, DataConfig):
            value = value.with_order_as_meant()
        leaves: dict[str, object] = {}
        for field in dataclasses.fields(value):
            name = f"{prefix}.{field.name}" if prefix else field.name
            if name not in RESUMABLE_FIELDS:
                leaves |= flatten(getattr(value, field.name), name)
        return leaves

    old, new = flatten(theirs, part), flatten(ours, part)
    return {
        name: f"{old.get(name)!r} -> {new.get(name)!r}"
        for name in old | new
        if old.get(name) != new.get(name)
    }
