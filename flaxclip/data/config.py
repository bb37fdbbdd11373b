"""The configuration of the training data: `--data` of a run."""

import dataclasses

from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import OrderConfig
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, MixtureCorpus
from flaxclip.errors import InputError
from flaxclip.storage import is_remote


@dataclasses.dataclass(frozen=True)
class DataConfig(CorpusConfig):
    """Selection, order and cropping of the training pairs."""

    mixture: tuple[MixtureCorpus, ...] = ()
    """Several corpora, each with captions of its own, in place of `path` and `captions`."""
    heldout: tuple[str, ...] = ()
    """Shards that are never trained on: the benchmark's default retrieval task."""
    order: OrderConfig = OrderConfig()
    augment: AugmentConfig = AugmentConfig()
    sequence_lengths: tuple[int, ...] = ()
    """Lengths, in patches, that images at their own aspect ratio may have; those of each step are
    of one, which is drawn from (seed, step), all equally often. If empty, every step's are of one
    length: `preprocess.max_patches`, or the patches of the model's square. Needs
    `preprocess.resize` "native"."""
    token_budget: int | None = None
    """Patches of a step, over all devices: a step has as many pairs as have room in it, so that
    steps of short images have more. If None, `batch_size` times the patches of the model's square.
    Needs `preprocess.resize` "native"."""
    teacher_vectors: bool = False
    """Learn from the teachers whose vectors flaxclip.data.prepare has stored with the examples.
    Crops and captions are then those of which there are vectors, and `augment` must be the default:
    it has no say."""
    workers: int | None = None
    """Processes a host that read, decode and tokenise. If None, one for each core that this process
    may use. If 0, the training process itself."""
    prefetch_bytes: int | None = None
    """Memory a host for batches on their way to the devices. If None, 1 GiB, or two batches if
    these are larger."""
    cache_dir: str | None = None
    """Folder on a disk of the host for what is fetched from object storage; its processes share it,
    and so may other runs. If None, one in `$XDG_CACHE_HOME` or `~/.cache`."""
    cache_gib: float | None = None
    """GiB in it at most; what was used least recently goes first. A corpus that fits is fetched
    once. If None, what the order of the examples needs, which is some GiB."""
    stall_seconds: float = 120.0
    """A worker that takes longer over one example ends the run, with the example's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 0:
            raise InputError(f"data.workers is {self.workers}\nit must not be negative")
        lengths = self.sequence_lengths
        if min(lengths, default=1) < 1 or len(set(lengths)) < len(lengths):
            raise InputError(
                f"data.sequence_lengths is {' '.join(map(str, lengths))}\n"
                "expected different numbers of patches, each at least 1"
            )
        if self.token_budget is not None and self.token_budget < max(lengths, default=1):
            raise InputError(
                f"data.token_budget is {self.token_budget:,} patches a step\n"
                f"expected at least those of one image, {max(lengths, default=1):,}"
            )
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise InputError(f"data.cache_gib is {self.cache_gib:g}\nit must be positive")
        if self.teacher_vectors and self.captions != CaptionConfig():
            raise InputError(
                "data.teacher_vectors and data.captions are both given\n"
                "captions are those of which vectors are stored: prepare chose them"
            )
        if self.teacher_vectors:
            self._check_default_augment()
        if self.stall_seconds <= 0:
            raise InputError(f"data.stall_seconds is {self.stall_seconds}\nit must be positive")
        if self.mixture and (self.path, self.captions) != (CorpusConfig.path, CaptionConfig()):
            raise InputError(
                "data.mixture and data.path, or data.captions, are both given\n"
                "name every corpus in the mixture, each with its own captions"
            )
        for field in ("index", "counts"):
            if self.mixture and getattr(self, field) is not None:
                raise InputError(
                    f"data.mixture and data.{field} are both given\n"
                    f"give each corpus of the mixture {field} of its own"
                )

    def _check_default_augment(self) -> None:
        changed = [
            f"data.augment.{field.name} is {getattr(self.augment, field.name)}, and would have no "
            f"effect; the default is {field.default}"
            for field in dataclasses.fields(self.augment)
            if getattr(self.augment, field.name) != field.default
        ]
        if changed:
            raise InputError(
                "\n".join(
                    [
                        "data.teacher_vectors and data.augment are both given",
                        *changed,
                        "crops and their changes are those of which vectors are stored: prepare "
                        "chose them, by its --augment; set the fields to their defaults here",
                    ]
                )
            )

    @property
    def corpora(self) -> str:
        """A description of the corpora that the run trains on."""
        if self.mixture:
            return " + ".join(f"{corpus.weight:g} x {corpus.path[0]}" for corpus in self.mixture)
        return " ".join(self.path)

    def with_order_as_meant(self) -> "DataConfig":
        """The same, but for a window of None where "auto" means that: for corpora on disk."""
        corpora: tuple[CorpusConfig, ...] = self.mixture or (self,)
        remote = any(is_remote(path) for corpus in corpora for path in corpus.path)
        if remote or self.order.window != "auto":
            return self
        return dataclasses.replace(self, order=dataclasses.replace(self.order, window=None))
