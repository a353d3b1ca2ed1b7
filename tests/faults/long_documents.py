"""Text in which one group of documents is longer than a job."""

import json
import lzma
from pathlib import Path

from tests.conftest import DEMO

GROUP = 64
"""So many documents are read at once; a place within them has to be found again."""
SHORT = 200
JOINED = 3


def write(folder: Path) -> Path:
    """Writes the demo's text anew: a group of documents that are soon read, and then groups of nearly 200,000 tokens.

    A place in the first group could be mistaken for the beginning of the text, and nobody would see it.
    """
    texts = demo_texts("train")
    joined = ["\n".join(texts[start : start + JOINED]) for start in range(GROUP, len(texts), JOINED)]
    folder.mkdir()
    for split, documents in (("train", [text[:SHORT] for text in texts[:GROUP]] + joined), ("test", demo_texts("test"))):
        lines = [json.dumps({"text": document}) + "\n" for document in documents]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def demo_texts(split: str) -> list[str]:
    """The documents of the demo's text."""
    with lzma.open(DEMO / "text" / f"{split}.jsonl.xz", "rt") as lines:
        return [json.loads(line)["text"] for line in lines]
