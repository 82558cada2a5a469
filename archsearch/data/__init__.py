"""Text for training: sources -> corpus (no repeats, held-out split) -> tokens on disk -> batches. No torch."""

from archsearch.data.batches import Batches, BatchSource, MixedBatches
from archsearch.data.corpus import Corpus, default_corpus, open_corpus
from archsearch.data.documents import Document, read_source, stdlib_documents
from archsearch.data.progress import Preparing, Progress
from archsearch.data.sources import Source, parse_sources
from archsearch.data.streams import TokenStream
from archsearch.data.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from archsearch.data.tokens import PartTokens, TokenData, prepare

__all__ = [
    "BatchSource",
    "Batches",
    "Corpus",
    "Document",
    "MixedBatches",
    "PartTokens",
    "Preparing",
    "Progress",
    "Source",
    "TokenData",
    "TokenStream",
    "Tokenizer",
    "default_corpus",
    "open_corpus",
    "parse_sources",
    "prepare",
    "read_source",
    "read_tokenizer",
    "stdlib_documents",
    "train_tokenizer",
]
