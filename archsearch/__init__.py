"""archsearch: measure the building blocks of small language models on your own devices, and search the best hybrid of them."""

__version__ = "0.1.0"
