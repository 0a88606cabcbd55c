"""Whatever comes from outside is read or refused, never anything else: a corpus of nasty files, then chance.

A file that once broke a reader goes into its folder of the corpus, and is replayed first from then on.
"""

from pathlib import Path

import pytest
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def each_of(kind: str) -> pytest.MarkDecorator:
    """One test for each file of a folder of the corpus, as its `content`."""
    files = sorted((CORPUS / kind).iterdir())
    return pytest.mark.parametrize("content", [file.read_bytes() for file in files], ids=[file.name for file in files])


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """The content after a few small accidents: bytes changed, cut out, doubled or put in."""
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(content)))
        end = min(len(content), begin + data.draw(st.integers(0, 8)))
        content = content[:begin] + data.draw(st.binary(max_size=8) | st.just(content[begin:end] * 2)) + content[end:]
    return content
