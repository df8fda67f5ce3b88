"""Language-tagged data: manifest, corpora, laws, samplers, batches.

Importing this package costs numpy only; torch, tokenizers and file formats are imported where they are used.
"""

from megatron_moo.data.batches import LaneBatches
from megatron_moo.data.build import build_corpus
from megatron_moo.data.corpus import Corpus, Stream, open_corpus
from megatron_moo.data.manifest import Language, Manifest, load_manifest
from megatron_moo.data.mixed import MixedBatches
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.schedule import LaneSchedule
from megatron_moo.data.scores import EarlyStopping, Scores, score
from megatron_moo.data.shares import Shares, expected_positions, plan_shares, small_language_notes
from megatron_moo.data.validation import ValidationBatches

__all__ = [
    "Corpus",
    "EarlyStopping",
    "LaneBatches",
    "LaneSchedule",
    "Language",
    "LanguageSampler",
    "Manifest",
    "MixedBatches",
    "Scores",
    "Shares",
    "Stream",
    "ValidationBatches",
    "build_corpus",
    "expected_positions",
    "load_manifest",
    "open_corpus",
    "plan_shares",
    "score",
    "small_language_notes",
]
