"""Text for training: documents -> corpus (no repeats, held-out split) -> tokens on disk -> batches. No torch."""

from archsearch.data.batches import Batches
from archsearch.data.corpus import Corpus, default_corpus, open_corpus
from archsearch.data.documents import Document, read_source, stdlib_documents
from archsearch.data.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from archsearch.data.tokens import TokenData, prepare

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "TokenData",
    "Tokenizer",
    "default_corpus",
    "open_corpus",
    "prepare",
    "read_source",
    "read_tokenizer",
    "stdlib_documents",
    "train_tokenizer",
]
